"""Hugging Face folders and checkpoints that are damaged or made up, imported and read: one line each, nothing left."""

import json
import random
import shutil
import struct

import pytest
import torch
from checkpoints import random_checkpoint
from hostile import mutated, refused
from test_round_trips import BERT, kmers

from megadna.config import Config, DataConfig
from megadna.hf.card import Provenance
from megadna.hf.checkpoints import CheckpointTensors
from megadna.hf.export import export
from megadna.hf.importing import import_folder
from megadna.hf.weights import FolderWeights
from megadna.train.checkpoint import read_config, read_numbers
from megadna.train.integrity import check, refuse_foreign_pickles, seal

TRIMERS = Config(model=BERT, tokenizer=kmers(), data=DataConfig(sequence_length=128))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint and its export."""
    root = tmp_path_factory.mktemp("made")
    checkpoint, _ = random_checkpoint(root / "first", TRIMERS)
    export(checkpoint, root / "hf", check=False)
    return checkpoint, root / "hf"


@pytest.fixture
def hf(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "hf")


@pytest.fixture
def checkpoint(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "checkpoint")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", None),
        ("hidden_size", -1),
        ("hidden_size", 64.0),
        ("vocab_size", 10**30),
        ("num_attention_heads", 0),
        ("intermediate_size", [1]),
        ("layer_norm_eps", "small"),
        ("hidden_dropout_prob", {}),
        ("max_position_embeddings", True),
        ("model_type", ["bert"]),
        ("configuration_files", ["config.4.0.0.json"]),
    ],
)
def test_a_value_of_config_json_is_named(hf, tmp_path, key, value):
    change(hf / "config.json", **{key: value})
    message = refused(lambda: import_folder(hf, tmp_path / "second", check=False))
    assert "config.json: " in message and (key in message or key in ("layer_norm_eps", "hidden_dropout_prob")), message
    assert not list(tmp_path.glob("*second*"))


def header(entry, size=0):
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        header(3),
        header({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}, 4),
        header({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, 4),
        header({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, 4),
        header({"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}, 4),
        header({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, 4),
        struct.pack("<Q", 60_000) + b"[" * 60_000,
        struct.pack("<Q", 1 << 60),
        b"",
    ],
    ids=["number", "shape", "negative", "backwards", "cut short", "type", "nested", "no header", "empty"],
)
def test_a_header_of_safetensors_that_does_not_fit(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    found = refused(lambda: FolderWeights(tmp_path).read("a"))
    assert "model.safetensors: not a safetensors file (" in found and found.endswith("; fetch it again")


def test_a_type_that_is_not_read_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header({"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, 4))
    assert "model.safetensors: a is stored as U8; convert it" in refused(lambda: FolderWeights(tmp_path).read("a"))


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3)],
        {3: torch.zeros(3)},
        {"a": 3},
        {"a": torch.zeros(1).expand(10**9)},
        {"a": torch.eye(3).to_sparse()},
    ],
    ids=["list", "number", "value", "expanded", "sparse"],
)
def test_a_bin_file_holds_whole_tensors(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin: refused, not a file of tensors" in refused(lambda: FolderWeights(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "[" * 60_000, "nested too deeply"),
        ("state.json", '{"step": "1", "consumed_samples": 0}', "step is '1', not a count"),
        ("state.json", '{"step": 1, "consumed_samples": -1}', "consumed_samples is -1, not a count"),
        ("state.json", '{"step": 1, "consumed_samples": 1, "skipped": [3]}', "skipped is [3], not a list of ranges"),
        (
            "state.json",
            '{"step": 1, "consumed_samples": 1, "skipped": [], "versions": {}, "imported": []}',
            "imported is []",
        ),
        ("config.yaml", "model: {num_layers: 1000000000}\n", "model.num_layers is 1000000000"),
        ("complete", '{"../../other": {"bytes": 1, "crc32": 1}}', "'../../other' is no file of a checkpoint"),
        ("complete", '{"state.json": 3}', "does not give size and checksum"),
        ("complete", "[]", "not an object but list"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(checkpoint, name, content, message):
    (checkpoint / name).write_text(content)
    found = refused(lambda: (read_numbers(checkpoint), read_config(checkpoint), check(checkpoint)))
    assert message in found and str(checkpoint / name) in found


def test_a_tensor_larger_than_its_files_is_refused_before_memory_is_taken(checkpoint):
    tensors = CheckpointTensors(checkpoint, master=False)
    name = tensors.names()[0]
    tensors._entries[name].size = torch.Size([1 << 20, 1 << 20])  # as a forged .metadata states it
    assert "does not fit its files" in refused(lambda: tensors.read(name))


@pytest.mark.parametrize("memo", [b"r\xff\xff\xff\xff", b"p4294967295\n"])
def test_a_description_of_tensors_sets_no_memory_aside(checkpoint, memo):
    data = (checkpoint / "weights" / ".metadata").read_bytes()
    assert data[-1:] == b"."
    (checkpoint / "weights" / ".metadata").write_bytes(data[:-1] + memo + b".")
    assert ".metadata: refused" in refused(lambda: refuse_foreign_pickles(checkpoint / "weights"))


def test_a_run_that_started_from_itself_has_an_end(checkpoint):
    text = (checkpoint / "config.yaml").read_text()
    assert "  init_from: ''\n" in text
    (checkpoint / "config.yaml").write_text(text.replace("  init_from: ''", f"  init_from: {checkpoint}"))
    seal(checkpoint)
    found = Provenance.of(checkpoint)
    assert found.source == {"name": checkpoint.name, "license": "unknown"}


def fuzz(made, tmp_path, count, seed):
    """Damaged files of a folder and of a checkpoint; how many were read and how many refused."""
    rng, read, refusals = random.Random(seed), 0, 0
    for number in range(count):
        checkpoint, hf = (shutil.copytree(path, tmp_path / path.name, dirs_exist_ok=True) for path in made)
        folder, names = (
            (hf, ("config.json", "vocab.txt", "model.safetensors", "README.md"))
            if number % 2
            else (checkpoint, ("state.json", "config.yaml", "complete", "weights/.metadata", "weights/common.pt"))
        )
        name = rng.choice(names)
        data = (folder / name).read_bytes()
        size = 1_500 if name == "model.safetensors" else len(data)  # its header
        (folder / name).write_bytes(mutated(data[:size], rng) + data[size:])

        def read_all(folder=folder, is_hf=folder == hf):
            if is_hf:
                import_folder(folder, tmp_path / "second", check=False, overwrite=True)
                return
            read_numbers(folder), read_config(folder), check(folder)
            tensors = CheckpointTensors(folder, master=True)
            tensors.read(tensors.names()[0])

        if refused(read_all):
            refusals += 1
        else:
            read += 1
    return read, refusals


def test_fuzz_quick(made, tmp_path):
    read, refusals = fuzz(made, tmp_path, 16, seed=7)
    assert read >= 1 and refusals > 5


@pytest.mark.slow
def test_fuzz(made, tmp_path):
    read, refusals = fuzz(made, tmp_path, 1_000, seed=8)
    assert read > 30 and refusals > 400
