"""An export loads where neither megadna nor megatron can be imported, computes the same, and is whole or absent."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_checkpoint
from safetensors import safe_open

from megadna.config import Config, DataConfig, ModelConfig
from megadna.errors import UserError
from megadna.hf import weights as weights_module
from megadna.hf.checkpoints import CheckpointTensors
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.export import export
from megadna.hf.formats import name_table
from megadna.hf.gate import _judge, compare, real_sequence
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.weights import FolderWeights
from megadna.tokenizer.base import NucleotideTokenizer

MODEL = ModelConfig(num_layers=2, hidden_size=48, num_attention_heads=4, ffn_hidden_size=80)
CONFIG = Config(model=MODEL, data=DataConfig(sequence_length=512))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint and its weights by megatron-core name."""
    return random_checkpoint(tmp_path_factory.mktemp("run") / "step-00000007", CONFIG)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "my model.v1"
    assert export(trained[0], folder).startswith("logits (fp32) differ by")
    return folder


@pytest.fixture(scope="module")
def logits(exported, lambda_ids):
    with torch.no_grad():
        return MegaDnaForMaskedLM.from_pretrained(exported).eval()(lambda_ids).logits


def test_an_export_of_a_useless_model_says_so(trained, tmp_path, caplog):
    checkpoint = tmp_path / "run" / "checkpoints" / trained[0].name
    shutil.copytree(trained[0], checkpoint)
    useless = {"bits_per_base": 2.04, "standard_error": 0.01, "perplexity": 4.1, "accuracy": 0.2}
    evaluation = {"split": "test", "samples": 1, "hidden_bases": 1, "model": useless, "baselines": {}}
    (tmp_path / "run" / "evaluation-test.json").write_text(json.dumps(evaluation))
    export(checkpoint, tmp_path / "model", check=False)
    expected = "On test: no better than guessing (2.0000): the model needs 2.0400 bits per base"
    assert expected in caplog.text and expected in (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "run" / "evaluation-test.json").write_text("{")
    export(checkpoint, tmp_path / "again", check=False)
    assert "evaluation-test.json: not JSON" in caplog.text and "left out of the model card" in caplog.text
    assert "On test" not in (tmp_path / "again" / "README.md").read_text()


STRANGER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("megadna", "megatron"):
            raise ImportError(f"{name} does not exist here")

sys.meta_path.insert(0, Blocker())
import warnings, json, numpy as np, torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

folder, ids_path, out, again = sys.argv[1:]
remote = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **remote)
assert (config.model_type, config.vocab_size, config.max_position_embeddings) == ("rnabert", 16, 512), config
tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
assert tokenizer("ACGTN")["input_ids"] == [2, 5, 7, 6, 8, 10, 3], tokenizer("ACGTN")
assert tokenizer.model_max_length == 512, tokenizer.model_max_length
ids = torch.from_numpy(np.load(ids_path))
with torch.no_grad():
    model = AutoModelForMaskedLM.from_pretrained(folder, **remote).eval()
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"
    logits = model(ids).logits
    batch = tokenizer(["ACGTACGT", "ACG"], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    assert model(**batch).logits.shape == (2, 10, 16)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and output.attentions[1].shape == (3, 4, 128, 128)
    hidden = AutoModel.from_pretrained(folder, **remote).eval()(ids).last_hidden_state
    assert torch.equal(model.cls(hidden), logits)
    for kind, shape in ((AutoModelForSequenceClassification, (3, 4)), (AutoModelForTokenClassification, (3, 128, 4))):
        assert kind.from_pretrained(folder, num_labels=4, **remote).eval()(ids).logits.shape == shape
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    saved = AutoModelForMaskedLM.from_pretrained(again, **remote).eval()
    assert type(saved) is not type(model) and torch.equal(saved(ids).logits, logits)
    assert json.load(open(again + "/config.json"))["model_type"] == "rnabert"
    AutoModelForTokenClassification.from_pretrained(again, **remote)
    assert AutoTokenizer.from_pretrained(again, **remote)("ACGTN") == tokenizer("ACGTN")
    half = AutoModelForMaskedLM.from_pretrained(folder, torch_dtype=torch.bfloat16, **remote).eval()(ids).logits
    assert half.dtype == torch.bfloat16 and (half.float() - logits).std() < 0.05 * logits.std()
gradients = []
for checkpointing in (False, True):
    model.train()
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    gradients.append([parameter.grad.clone() for parameter in model.parameters()])
assert all(torch.equal(*pair) for pair in zip(*gradients))
np.save(out, logits.numpy())
card = open(f"{folder}/README.md").read().split("```python")[1].split("```")[0]
names = {}
exec(card.replace("path/to/this/folder", folder), names)
assert names["probabilities"].shape == (1, 12, 16) and names["inputs"]["input_ids"][0, 5] == tokenizer.mask_token_id
assert not any(name.split(".")[0] in ("megadna", "megatron") for name in sys.modules), "the engine was imported"
"""


def run_as_stranger(python, folder, ids, logits, work):
    """What a user of an export does, by a Python without megadna; the other side of tests/hf too."""
    np.save(work / "ids.npy", ids.numpy())
    arguments = [str(folder), *(str(work / name) for name in ("ids.npy", "logits.npy", "again"))]
    environment = os.environ | {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [python, "-I", "-c", STRANGER, *arguments], capture_output=True, text=True, cwd=work, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "of type" not in result.stderr, result.stderr  # transformers' remark that model_type is not the class's
    difference = np.abs(np.load(work / "logits.npy") - logits.numpy()).max()
    assert difference < 1e-4
    return difference


def test_all_auto_classes_load_it_in_a_python_without_megadna(exported, logits, lambda_ids, tmp_path):
    assert run_as_stranger(sys.executable, exported, lambda_ids, logits, tmp_path) < 1e-6


def test_the_streamed_comparison_sees_what_the_whole_models_compute(trained, exported, lambda_ids, monkeypatch):
    """The gate's megatron states are those of the loaded transformers model, state by state."""
    from megadna.hf.gate import reference_states

    states = list(reference_states(trained[1].__getitem__, CONFIG, NucleotideTokenizer(), lambda_ids, "fp32"))
    with torch.no_grad():
        output = MegaDnaForMaskedLM.from_pretrained(exported).eval()(lambda_ids, output_hidden_states=True)
    assert len(states) == 4 and (states[-1] - output.logits).abs().max() < 1e-5
    for ours, theirs in zip(states, output.hidden_states, strict=False):
        assert (ours - theirs).abs().max() < 1e-5
    assert output.logits.std() > 0.5


def test_files_weights_and_names(exported, trained):
    files = {path.name for path in exported.iterdir()}
    needed = {"README.md", "config.json", "configuration_megadna.py", "model.safetensors", "modeling_megadna.py"}
    assert needed < files and "tokenizer_config.json" in files
    assert list(exported.parent.iterdir()) == [exported]
    with safe_open(exported / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        names = set(stored.keys())
        assert stored.get_tensor("bert.embeddings.word_embeddings.weight").shape == (16, 48)
        query = stored.get_tensor("bert.encoder.layer.1.attention.self.query.weight")
    assert len(names) == 44  # 18 a layer and 8 outside them
    assert not any("decoder" in name or "inv_freq" in name for name in names)
    fused = trained[1]["encoder.layers.1.self_attention.linear_qkv.weight"]
    assert torch.equal(query[12:24], fused[36:48])  # the second head's query follows the first head's q, k, v


def test_shards_have_a_right_index_and_load(trained, exported, lambda_ids, logits, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module, "SHARD_BYTES", 60_000)
    export(trained[0], tmp_path / "sharded", check=False)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors" and len(shards) > 2
    whole = FolderWeights(exported)
    assert index["metadata"]["total_size"] == sum(whole.read(name).nbytes for name in whole.names())
    for path in shards:
        with safe_open(path, "pt") as stored:
            assert {name for name, file in index["weight_map"].items() if file == path.name} == set(stored.keys())
    with torch.no_grad():
        sharded = MegaDnaForMaskedLM.from_pretrained(tmp_path / "sharded").eval()
        assert torch.equal(sharded(lambda_ids).logits, logits)


def test_no_file_says_who_or_where(exported, trained):
    private = [getpass.getuser() + "@", socket.gethostname(), str(exported.parent), str(trained[0].parent), str(ROOT)]
    for path in exported.iterdir():
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            assert not [word for word in [*private, str(Path.home()) + "/"] if word in text], path.name


def test_config_json_is_aido_dnas_and_ours(exported):
    stored = json.loads((exported / "config.json").read_text())
    aido = {
        "add_linear_bias", "architectures", "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob",
        "hidden_size", "initializer_range", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
        "model_type", "normalization_type", "num_attention_heads", "num_hidden_layers", "pad_token_id",
        "position_embedding_type", "rotary_percent", "seq_len_interpolation_factor", "tokenizer_type", "torch_dtype",
        "type_vocab_size", "use_cache", "vocab_size",
    }  # fmt: skip
    assert set(stored) == aido | {"auto_map", "special_token_ids"}
    assert stored["model_type"] == "rnabert" and stored["normalization_type"] == "LayerNorm"
    assert stored["auto_map"].keys() == {
        "AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }  # fmt: skip
    loaded = MegaDnaConfig.from_pretrained(exported)
    for key in stored.keys() - {"torch_dtype", "model_type", "use_cache"}:
        assert getattr(loaded, key) == stored[key], key


def test_an_export_that_does_not_compute_the_same_is_refused(trained, exported):
    """One weight off by 0.01, which a wrong transform of the names would exceed by far."""
    tensors = CheckpointTensors(trained[0], master=True)

    def wrong(name):
        weight = tensors.read(name)
        weight[(0,) * weight.ndim] += 0.01 * (name == "encoder.layers.1.mlp.linear_fc2.weight")
        return weight

    with pytest.raises(UserError, match=r"\(limit 0\.0001\); nothing was written"):
        compare(wrong, CONFIG, name_table("aido", CONFIG), exported)


GOOD = {"hidden": 1e-5, "hidden_scale": 2.0, "logits": 9e-5, "agreement": 1.0, "nll": 1.302, "nll_reference": 1.3}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"logits": 1.1e-4}, "logits"),
        ({"logits": float("nan")}, "logits"),
        ({"hidden": 2.1e-4}, "hidden states"),
        ({"agreement": 0.98}, "most probable"),
        ({"nll": 1.307}, "negative log-likelihood"),
    ],
)
def test_limits_of_the_gate(change, what):
    assert _judge(GOOD).startswith("logits (fp32) differ by 9e-05")
    with pytest.raises(UserError, match=what):
        _judge(GOOD | change)


def test_an_export_that_does_not_load_or_lacks_tensors_is_refused_and_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(export_formats().AUTO_MAP, "AutoModelForMaskedLM", "modeling_megadna.NoSuchClass")
    with pytest.raises(UserError, match=r"cannot load.*NoSuchClass"):
        export(trained[0], tmp_path / "model")
    fewer = Config(model=ModelConfig(num_layers=1, hidden_size=48, num_attention_heads=4, ffn_hidden_size=80))
    monkeypatch.setattr("megadna.hf.export.read_config", lambda path: fewer)
    with pytest.raises(UserError, match=r"unknown tensors: encoder\.layers\.1\."):
        export(trained[0], tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def export_formats():
    from megadna.hf import formats

    return formats


def test_overwrite_replaces_exports_and_nothing_else(trained, exported, tmp_path):
    folder, checkpoint = tmp_path / "model", trained[0]
    shutil.copytree(exported, folder)
    with pytest.raises(UserError, match="model: not empty; choose another --output, or add --overwrite"):
        export(checkpoint, folder, check=False)
    (folder / "evaluation-test.json").write_text("{}")
    (folder / "slides.pdf").write_text("mine")
    with pytest.raises(UserError, match=r"model: contains 1 file that megadna did not write \(slides\.pdf\)"):
        export(checkpoint, folder, check=False, overwrite=True)
    (folder / "slides.pdf").unlink()
    (folder / "megadna.json").rename(tmp_path / "megadna.json")
    with pytest.raises(UserError, match="model: is no export that megadna wrote"):  # a folder with a config.json
        export(checkpoint, folder, check=False, overwrite=True)
    (tmp_path / "megadna.json").rename(folder / "megadna.json")
    export(checkpoint, folder, check=False, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}
    with pytest.raises(UserError, match="is the output"):
        export(checkpoint, checkpoint, check=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_sequence_of_the_gate_is_phage_lambda(lambda_genome):
    tokenizer = NucleotideTokenizer()
    ids, mask, labels = real_sequence(tokenizer, 4000)
    assert ids.shape == (2, 512) and tokenizer.decode(labels[1, 1:-1].numpy()) == lambda_genome[510:1020]
    assert (ids[mask] == tokenizer.mask_id).all() and torch.equal(ids[~mask], labels[~mask]) and mask.sum() == 2 * 73


def test_the_travelling_files_import_torch_and_transformers_only(exported):
    for name in ("modeling_megadna.py", "configuration_megadna.py"):
        imports = [
            line.split()[1] for line in (exported / name).read_text().splitlines() if line[:5] in ("impor", "from ")
        ]
        allowed = ("torch", "transformers", "math", "typing", ".configuration_megadna")
        assert imports and all(module.startswith(allowed) for module in imports), imports
