"""Hugging Face folders of strangers: no verb runs a file of theirs unasked, and damaged ones end in one line.

What must not run is a file that would write a marker; nothing here does anything else.
"""

import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hostile import mutated, refused

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import dnabert_folder, kmer_folder, megadna_folder

from megadna.cli import main
from megadna.downstream.encoder import load_config, load_masked_lm, load_model, load_tokenizer
from megadna.downstream.task_training import save_model
from megadna.downstream.trust import check_folder
from megadna.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PLANTED = {"AutoConfig": "planted.Planted", "AutoModel": "planted.Planted", "AutoModelForMaskedLM": "planted.Planted"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    kinds = {"own": megadna_folder, "foreign": dnabert_folder, "tokenizer": kmer_folder}
    return {kind: make(root / kind) for kind, make in kinds.items()}


@pytest.fixture
def plant(folders, tmp_path):
    """A copy of a folder with files added or changed (None: removed), a planted.py next to them; the marker."""
    marker = tmp_path / "ran"

    def make(kind, files, code=True):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders[kind], folder)
        if code:
            (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Planted: pass\n")
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, dict):
                stated = json.loads(path.read_text()) if path.is_file() else {}
                content = json.dumps({key: value for key, value in (stated | content).items() if value != ""})
            path.write_text(content)
        return folder

    make.marker = marker
    return make


def load(folder):
    """All that a verb loads."""
    load_tokenizer(str(folder), trust_remote_code=False)
    load_model(str(folder), trust_remote_code=False)


SECOND = {"config.json": {"configuration_files": ["config.4.0.0.json"]}, "config.4.0.0.json": {"auto_map": PLANTED}}
RUNS = f"def generate(*_, **__): open({'ran'!r}, 'w')\n"
LEADS_ELSEWHERE = {
    "second config": (SECOND, "configuration_files leads to files that are not checked"),
    "adapter": ({"adapter_config.json": {"base_model_name_or_path": "other"}}, "adapters are not read"),
    "generate": ({"custom_generate/generate.py": RUNS}, "custom_generate is code"),
    "weights": ({"config.json": {"transformers_weights": "../other.safetensors"}}, "transformers_weights leads"),
    "kernel": ({"config.json": {"attn_implementation": "owner/name"}}, "attn_implementation leads"),
    "quantizer": ({"config.json": {"quantization_config": {"quant_method": "x"}}}, "quantization_config leads"),
    "shards": ({"model.safetensors.index.json": {"weight_map": {"a": "../b.safetensors"}}}, "'../b.safetensors' is"),
}


@pytest.mark.parametrize("kind", ["own", "foreign"])
@pytest.mark.parametrize("case", LEADS_ELSEWHERE)
def test_what_leads_out_of_the_files_looked_at_is_refused(plant, kind, case):
    files, message = LEADS_ELSEWHERE[case]
    folder = plant(kind, files)
    assert message in refused(lambda: load(folder))
    assert not plant.marker.exists()


FOREIGN_CODE = {
    "auto_map": {"config.json": {"auto_map": PLANTED, "model_type": "planted"}},
    "of another folder": {"config.json": {"auto_map": {"AutoConfig": "../planted.Planted"}, "model_type": "planted"}},
    "of the Hub": {"config.json": {"auto_map": {"AutoConfig": "owner/name--planted.Planted"}, "model_type": "x"}},
    "no names": {"config.json": {"auto_map": [["planted.Planted"], 3], "model_type": "planted"}},
    "tokenizer": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["planted.Planted", None]}}},
    "old tokenizer": {"tokenizer_config.json": {"auto_map": ["planted.Planted", None]}},
    "no class of ours": {"config.json": {"auto_map": {"AutoConfig": "configuration_megadna.Any"}}},
    "processor": {"processor_config.json": {"auto_map": {"AutoProcessor": "planted.Planted"}}},
    "within": {"config.json": {"encoder": {"auto_map": PLANTED}}},
    "elsewhere": {"deep/planted.py": "open('ran', 'w')\n"},
}


@pytest.mark.parametrize("case", FOREIGN_CODE)
def test_code_is_ours_only_where_all_of_it_is(plant, case, monkeypatch):
    monkeypatch.chdir(plant.marker.parent)
    folder = plant("own", FOREIGN_CODE[case], code=case != "elsewhere")
    assert not check_folder(folder)
    message = refused(lambda: load(folder))
    assert "--trust_remote_code" in message or case == "no names", message
    folder = plant("foreign", FOREIGN_CODE[case], code=case != "elsewhere")
    assert not check_folder(folder)
    refused(lambda: load(folder))  # transformers' own class may do where the code is left out
    assert not plant.marker.exists()


def test_folders_of_ours_are_loaded(folders, plant):
    assert [check_folder(folders[kind]) for kind in ("own", "foreign", "tokenizer")] == [True, False, True]
    for folder in folders.values():
        assert refused(lambda folder=folder: load(folder)) == ""
    text = (folders["own"] / "modeling_megadna.py").read_text()
    assert not check_folder(plant("own", {"modeling_megadna.py": text + "import os\n"}, code=False))
    assert check_folder(plant("own", {"modeling_megadna.py": text}, code=False))


def test_a_fine_tuned_model_imports_an_encoder_and_nothing_else(folders, tmp_path):
    from megadna.downstream.modeling_dna_task import DnaForSequenceTask, DnaTaskConfig

    encoder = load_model(str(folders["foreign"]), trust_remote_code=False)
    tokenizer = load_tokenizer(str(folders["foreign"]), trust_remote_code=False)
    model = DnaForSequenceTask(DnaTaskConfig(encoder=encoder.config.to_dict(), num_labels=2), encoder)
    folder = tmp_path / "model"
    save_model(model, model, tokenizer, folder)
    code = folder / "modeling_dna_task.py"
    text = code.read_text()
    assert "from transformers import BertModel as Encoder\n" in text and check_folder(folder)
    load_model(str(folder), "AutoModelForSequenceClassification", trust_remote_code=False)
    for other in ("pipeline", "AutoTokenizer", "Trainer", "no_such_name"):
        code.write_text(text.replace("import BertModel as Encoder", f"import {other} as Encoder"))
        assert not check_folder(folder), other
    code.write_text(text.replace("from transformers import BertModel", "from .other import BertModel"))
    assert not check_folder(folder)


def verbs(folder, data):
    """Every command that reads a Hugging Face folder of somebody else."""
    table, genome = str(data / "train.csv"), str(data / "a.fa")
    yield "embed", ["--model", folder, "--input", genome, "--output", str(data / "x.npy")]
    yield "predict", ["--model", folder, "--input", genome, "--output", str(data / "x.parquet")]
    yield "finetune", ["--model", folder, "--data", table, "--output", str(data / "fine")]
    yield "benchmark", ["--suite", "gue", "--model", folder, "--data", str(data), "--output", str(data / "bench")]
    yield "evaluate", ["--model", folder, "--data.path", str(data / "none"), "--split", "test"]
    yield "import", ["--model", folder, "--output", str(data / "checkpoint")]


def test_no_verb_runs_the_code_of_a_folder(plant, tmp_path, capsys, monkeypatch):
    rows = "".join(f"{'ACGT' * 9}{'ACGT'[i % 4]},{i % 2}\n" for i in range(40))
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + rows)
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 30 + "\n")
    folder = plant("foreign", SECOND)
    for verb, arguments in verbs(str(folder), tmp_path):
        with pytest.raises(SystemExit) as stopped:
            main([verb, *arguments])
        error = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and "configuration_files" in error[-1], (verb, error)
        assert not plant.marker.exists(), verb
    specification = importlib.util.spec_from_file_location("fill_mask", REPOSITORY / "tools" / "fill_mask.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["fill_mask.py", str(folder), "--sequence", "ACGT" * 20])
    with pytest.raises(SystemExit, match="configuration_files"):
        script.main()
    assert not plant.marker.exists()


def test_a_link_out_of_the_folder_is_refused(plant, tmp_path):
    (tmp_path / "secret.txt").write_text("not for the model\n")
    folder = plant("foreign", {}, code=False)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    assert "a link out of the folder" in refused(lambda: load(folder))
    (folder / "model.safetensors").replace(tmp_path / "weights.safetensors")  # large files may lie elsewhere
    (folder / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    (folder / "vocab.txt").unlink()
    shutil.copy(tmp_path / folder.name / ".." / folder.name / "config.json", tmp_path / "config.json")
    assert "vocab.txt" not in refused(lambda: check_folder(folder))


def test_the_cache_of_the_hub_is_a_folder_of_links(folders, tmp_path, monkeypatch):
    """A name of the Hub is read from the cache, where there is no network."""
    import huggingface_hub

    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in folders["foreign"].iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert not check_folder(snapshot)
    assert refused(lambda: load(snapshot)) == ""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused(lambda: load_config("owner/unknown", trust_remote_code=False))
    assert "owner/unknown: no such folder, and not available from the Hugging Face Hub" in message


def test_a_pickle_is_one_line(folders, tmp_path):
    """A .bin file that would write the marker, and files that are no pickles of tensors."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return open, (str(marker), "w")

    folder = shutil.copytree(folders["foreign"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for content in (Payload(), [1], {"a": Payload()}, {"a": torch.zeros(1).expand(10**9)}):
        torch.save(content, folder / "pytorch_model.bin")
        assert str(folder) in refused(lambda: load(folder))
        with pytest.raises(UserError, match="refused, not a file of tensors"):
            from megadna.hf.weights import FolderWeights

            FolderWeights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04garbage")
    assert str(folder) in refused(lambda: load(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"num_hidden_layers": 10**6}),
        ("config.json", {"num_labels": 10**9}),
        ("config.json", {"hidden_size": 10**9}),
        ("config.json", {"vocab_size": 10**12}),
        ("config.json", {"vocab_size": "many"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"architectures": 3, "model_type": ["x"]}),
        ("tokenizer_config.json", {"model_max_length": "inf"}),
        ("tokenizer_config.json", {"model_max_length": -5}),
        ("tokenizer_config.json", {"tokenizer_class": ["x"]}),
        ("tokenizer_config.json", {"auto_map": 3}),
    ],
)
@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_numbers_that_do_not_fit_are_one_line(plant, kind, file, change):
    folder = plant(kind, {file: change}, code=False)
    assert str(folder) in refused(lambda: (load_config(str(folder), trust_remote_code=False), load_all(folder)))


def load_all(folder):
    load_tokenizer(str(folder), trust_remote_code=False)
    load_model(str(folder), trust_remote_code=False)


def fuzz(folders, tmp_path, count, seed):
    """Damaged files of folders; how many load and how many are refused."""
    rng = random.Random(seed)
    loaded = refusals = 0
    for number in range(count):
        kind = ("own", "foreign", "tokenizer")[number % 3]
        names = sorted(
            path.name for path in folders[kind].iterdir() if path.suffix in (".json", ".txt", ".safetensors")
        )
        name = rng.choice(names)
        folder = tmp_path / kind
        shutil.copytree(folders[kind], folder, dirs_exist_ok=True)
        data = (folder / name).read_bytes()
        size = 1_000 if name.endswith(".safetensors") else len(data)  # its header
        (folder / name).write_bytes(mutated(data[:size], rng) + data[size:])
        verb = rng.choice([load_all, lambda path: load_masked_lm(str(path))])
        if refused(lambda verb=verb, folder=folder: verb(folder)):
            refusals += 1
        else:
            loaded += 1
    return loaded, refusals


def test_fuzz_quick(folders, tmp_path):
    loaded, refusals = fuzz(folders, tmp_path, 60, seed=5)
    assert loaded and refusals > 25  # most damage is found; some changes nothing that is read


@pytest.mark.slow
def test_fuzz(folders, tmp_path):
    loaded, refusals = fuzz(folders, tmp_path, 1_500, seed=6)
    assert loaded > 50 and refusals > 500
