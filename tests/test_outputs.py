"""What every command may replace and delete: its own outputs and nothing else; killed at any moment, it works again."""

import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import PROCESSES
from toy import toy_config

from megadna.arguments import dump_config
from megadna.cli import main
from megadna.commands.train import _prepare
from megadna.config import CheckpointConfig, Config, TokenizerConfig, ValidationConfig
from megadna.errors import UserError
from megadna.files import mark
from megadna.ownership import MARKER, check_replaceable, read_mark
from megadna.train.run_folder import RUN

DATA = Path(__file__).parent / "data"
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
RUN_FILES = (
    *("config.yaml", "metrics.jsonl", "skipped.jsonl", "log.txt", ".running", "evaluation-test-base.json"),
    *("baselines.json", "checkpoints/step-00000003/complete", "checkpoints/step-00000003/weights/__0_0.distcp"),
    *("checkpoints/step-00000003/weights/.metadata", "checkpoints/.step-00000006.0a1b2c3d.partial/weights/x"),
    *("tensorboard/events.out.tfevents.1.host.2.0", "wandb/run-1/files/a.yaml", "profile/steps-2-3.json"),
    *("report/report.html", "report/loss.png", ".metrics.jsonl.megadna-partial"),
)


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def older_run(folder: Path, config: Config) -> Path:
    """What `megadna train` left before it marked its folders."""
    for name in RUN_FILES:
        write(folder / name)
    write(folder / "config.yaml", dump_config(config))
    (folder / "checkpoints" / "latest").symlink_to("step-00000003")
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(run: Path, config: Config, **more: Any) -> None:
    _prepare(run, config, **{"resume": "never", "overwrite": True, **more})


def test_a_run_is_deleted_by_overwrite_and_is_marked(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "data")
    run = older_run(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"run: not empty; .*--resume .* or --overwrite"):
        start(run, config, overwrite=False)
    start(run, config)
    assert set(contents(run)) == {MARKER, ".running"} and read_mark(run)["kind"] == "run"
    start(run, config, overwrite=False)  # a run that has not begun is free
    write(run / "log.txt")  # the mark alone is proof: of a run that ended before it wrote its config
    start(run, config)
    assert set(contents(run)) == {MARKER, ".running"}
    (tmp_path / "link").symlink_to("run")
    write(run / "metrics.jsonl")
    start(tmp_path / "link", config)
    assert (tmp_path / "link").is_symlink() and set(contents(run)) == {MARKER, ".running"}


@pytest.mark.parametrize(
    "name", ["thesis.txt", "model/README.md", "checkpoints/notes.md", "checkpoints/step-00000003/plot.png",
             "checkpoints/step-3-best/complete", "tensorboard/mine.png", "report/slides.pdf", ".git/HEAD"]
)  # fmt: skip
def test_a_foreign_file_in_a_run_is_a_refusal_that_names_it(name: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path / "data")
    run = older_run(tmp_path / "run", config)
    mark(run, "run")
    write(run / name, "mine")
    before = contents(run)
    with pytest.raises(UserError, match=f"run: contains 1 file that megadna did not write \\({name}\\)"):
        start(run, config)
    assert contents(run) == before


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "train: {steps: 5}\n"},  # what `megadna start` or a user wrote
        {"log.txt": "mine"},
        {"config.yaml": "server: {port: 80}\n", "log.txt": "of a web server"},
        {"config.yaml": "train: {steps: 5}\n", "samples.tsv": "path\tgenome\n"},
        {MARKER: '{"program": "megadna", "kind": "benchmark"}', "config.yaml": "seed: 1\n"},
    ],
)
def test_what_no_run_wrote_is_neither_deleted_nor_started_in(files: dict[str, str], tmp_path: Path) -> None:
    config, run = toy_config(tmp_path / "data"), tmp_path / "run"
    for name, text in files.items():
        write(run / name, text)
    with pytest.raises(UserError, match="run: is no run that megadna wrote, so --overwrite does not delete it"):
        start(run, config)
    with pytest.raises(UserError, match="run: not empty"):
        start(run, config, overwrite=False, resume="auto")
    assert contents(run) == {name: text.encode() for name, text in files.items()}


def test_a_run_that_contains_an_input_is_not_deleted(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "data")
    run = older_run(tmp_path / "run", config)
    inside = run / "checkpoints" / "step-00000003"
    cases = [
        (replace(config, data=replace(config.data, path=str(run / "wandb"))), "wandb: lies in the output"),
        (replace(config, checkpoint=CheckpointConfig(init_from=str(inside))), "step-00000003: lies in the output"),
        (replace(config, checkpoint=CheckpointConfig(init_from=str(run))), "run: is the output"),
        (replace(config, validation=ValidationConfig(extra={"a": str(run / "x")})), "x: lies in the output"),
        (
            replace(config, tokenizer=TokenizerConfig(kind="sentencepiece", model=str(run / "pieces"))),
            "pieces: lies in the output",
        ),
    ]
    before = contents(run)
    for changed, message in cases:
        with pytest.raises(UserError, match=message):
            start(run, changed)
    with pytest.raises(UserError, match=r"config\.yaml: lies in the output"):
        start(run, config, configs=[str(run / "config.yaml")])
    assert contents(run) == before
    check_replaceable(run, RUN)


def test_a_dataset_is_replaced_only_without_foreign_files_and_inputs(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, genome = tmp_path / "data", write(tmp_path / "g.fa", ">a\n" + "ACGTTGCA" * 400 + "\n")
    shutil.copytree(toy_dataset, folder)
    preprocess = ["preprocess", "--input", genome, "--chunk_length", "40", "--block_chunks", "1", "--output"]
    write(folder / "baselines.json", "{}"), write(folder / "thesis.txt", "mine")
    before = contents(folder)
    assert "contains 1 file that megadna did not write (thesis.txt)" in mistake(
        capsys, *preprocess, folder, "--overwrite"
    )
    inside = ["preprocess", "--input", folder / "contigs.tsv", "--column", "contig", "--output", folder, "--overwrite"]
    assert "contigs.tsv: lies in the output" in mistake(capsys, *inside)
    assert "g.fa: lies in the output" in mistake(capsys, *preprocess, tmp_path, "--overwrite")
    assert contents(folder) == before
    (folder / "thesis.txt").unlink()
    for text in ('{"counts": {}, "options": {}}', "{", "[]", '{"name": "web app", "icons": []}'):
        other = tmp_path / "other"
        write(other / "manifest.json", text)
        assert "no dataset that megadna wrote" in mistake(capsys, *preprocess, other, "--overwrite")
        assert "not empty" in mistake(capsys, *preprocess, other)
        assert (other / "manifest.json").read_text() == text
    main([str(word) for word in [*preprocess, folder, "--overwrite"]])
    assert "baselines.json" not in contents(folder) and not list(tmp_path.glob(".*"))


def test_files_of_others_are_not_replaced(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = write(tmp_path / "notes.json", '{"mine": 1}')
    assert "exists and is no evaluation of megadna" in mistake(
        capsys, "evaluate", "--model", toy_dataset, "--output", notes
    )
    plan = ["plan", "--config", DEMO, "--gpus", "1", "--output"]
    write(tmp_path / "a" / "plan.json", '{"mine": 1}'), write(tmp_path / "b" / "plan.png", "mine")
    assert "plan.json: exists and is no plan of megadna" in mistake(capsys, *plan, tmp_path / "a")
    assert "plan.png: is a file that exists" in mistake(capsys, *plan, tmp_path / "b")
    assert "notes.json: is a file" in mistake(capsys, *plan, notes)
    assert "is a file that exists" in mistake(
        capsys, "leakage", "--data", toy_dataset, "--input", DATA / "lambda.fa.gz", "--output", notes
    )
    run = tmp_path / "run"
    write(run / "config.yaml", "seed: 1\n"), write(run / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n')
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "report" / "report.html", "mine")  # two runs report into report/ here
    shutil.copytree(run, tmp_path / "second")
    assert "report.html: exists and is not a report of megadna" in mistake(capsys, "report", run, "second")
    assert (tmp_path / "report" / "report.html").read_text() == "mine"
    assert notes.read_text() == '{"mine": 1}'


def _die(arguments: list[str], moment: int) -> None:
    """Run a command that is killed when it brings something to disk for the `moment`-th time."""
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    sys.stdout = sys.stderr = io.StringIO()
    main(arguments)


def killed(arguments: list[str], moment: int) -> bool:
    process = PROCESSES.Process(target=_die, args=(arguments, moment))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (arguments, process.exitcode)
    return process.exitcode != 0


Command = Callable[[Path], list[Any]]


def check_kills(command: Command, name: str, tmp_path: Path, seed: int, count: int) -> None:
    """Kill `command`, which writes `name` into a folder, at `count` moments; after each it works as if nothing was."""
    reference, rng = tmp_path / "reference", random.Random(seed)
    reference.mkdir()
    main([str(word) for word in command(reference)])
    expected = {key: len(content) for key, content in contents(reference).items()}
    num_killed = 0
    for number, moment in enumerate([1, 2, *(rng.randrange(3, 20) for _ in range(count - 2))]):
        folder = tmp_path / f"try{number}"
        write(folder / "thesis.txt", "mine"), write(folder / f"{name}.old", "mine")
        arguments = [str(word) for word in command(folder)]
        num_killed += killed(arguments, moment)
        for again in (True, False):  # found after the kill, and after the same command
            found = {key: len(content) for key, content in contents(folder).items()}
            assert found.pop("thesis.txt") == found.pop(f"{name}.old") == 4
            for key in found.keys() & expected.keys():  # whole, where it is there; JSON states the folder's name
                assert found[key] == expected[key] or key.endswith((".json", ".bin", ".py")), (moment, key)
            if again and not expected.keys() <= found.keys():  # else it was killed when all was done
                main(arguments)
        assert expected.keys() <= found.keys(), moment
        left = {key for key in found if not key.startswith(".")} - set(expected)
        assert not left or all(key.startswith(f"{name}.parts/") for key in left), (moment, sorted(found))
    assert num_killed


def quick_commands(toy_dataset: Path) -> dict[str, tuple[str, Command]]:
    """Every verb that needs no model: its output's name and its words."""
    yeast = ["--genome", DATA / "yeast_I_VI_VIII.fa.gz", "--annotation", DATA / "yeast_I_VI_VIII.gtf.gz"]
    small = ["--chunk_length", "400", "--valid_fraction", "0.1", "--test_fraction", "0.1"]
    lambda_ = DATA / "lambda.fa.gz"
    return {
        "preprocess": ("d", lambda f: ["preprocess", "--input", lambda_, *small, "--output", f / "d"]),
        "windows": ("w", lambda f: ["windows", *yeast, "--count", "20", "--split", "random", "--output", f / "w"]),
        "tokenizer": (
            "t",
            lambda f: ["train-tokenizer", "--data.path", toy_dataset, "--sample_bases", "20000", "--vocab_size", "64",
                       "--output", f / "t"],
        ),
        "leakage": ("l.tsv", lambda f: ["leakage", "--data", toy_dataset, "--input", lambda_, "--output", f / "l.tsv"]),
        "plan": ("p", lambda f: ["plan", "--config", DEMO, "--gpus", "1", "--output", f / "p"]),
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["preprocess", "tokenizer", "leakage", "plan"])
def test_a_killed_command_works_when_it_is_started_again(verb: str, toy_dataset: Path, tmp_path: Path) -> None:
    name, command = quick_commands(toy_dataset)[verb]
    check_kills(command, name, tmp_path, seed=3, count=2)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["preprocess", "windows", "tokenizer", "leakage", "plan"])
def test_killed_at_more_moments(verb: str, toy_dataset: Path, tmp_path: Path) -> None:
    name, command = quick_commands(toy_dataset)[verb]
    check_kills(command, name, tmp_path, seed=4, count=8)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["embed", "predict", "finetune", "export", "import"])
def test_killed_commands_of_models(verb: str, tmp_path: Path) -> None:
    sys.path += [str(Path(__file__).parent / name) for name in ("downstream", "hf")]
    from checkpoints import random_checkpoint
    from toy_models import megadna_folder

    encoder, lambda_ = megadna_folder(tmp_path / "encoder"), DATA / "lambda.fa.gz"
    if verb == "embed":
        name, words = "x.npy", ["embed", "--model", encoder, "--input", lambda_, "--output"]
    elif verb == "predict":
        from test_predict import task_folder

        from megadna.downstream.tasks import Target

        model = task_folder(encoder, tmp_path / "task", Target("classification", ["out", "in"]))
        name = "x.bw"
        words = ["predict", "--model", model, "--input", lambda_, "--window", "100", "--strand", "apart", "--output"]
    elif verb == "finetune":
        data = DATA / "gue_prom_core_tata"
        name, words = "r", ["finetune", "--model", encoder, "--data", data, "--max_steps", "2", "--output"]
    else:
        config = replace(toy_config(Path("none")), data=replace(Config().data, sequence_length=128))
        checkpoint = random_checkpoint(tmp_path / "step-00000001", config)[0]
        name, words = "m", ["export", "--checkpoint", checkpoint, "--no_verify", "--output"]
        if verb == "import":
            main([*map(str, words), str(tmp_path / "model")])
            name, words = "c", ["import", "--model", tmp_path / "model", "--no_verify", "--output"]
    check_kills(lambda folder: [*words, folder / name], name, tmp_path, seed=5, count=5)
