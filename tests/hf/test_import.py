"""What is imported without files it could have, and what is refused in one line."""

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from checkpoints import random_checkpoint
from safetensors.torch import load_file, save_file
from test_round_trips import BERT, kmers

from megadna.config import Config, DataConfig, ModelConfig
from megadna.errors import UserError
from megadna.hf.card import Provenance
from megadna.hf.checkpoints import CheckpointTensors, write_tensors
from megadna.hf.export import export
from megadna.hf.importing import import_folder
from megadna.train.checkpoint import find_checkpoint, read_config, read_numbers

MODERN = Config(
    model=ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=48),
    data=DataConfig(sequence_length=512),
)
TRIMERS = Config(model=BERT, tokenizer=kmers(), data=DataConfig(sequence_length=128))


@pytest.fixture
def folder(tmp_path):
    """Make an export of `config`, change it, and return the folder and the weights."""

    def make(config=TRIMERS, **changes):
        checkpoint, weights = random_checkpoint(tmp_path / "first", config)
        export(checkpoint, tmp_path / "hf", check=False, license_name=changes.pop("license_name", ""))
        content = json.loads((tmp_path / "hf" / "config.json").read_text()) | changes
        (tmp_path / "hf" / "config.json").write_text(json.dumps(content))
        return tmp_path / "hf", weights

    return make


def test_the_published_shape_of_aido_dna_needs_no_tokenizer_files_and_no_index(folder, tmp_path):
    """Shards under an index that names .bin files, no tokenizer, no auto_map."""
    hf, weights = folder(MODERN)
    tensors = load_file(hf / "model.safetensors")
    for path in [*hf.glob("*.py"), *hf.glob("tokenizer*"), hf / "model.safetensors", hf / "README.md"]:
        path.unlink()
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        save_file({name: tensors[name] for name in names}, hf / f"pytorch_model-0000{number}-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-00001-of-00002.bin")}
    (hf / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    content = json.loads((hf / "config.json").read_text())
    del content["auto_map"]
    (hf / "config.json").write_text(json.dumps(content))
    import_folder(hf, tmp_path / "second", check=False)
    back = CheckpointTensors(find_checkpoint(tmp_path / "second"), master=True)
    assert all(torch.equal(back.read(name), weight) for name, weight in weights.items())
    assert read_config(tmp_path / "second").tokenizer == MODERN.tokenizer


def test_a_checkpoint_is_written_with_few_tensors_in_memory(tmp_path):
    """torch's writer keeps every tensor of a file; a 7B model would be in memory as a whole."""
    given, most = [], 0

    def read(name):
        nonlocal most
        numbers = np.full(8, float(name), np.float32)  # lives as long as any tensor over it
        given.append(weakref.ref(numbers))
        most = max(most, sum(array() is not None for array in given))
        return torch.from_numpy(numbers)

    write_tensors(tmp_path, {str(number): (8,) for number in range(50)}, read, dtype=torch.float32)
    assert most <= 3
    back = CheckpointTensors(tmp_path, master=False)
    assert all(bool((back.read(str(number)) == number).all()) for number in range(50))


def test_a_pickled_bert_with_pooler_and_aliases_is_read(folder, tmp_path):
    """As zhihan1996/DNA_bert_3: pytorch_model.bin, a pooler, decoder and embeddings, no tokenizer files."""
    hf, weights = folder()
    tensors = load_file(hf / "model.safetensors")
    extra = {
        "bert.pooler.dense.weight": torch.zeros(64, 64),
        "bert.embeddings.position_ids": torch.arange(128)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
    }
    torch.save(tensors | extra, hf / "pytorch_model.bin")
    for name in ("model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (hf / name).unlink()
    import_folder(hf, tmp_path / "second")
    back = CheckpointTensors(find_checkpoint(tmp_path / "second"), master=True)
    assert all(torch.equal(back.read(name), weight) for name, weight in weights.items())
    torch.save(tensors | {"cls.predictions.decoder.weight": torch.zeros(69, 64)}, hf / "pytorch_model.bin")
    with pytest.raises(UserError, match="untied decoders cannot be imported"):
        import_folder(hf, tmp_path / "third")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' cannot be imported; it reads bert"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ({"num_hidden_layers": 1}, r"unknown tensors: bert\.encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"lacks: bert\.encoder\.layer\.2"),
        ({"vocab_size": 70}, "its vocabulary .70 tokens. is neither"),
        ({"intermediate_size": 100}, r"intermediate.dense.weight is \[96, 64\], expected \[100, 64\]"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(folder, tmp_path, change, message):
    hf, _ = folder(**change)
    with pytest.raises(UserError, match=message):
        import_folder(hf, tmp_path / "second", check=False)
    assert not list(tmp_path.glob("*second*"))


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    evil = {"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    hf, _ = folder(MODERN, auto_map=evil)
    for name in ("evil.py", "modeling_megadna.py", "configuration_megadna.py"):
        (hf / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')\n")
    import_folder(hf, tmp_path / "second")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_named(folder, tmp_path):
    hf, _ = folder()
    whole = (hf / "model.safetensors").read_bytes()
    for content, message in (
        (whole[:-8], "not a safetensors file"),
        (b"x" * 99, "not a safetensors file"),
        (None, "no .*bin"),
    ):
        (hf / "model.safetensors").unlink()
        if content is not None:
            (hf / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=message):
            import_folder(hf, tmp_path / "second", check=False)
        (hf / "model.safetensors").touch()
    (hf / "model.safetensors").unlink()
    (hf / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="refused, not a file of tensors"):
        import_folder(hf, tmp_path / "second", check=False)
    assert not list(tmp_path.glob("*second*"))


def test_the_licence_of_the_source_follows(folder, tmp_path):
    hf, _ = folder(license_name="cc-by-nc-4.0")
    assert "license: cc-by-nc-4.0\n" in (hf / "README.md").read_text().split("---")[1]
    import_folder(hf, tmp_path / "second", check=False)
    assert read_numbers(tmp_path / "second")["imported"]["license"] == "cc-by-nc-4.0"
    export(tmp_path / "second", tmp_path / "again", check=False)
    card = (tmp_path / "again" / "README.md").read_text()
    assert "The model that training started from: licence cc-by-nc-4.0." in card and "No licence is stated" in card
    record = json.loads((tmp_path / "again" / "megadna.json").read_text())
    assert record["started_from"]["license"] == "cc-by-nc-4.0" and str(tmp_path) not in json.dumps(record)


def test_the_card_tells_data_recipe_and_validation(toy_dataset, tmp_path):
    """Of a checkpoint in a run folder, with an evaluation and the dataset."""
    run = tmp_path / "run"
    config = Config(model=MODERN.model, data=DataConfig(sequence_length=128, path=str(toy_dataset)))
    checkpoint, _ = random_checkpoint(run / "checkpoints" / "step-00000010", config)
    numbers = read_numbers(checkpoint) | {"step": 10, "consumed_samples": 320, "dataset_id": "abc"}
    (checkpoint / "state.json").write_text(json.dumps(numbers))
    score = {"bits_per_base": 1.9312, "standard_error": 0.0123, "perplexity": 3.81, "accuracy": 0.35}
    counts = {"split": "test", "step": 10, "samples": 4, "hidden_bases": 70}
    evaluation = {**counts, "model": score, "baselines": {"markov": score | {"bits_per_base": 1.8}}}
    (run / "evaluation-test.json").write_text(json.dumps(evaluation))
    export(checkpoint, tmp_path / "hf", check=False, license_name="apache-2.0")
    card = (tmp_path / "hf" / "README.md").read_text()
    for text in (
        "| mgenitalium_G37 |  | 1 | 580,076 | 903 / 110 / 120 | L43967.2 |",
        "contig filter `primary`; held out by `region` (asked for: valid 0.1, test 0.1)",
        "Leakage between the splits was not measured.",
        "| optimizer steps | 10 of 1,000 |",
        "| tokens read, padding included | 40,960 |",
        "| test | step 10 | 1.9312 | 0.0123 | 0.3500 |",
        "| test | markov | 1.8000 |",
        "Licence of the weights: apache-2.0.",
        "license: apache-2.0\n",
    ):
        assert text in card, card
    record = (tmp_path / "hf" / "megadna.json").read_text()
    assert "mgenitalium_G37" in record
    assert not [word for word in (str(tmp_path), str(toy_dataset), "tests/data") if word in card + record]
    shutil.rmtree(run / "checkpoints" / "step-00000010" / "weights")
    assert Provenance.of(checkpoint).extract()["step"] == 10


def test_overwrite_replaces_checkpoints_and_nothing_else(folder, tmp_path):
    hf, _ = folder(MODERN)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.yaml").write_text("mine")  # once taken for a proof
    with pytest.raises(UserError, match="checkpoint: is no checkpoint that megadna wrote"):
        import_folder(hf, checkpoint, check=False, overwrite=True)
    (checkpoint / "config.yaml").unlink()
    import_folder(hf, checkpoint, check=False)
    (checkpoint / "weights" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains 1 file that megadna did not write \(weights/notes\.txt\)"):
        import_folder(hf, checkpoint, check=False, overwrite=True)
    (checkpoint / "weights" / "notes.txt").unlink()
    import_folder(hf, checkpoint, check=False, overwrite=True)
    find_checkpoint(checkpoint)
    with pytest.raises(UserError, match="is the output"):
        import_folder(hf, hf, check=False, overwrite=True)
