"""One definition of mean and maximum: embed, the heads, the documented program and a loop give the same vectors.

Folders of the earlier definition compute what they were trained with."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from documented import blocks_of
from toy_models import kmer_folder, megadna_folder

from megadna import embed, predict
from megadna.config import Config
from megadna.downstream.encoder import load_tokenizer
from megadna.downstream.examples import Collator, examples_of
from megadna.downstream.modeling_dna_task import DnaTaskConfig
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.task_training import build_model, save_model
from megadna.downstream.tasks import Target, add_targets
from megadna.downstream.trust import check_folder
from megadna.hf.formats import config_json
from megadna.hf.modeling_megadna import MegaDnaForSequenceClassification

EARLIER = Path(__file__).parents[1] / "data" / "earlier_code"
TARGET = Target("classification", ["0", "1"])


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    with gzip.open(Path(__file__).parents[1] / "data" / "lambda.fa.gz", "rt") as lines:
        text = "".join(line.strip() for line in lines if not line.startswith(">"))
    return [text[100:160], text[300:323], "ACGNNT" + text[500:541]]  # of three lengths: two are padded


@pytest.fixture(scope="module", params=["nucleotide", "kmer"])
def folder(request, tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("pooling") / "model"
    return str({"nucleotide": megadna_folder, "kmer": kmer_folder}[request.param](home))


def by_loop(folder: str, sequences: list[str], pooling: str, *, special: bool) -> np.ndarray:
    """Token by token, a sequence at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    found = []
    for sequence in sequences:
        ids = torch.tensor([tokenizer(sequence)["input_ids"]])
        with torch.no_grad():
            states = list(model(input_ids=ids).last_hidden_state[0].double().numpy())
        states = states if special else states[1:-1]
        total = states[0].copy()
        for state in states[1:]:
            total = np.maximum(total, state) if pooling == "max" else total + state
        found.append(total if pooling == "max" else total / len(states))
    return np.stack(found)


def task_folder(encoder: str, folder: Path, sequences: list[str], pooling: str):
    """A fine-tuned folder (with its random head), its model, and a padded batch of the sequences."""
    options = FinetuneOptions(model=encoder, pooling=pooling)
    tokenizer = load_tokenizer(encoder, trust_remote_code=False)
    torch.manual_seed(4)
    model = build_model(options, TARGET, tokenizer, None).eval()
    save_model(model, model, tokenizer, folder)
    table = add_targets(pd.DataFrame({"sequence": sequences, "label_0": ["0", "1", "0"]}), TARGET, "table")
    return model, Collator(tokenizer.pad_id, TARGET)(examples_of(table, tokenizer, options))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_embed_and_the_heads_pool_the_same_tokens(folder, pooling, sequences, tmp_path):
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
    expected = by_loop(folder, sequences, pooling, special=False)
    np.testing.assert_allclose(np.stack(embed(folder, path, pooling=pooling)["embedding"]), expected, atol=1e-6)
    model, batch = task_folder(folder, tmp_path / "task", sequences, pooling)
    assert json.loads((tmp_path / "task" / "config.json").read_text())["pool_special_tokens"] is False
    logits = predict(tmp_path / "task", path)[["p_0", "p_1"]].to_numpy()
    head = model.head
    with torch.no_grad():
        wanted = head(torch.from_numpy(expected).float()).softmax(-1).numpy()
        model.head = torch.nn.Identity()
        np.testing.assert_allclose(model(**batch | {"labels": None}).logits, expected, atol=1e-6)
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    assert np.abs(by_loop(folder, sequences, pooling, special=True) - expected).max() > 0.01


def test_the_documented_program_and_an_exported_head_give_what_embed_writes(sequences, tmp_path, monkeypatch):
    folder = megadna_folder(tmp_path / "model")
    expected = by_loop(str(folder), sequences, "mean", special=False)
    ((_, program),) = [block for block in blocks_of("huggingface.md") if block[0] == "python"]
    assert '["ACGT[MASK]GGCTA", "ACGTAC"]' in program
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(program.replace('["ACGT[MASK]GGCTA", "ACGTAC"]', repr(sequences)), found)
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    stated = config_json("aido", Config(), max_length=128, dtype="float32")["special_token_ids"]
    tokenizer = found["tokenizer"]
    assert stated == [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    head = MegaDnaForSequenceClassification.from_pretrained(folder, special_token_ids=stated).eval()
    head.classifier = torch.nn.Identity()
    with torch.no_grad():
        np.testing.assert_allclose(head(**found["inputs"]).logits, expected, atol=1e-6)
        with pytest.raises(ValueError, match="only input_ids show"):
            head(inputs_embeds=torch.zeros(1, 4, 32))
        head.config.special_token_ids = None  # a folder from before
        wanted = by_loop(str(folder), sequences, "mean", special=True)
        np.testing.assert_allclose(head(**found["inputs"]).logits, wanted, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_folder_of_the_earlier_definition_computes_what_it_was_trained_with(pooling, sequences, tmp_path):
    encoder = str(megadna_folder(tmp_path / "encoder"))
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
    model, _ = task_folder(encoder, tmp_path / "task", sequences, pooling)
    pooled = torch.from_numpy(by_loop(encoder, sequences, pooling, special=True)).float()
    with torch.no_grad():
        expected = model.head(pooled).softmax(-1).numpy()
    config = json.loads((tmp_path / "task" / "config.json").read_text())
    del config["pool_special_tokens"]
    (tmp_path / "task" / "config.json").write_text(json.dumps(config))
    assert DnaTaskConfig().pool_special_tokens
    np.testing.assert_allclose(predict(tmp_path / "task", path)[["p_0", "p_1"]], expected, atol=1e-6)
    added = "from .modeling_megadna import MegaDnaModel as Encoder\nfrom .configuration_megadna import MegaDnaConfig as"
    for packed in EARLIER.glob("*.gz"):
        text = gzip.decompress(packed.read_bytes()).decode()
        line = "# A saved copy imports the encoder's class and configuration here.\n"
        (tmp_path / "task" / packed.stem).write_text(text.replace(line, f"{line}{added} EncoderConfig\n"))
    (tmp_path / "task").rename(tmp_path / "old")  # transformers keeps code by folder
    assert check_folder(tmp_path / "old")
    np.testing.assert_allclose(predict(tmp_path / "old", path)[["p_0", "p_1"]], expected, atol=1e-6)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "old", trust_remote_code=True)
    assert not hasattr(loaded.config, "pool_special_tokens")
