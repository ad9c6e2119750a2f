"""A user's mistake: one line on standard error that names it and the remedy, exit status 2, nothing left behind."""

import ast
import gzip
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megadna.cli import COMMANDS, NEEDS, main
from megadna.commands.finished import VERBS
from megadna.data.manifest import load_manifest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
GENOME = DATA / "lambda.fa.gz"
CONFIG = ROOT / "configs" / "demo.yaml"


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line that the command ends in; before it there may be lines that say what is being done."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    lines = [line for line in error.splitlines() if line.startswith("megadna: error: ")]
    assert len(lines) == 1 and error.endswith(f"{lines[0]}\n") and "Traceback" not in error, error
    return lines[0]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FASTA = {
    "empty.fa": (b"", "empty"),
    "noheader.fa": (b"ACGTACGTACGT\nACGT\n", "line 1"),
    "protein.fa": (
        b">sp|P0A7Y4\nMLKQVEIFTDGSCLGNPGPGGYGAILRYRGREKTFSAGYTRTTNNRMELMAAIVALEALKEHCEVILSTDSQYVRQGIT\n",
        "line 2",
    ),
    "short.fa.gz": (GENOME.read_bytes()[:9000], "short.fa.gz"),
    "binary.fa": (b">a\nACGT\x00\x00ACGT\n", "line 2"),
}


@pytest.mark.parametrize("name", BAD_FASTA)
def test_preprocess_names_a_bad_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, word = BAD_FASTA[name]
    path = write(tmp_path / name, content)
    line = mistake(capsys, "preprocess", "--input", path, "--output", tmp_path / "dataset")
    assert name in line and word in line
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_preprocess_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "preprocess", "--input", tmp_path / "no.fa", "--output", tmp_path / "d")
    assert "no.fa" in line
    (tmp_path / "folder").mkdir()
    line = mistake(capsys, "preprocess", "--input", tmp_path / "folder", "--output", tmp_path / "d")
    assert "folder" in line
    assert not (tmp_path / "d").exists()


def test_train_refuses_before_anything_starts(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = ["train", "--config", CONFIG, "--output", run]
    data = [*start, "--data.path", toy_dataset]
    base = [*data, "--data.sequence_length", "128"]
    assert "model.num_layer" in mistake(capsys, *base, "--model.num_layer", "3")
    line = mistake(capsys, *data, "--data.sequence_length", "600")
    assert "600" in line and "514" in line  # 512 nt + [CLS] + [SEP]
    assert "nowhere" in mistake(capsys, *start, "--data.path", tmp_path / "nowhere")
    assert "--data.path" in mistake(capsys, *start)
    line = mistake(capsys, *data, "--data.path", tmp_path / "second")
    assert "--data.path is given twice" in line and str(toy_dataset) in line and "second" in line
    assert "2 ranks" in mistake(capsys, *base, "--parallel.tensor", "2", "--engine.num_processes", "3").replace(
        "3", "2"
    )
    line = mistake(capsys, *base, "--train.global_batch_size", "30")
    assert "global_batch_size (30)" in line and line.endswith("or --train.global_batch_size 48")
    assert "sees no GPU" in mistake(capsys, *base, "--engine.device", "cuda")
    assert "no such run" in mistake(capsys, *base, "--resume")
    assert not run.exists()


def test_a_packaged_config_is_found_by_name(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where no file has that path; a folder is no file."""
    monkeypatch.chdir(tmp_path)
    base = ["--data.path", str(toy_dataset), "--data.sequence_length", "128", "--dry_run"]
    (tmp_path / "demo").mkdir()
    for name in ("demo", "demo.yaml", "configs/demo.yaml"):
        main(["train", f"--config={name}", *base])
        found = capsys.readouterr()
        assert "3,823,248 parameters" in found.out and f"{name} is no file here: taking" in found.err
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs" / "demo.yaml", b"model: {num_layer: 1}\n")
    assert "model.num_layer" in mistake(capsys, "train", "--config", "configs/demo.yaml", *base)
    assert "did you mean demo?" in mistake(capsys, "train", "--config", "dmo", *base)
    assert "no such config file" in mistake(capsys, "train", "--config", tmp_path / "demo.yaml", *base)
    assert "no such config or script" in mistake(capsys, "configs", "quux")
    assert "did you mean finetune/gue?" in mistake(capsys, "finetune", "--config", "finetune/gua")


def test_dry_run_finds_mistakes_and_writes_nothing(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of the run as the builder and the config state them."""
    base = ["train", "--config", str(CONFIG), "--data.path", str(toy_dataset), "--dry_run"]
    main([*base, "--output", str(tmp_path / "run"), "--train.steps", "50", "--train.warmup_steps", "5"])
    text = capsys.readouterr().out
    manifest = load_manifest(toy_dataset)
    assert f"train: {manifest.chunks['train']:,} chunks of up to 512 bases" in text
    assert f"valid: {manifest.chunks['valid']:,} chunks" in text and f"{manifest.bases['train']:,} bases" in text
    assert "layout: 2 ranks: tensor 1, pipeline 1, context 1, data 2" in text and "run: 50 steps of 6,048" in text
    assert "global_batch_size (30)" in mistake(capsys, *base, "--train.global_batch_size", "30")
    assert "no such run folder" in mistake(capsys, *base, "--output", tmp_path / "run", "--resume")
    assert "not empty" in mistake(capsys, *base, "--output", DATA)
    assert "no run that megadna wrote" in mistake(capsys, *base, "--output", DATA, "--overwrite")
    blend = ["--data.blend.by", "source", "--data.blend.weights", "{nobody: 1.0}"]
    assert "nobody" in mistake(capsys, *base, *blend)
    assert not list(tmp_path.iterdir())


def test_missing_libraries_are_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megadna.cli.find_spec", lambda name: None)
    line = mistake(capsys, "finetune", "--model", tmp_path)
    assert "accelerate, pandas, peft, scipy, sklearn are not installed; pip install 'megadna[downstream]'" in line


def test_every_library_that_a_verb_imports_at_once_is_stated() -> None:
    """What the modules of a verb import when they are imported, beyond what megadna always needs."""
    downstream = {"pandas", "sklearn", "scipy", "pyBigWig", "peft", "anndata", "h5py", "pysam", "umap", "captum"}
    for verb in COMMANDS:
        path = ROOT / "megadna" / "commands" / f"{'import_' if verb == 'import' else verb.replace('-', '_')}.py"
        # A verb imports within functions what every call needs.
        texts = [inspect.getsource(VERBS[verb].run) if verb in VERBS else path.read_text(encoding="utf-8")]
        todo, seen, found = [ROOT / "megadna" / "commands" / "finished.py"], set[Path](), set[str]()
        while todo or texts:
            is_verb = bool(texts)
            text = texts.pop() if is_verb else todo[-1].read_text(encoding="utf-8")
            seen |= set() if is_verb else {todo.pop()}
            for name in imports(text, everywhere=is_verb):
                found |= {name.partition(".")[0]} & downstream
                inner = ROOT / (name.replace(".", "/") + ".py")
                todo += [inner] if name.startswith("megadna.") and inner.is_file() and inner not in seen else []
        assert found <= set(NEEDS.get(verb, ())), verb


def imports(text: str, *, everywhere: bool) -> set[str]:
    """Modules that a file imports, within functions too if `everywhere`, but not for type checkers alone."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        nodes += [] if isinstance(node, ast.FunctionDef) and not everywhere else list(ast.iter_child_nodes(node))
    return found


def test_train_never_writes_over_what_is_there(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("three years of work")
    base = ["train", "--config", CONFIG, "--output", run, "--data.path", toy_dataset, "--data.sequence_length", "128"]
    line = mistake(capsys, *base)
    assert "--resume" in line and "--overwrite" in line
    assert "exclude" in mistake(capsys, *base, "--resume", "--overwrite")
    assert "no whole checkpoint" in mistake(capsys, *base, "--resume")
    assert "no run" in mistake(capsys, *base, "--overwrite")
    preprocess = ["preprocess", "--input", GENOME, "--output", run, "--chunk_length", "100"]
    assert "no dataset" in mistake(capsys, *preprocess, "--overwrite")
    assert (run / "thesis.txt").read_text() == "three years of work"


def test_a_path_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], toy_dataset: Path) -> None:
    options = ["--data.path", toy_dataset, "--data.sequence_length", "128"]
    assert "/proc/nowhere" in mistake(capsys, "train", "--config", CONFIG, "--output", "/proc/nowhere/run", *options)


OUT_OF_MEMORY = """
import sys, torch
from megadna.cli import main
from megadna.train import step
def fail(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")
step.get_forward_backward_func = fail
main(sys.argv[1:])
"""


def test_out_of_memory_names_the_options_that_lower_it(toy_dataset: Path, tmp_path: Path) -> None:
    train = ["train", "--config", str(CONFIG), "--output", str(tmp_path / "run"), "--data.path", str(toy_dataset)]
    options = ["--data.sequence_length", "128", "--engine.num_processes", "1", "--data.num_workers", "0"]
    command = [sys.executable, "-c", OUT_OF_MEMORY, *train, *options]
    result = subprocess.run(command, capture_output=True, text=True)
    line = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert line.startswith("megadna: error: out of memory")
    assert "train.micro_batch_size (now 12)" in line and "parallel.recompute" in line


def test_export_and_evaluate_name_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run" in mistake(capsys, "export", "--checkpoint", tmp_path / "x", "--output", tmp_path / "y")
    assert "no whole checkpoint" in mistake(capsys, "export", "--checkpoint", tmp_path, "--output", tmp_path / "y")
    assert "no such run" in mistake(capsys, "evaluate", "--model", tmp_path / "x")


def test_unknown_command_and_key_suggest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert mistake(capsys, "trian").endswith("did you mean train?")
    assert "one of: start" in mistake(capsys, "quux")
    write(tmp_path / "a.yaml", b"train: {step: 5}\n")
    assert "train.steps" in mistake(capsys, "train", "--config", tmp_path / "a.yaml", "--output", tmp_path / "r")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"megadna {command}" in text
    assert not re.search(r"<class|Literal|Union|NoneType|type:|default: (\)|\[\]|null|None|False)", text)


IN_WORDS = [
    ("embed --model x", "--input is missing; see megadna embed --help"),
    ("inspect", "PATH is missing"),
    ("embed --model x --input y --layers a", "--layers must be a whole number, got a"),
    ("finetune --folds x", "--folds must be a whole number, got x"),
    ("train --tokenizer.kind bpe", "tokenizer.kind must be one of nucleotide, kmer, sentencepiece, got bpe; did you "
     "mean sentencepiece?"),
    ("train --data.sequence_length foo", "data.sequence_length must be a whole number or auto, got foo"),
    ("train --train.betas 3", "train.betas must be a list of 2 values, as [..., ...], got 3"),
    ("train --data.packing maybe", "data.packing must be true or false, got maybe"),
    ("train --parallel.pipeline_layers a", "parallel.pipeline_layers must be a list [whole number, ...], got a"),
    ("train --data.blend.weights 3", "data.blend.weights must be a section {name: a number}, got 3"),
    ("evaluate --model x --protocol baes", "one of as_trained, base, block6, got baes; did you mean base?"),
    ("export --checkpoint x --output y --dtype fp8", "--dtype must be one of fp32, bf16, got fp8"),
    ("export --checkpoint x --model y --output z", "--model is given twice (x, then y)"),
    ("train --data x --data.path y", "--data.path is given twice (x, then y)"),
    ("train-tokenizer --data x --output y", "x: no such dataset folder"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), IN_WORDS)
def test_mistakes_are_said_in_words(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, *arguments.split())
    assert said in line and "typing" not in line and "<class" not in line


SLOW_TO_IMPORT = """
import sys
from megadna.cli import COMMANDS, main
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit:
        pass
    found = {"torch", "pandas", "matplotlib", "transformers", "megatron", "scipy", "sklearn"} & set(sys.modules)
    assert not found, (command, found)
"""


def test_help_of_no_command_imports_what_is_slow() -> None:
    subprocess.run([sys.executable, "-c", SLOW_TO_IMPORT], check=True, stdout=subprocess.DEVNULL)


def test_module_and_command_are_the_same(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.fa.gz", gzip.compress(b"ACGT\n"))
    command = [sys.executable, "-m", "megadna", "preprocess", "--input", str(bad), "--output", str(tmp_path / "d")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "bad.fa.gz" in result.stderr and "Traceback" not in result.stderr


def test_words_with_hyphens_and_underscores_are_one(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verbs and options alike; a value is left as it is."""
    assert "data.path" in mistake(capsys, "train_tokenizer", "--output", tmp_path / "t")
    base = ["train", "--config", CONFIG, "--data.path", toy_dataset, "--data.sequence-length", "128", "--dry-run"]
    assert "global_batch_size (30)" in mistake(capsys, *base, "--train.global-batch-size=30")
    assert "a-b: no such dataset" in mistake(capsys, *base[:3], "--data.path", "a-b", "--dry-run")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("configs", "doctor")])
def test_a_command_alone_says_what_is_missing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, command)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 93.1 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("the tensors differ"),
    ],
)
def test_no_memory_is_one_line_whatever_the_verb(monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr("megadna.commands.configs.main", fail)
    with pytest.raises(RuntimeError if "differ" in str(error) else SystemExit):
        main(["configs"])
    found = capsys.readouterr().err
    assert ("differ" in str(error)) or (f"error: not enough memory ({error}); " in found and found.count("\n") == 1)
