"""ln p of hidden and shown bases beside loops that a reader can check."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import kmer_folder, megadna_folder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadna.downstream.masked_bases import MaskedBases
from megadna.errors import UserError

RNG = np.random.default_rng(3)
WINDOWS = ["".join(RNG.choice(list("ACGT"), size)) for size in (31, 40, 31)]
HIDDEN = [[0, 17], [20], [5, 6, 30]]


def _logits(folder, words: list[str], masked: set[int]) -> torch.Tensor:
    """[tokens, V] of one sequence, [CLS] and [SEP] left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = tokenizer.convert_tokens_to_ids(words)
    ids = [tokenizer.mask_token_id if at in masked else number for at, number in enumerate(ids)]
    row = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    with torch.inference_mode():
        return model(input_ids=torch.tensor([row])).logits[0, 1:-1], tokenizer


@pytest.mark.parametrize("shown", [False, True])
def test_nucleotides(tmp_path, shown):
    folder = megadna_folder(tmp_path)
    model = MaskedBases(folder, batch_tokens=80)
    found = model.shown(WINDOWS) if shown else model.hidden(WINDOWS, HIDDEN)
    for bases, hidden, log_p_H4 in zip(WINDOWS, HIDDEN, found, strict=True):
        positions = range(len(bases)) if shown else hidden
        logits, tokenizer = _logits(folder, list(bases), set() if shown else set(hidden))
        right = logits[list(positions)][:, tokenizer.convert_tokens_to_ids(list("ACGT"))].log_softmax(-1)
        np.testing.assert_allclose(log_p_H4, right, atol=2e-5)


@pytest.mark.parametrize("shown", [False, True])
def test_overlapping_kmers(tmp_path, shown):
    """Single hidden bases: the mean of p over the three k-mers that cover the base."""
    folder = kmer_folder(tmp_path)
    model = MaskedBases(folder)
    hidden = [[17], [20], [30]]
    found = model.shown(WINDOWS) if shown else model.hidden(WINDOWS, hidden)
    for bases, (position,), log_p_H4 in zip(WINDOWS, hidden, found, strict=True):
        words = [bases[at : at + 3] for at in range(len(bases) - 2)]
        over = [at for at in range(position - 2, position + 1) if 0 <= at < len(words)]
        logits, tokenizer = _logits(folder, words, set() if shown else set(over))
        p_4 = np.zeros(4)
        for at in over:
            texts = [words[at][: position - at] + base + words[at][position - at + 1 :] for base in "ACGT"]
            p_4 += logits[at][tokenizer.convert_tokens_to_ids(texts)].softmax(-1).numpy() / len(over)
        np.testing.assert_allclose(log_p_H4[position if shown else 0], np.log(p_4), atol=2e-5)


def test_shown_next_to_n(tmp_path):
    """The k-mers over an N are unknown tokens: its neighbours are scored by the others, a base between two by none."""
    log_p_L4 = MaskedBases(kmer_folder(tmp_path)).shown(["ACGTACNANACGTA"])[0]
    assert np.flatnonzero(np.isnan(log_p_L4[:, 0])).tolist() == [6, 7, 8]
    np.testing.assert_allclose(np.exp(log_p_L4[:6]).sum(axis=1), 1, rtol=1e-5)


def test_a_context_shorter_than_what_tells_the_tokenizer(tmp_path):
    short, long = (MaskedBases(megadna_folder(tmp_path / str(size), size)) for size in (34, 128))
    assert short.max_bases == 32
    np.testing.assert_allclose(short.hidden(WINDOWS[:1], [[3]]), long.hidden(WINDOWS[:1], [[3]]), atol=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, wrong):
    folder = megadna_folder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("1.attention.output.dense.weight"))
    weights[name][3, 4] = wrong
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"weights {name} have NaN or infinity"):
        MaskedBases(folder)
