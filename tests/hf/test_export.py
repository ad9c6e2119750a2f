"""An export loads where neither megadna nor megatron can be imported, computes the same, and is whole or absent."""

import getpass
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from megadna.config import Config, ModelConfig
from megadna.errors import UserError
from megadna.hf import export as export_module
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.export import compare, config_json, export, replaced_folder
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.names import EncoderShape, from_hf, mcore_names
from megadna.tokenizer.nucleotide import NucleotideTokenizer

MODEL = ModelConfig(num_layers=2, hidden_size=48, num_attention_heads=4, ffn_hidden_size=80)
CONFIG = Config(model=MODEL)
TOKENIZER = NucleotideTokenizer()
SHAPE = EncoderShape(num_layers=2, num_attention_heads=4, vocab_size=16, padded_vocab_size=32)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(lambda_ids):
    """A model with weights far from zero: its tensors by megatron-core name, and its logits on phage lambda."""
    torch.manual_seed(11)
    model = MegaDnaForMaskedLM(MegaDnaConfig(**config_json(CONFIG, TOKENIZER, max_length=512))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        logits = model(lambda_ids).logits
    weights = dict(model.named_parameters())
    return {name: from_hf(name, weights, SHAPE).detach() for name in mcore_names(2)}, logits


@pytest.fixture
def write(trained, lambda_ids, tmp_path):
    """Export to tmp_path/model; keyword arguments replace what the test wants wrong."""

    def call(folder=tmp_path / "model", **changes):
        tensors, logits = changes.get("tensors", trained[0]), changes.get("logits", trained[1])
        return export(
            tensors, logits, lambda_ids, CONFIG, TOKENIZER, folder, max_length=512, overwrite="overwrite" in changes
        )

    return call


@pytest.fixture(scope="module")
def exported(trained, lambda_ids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "my model.v1"
    difference = export(trained[0], trained[1], lambda_ids, CONFIG, TOKENIZER, folder, max_length=512)
    assert difference < 1e-6
    return folder


STRANGER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("megadna", "megatron"):
            raise ImportError(f"{name} does not exist here")

sys.meta_path.insert(0, Blocker())
import numpy as np, torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

folder, ids_path, out, again = sys.argv[1:]
remote = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **remote)
assert (config.model_type, config.vocab_size, config.max_position_embeddings) == ("megadna", 16, 512), config
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
    hidden = AutoModel.from_pretrained(folder, **remote).eval()(ids).last_hidden_state
    assert torch.equal(model.cls(hidden), logits)
    for kind, shape in ((AutoModelForSequenceClassification, (3, 4)), (AutoModelForTokenClassification, (3, 128, 4))):
        assert kind.from_pretrained(folder, num_labels=4, **remote).eval()(ids).logits.shape == shape
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    saved = AutoModelForMaskedLM.from_pretrained(again, **remote).eval()
    assert type(saved) is not type(model) and torch.equal(saved(ids).logits, logits)
    AutoModelForTokenClassification.from_pretrained(again, **remote)
    assert AutoTokenizer.from_pretrained(again, **remote)("ACGTN") == tokenizer("ACGTN")
np.save(out, logits.numpy())
card = open(f"{folder}/README.md").read().split("```python")[1].split("```")[0]
names = {}
exec(card.replace("path/to/this/folder", folder), names)
assert names["probabilities"].shape == (1, 12, 16) and names["inputs"]["input_ids"][0, 5] == tokenizer.mask_token_id
assert not any(name.split(".")[0] in ("megadna", "megatron") for name in sys.modules), "the engine was imported"
"""


def test_all_auto_classes_load_it_in_a_python_without_megadna(exported, trained, lambda_ids, tmp_path):
    np.save(tmp_path / "ids.npy", lambda_ids.numpy())
    arguments = [str(exported), *(str(tmp_path / name) for name in ("ids.npy", "logits.npy", "again"))]
    result = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert np.abs(np.load(tmp_path / "logits.npy") - trained[1].numpy()).max() < 1e-6


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
    fused = trained[0]["encoder.layers.1.self_attention.linear_qkv.weight"]
    assert torch.equal(query[12:24], fused[36:48])  # the second head's query follows the first head's q, k, v


def test_no_file_says_who_or_where(exported):
    private = [getpass.getuser() + "@", socket.gethostname(), str(exported.parent), str(ROOT), str(Path.home()) + "/"]
    for path in exported.iterdir():
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            assert not [word for word in private if word in text], path.name
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "45,984 parameters" in card


def test_config_json_holds_what_the_config_says(exported):
    stored = json.loads((exported / "config.json").read_text())
    loaded = MegaDnaConfig.from_pretrained(exported)
    assert (stored["num_hidden_layers"], stored["intermediate_size"], stored["layer_norm_eps"]) == (2, 80, 1e-5)
    assert stored["auto_map"].keys() == {
        "AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }  # fmt: skip
    for key in stored.keys() - {"torch_dtype"}:
        assert getattr(loaded, key) == stored[key], key


def test_logits_that_differ_are_refused_and_leave_nothing(write, trained, tmp_path):
    wrong = trained[1].clone()
    wrong[1, 77, 6] += 2e-4
    with pytest.raises(UserError, match=r"differ .* by 0\.0002 \(limit 0\.0001\)"):
        write(logits=wrong)
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == []


def test_comparison_ignores_padding_columns_and_refuses_nan(trained):
    logits = trained[1]
    padded = torch.nn.functional.pad(logits, (0, 16), value=9.0)
    assert compare(logits + 5e-5, padded) == pytest.approx(5e-5, rel=0.02)
    broken = logits.clone()
    broken[0, 0, 0] = float("nan")
    for pair in ((broken, logits), (logits, broken)):
        with pytest.raises(UserError, match="by nan"):
            compare(*pair)


def test_an_export_that_does_not_load_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.setitem(export_module.AUTO_MAP, "AutoModelForMaskedLM", "modeling_megadna.NoSuchClass")
    with pytest.raises(UserError, match=r"cannot load the export.*NoSuchClass"):
        write()
    assert not (tmp_path / "model").exists()


def test_missing_and_unknown_tensors_are_refused(write, trained, tmp_path):
    fewer = {name: tensor for name, tensor in trained[0].items() if name != "lm_head.dense.bias"}
    with pytest.raises(UserError, match=r"the checkpoint lacks: lm_head\.dense\.bias"):
        write(tensors=fewer)
    with pytest.raises(UserError, match=r"unknown tensors: encoder\.layers\.2\.extra"):
        write(tensors=trained[0] | {"encoder.layers.2.extra": torch.zeros(1)})
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_is_kept_unless_it_is_an_export_to_overwrite(tmp_path):
    def fill(folder, text, **options):
        with replaced_folder(folder, overwrite=bool(options)) as temporary:
            (temporary / "config.json").write_text(text)

    fill(tmp_path / "deep" / "model", "first")
    with pytest.raises(UserError, match="not empty"):
        fill(tmp_path / "deep" / "model", "second")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "deep" / "model", overwrite=True):
        raise KeyError
    assert (tmp_path / "deep" / "model" / "config.json").read_text() == "first"
    fill(tmp_path / "deep" / "model", "second", overwrite=True)
    assert (tmp_path / "deep" / "model" / "config.json").read_text() == "second"
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "model"]
    with pytest.raises(UserError, match="not an export"):
        fill(tmp_path, "third", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        fill(tmp_path / "deep" / "model" / "config.json", "third", overwrite=True)


def test_the_travelling_files_import_torch_and_transformers_only(exported):
    for name in ("modeling_megadna.py", "configuration_megadna.py"):
        imports = [
            line.split()[1] for line in (exported / name).read_text().splitlines() if line[:5] in ("impor", "from ")
        ]
        allowed = ("torch", "transformers", "math", "typing", ".configuration_megadna")
        assert imports and all(module.startswith(allowed) for module in imports), imports
