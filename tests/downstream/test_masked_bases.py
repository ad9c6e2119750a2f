"""ln p of hidden and shown bases beside loops that a reader can check."""

import numpy as np
import pytest
import torch
from toy_models import kmer_folder, megadna_folder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadna.downstream.masked_bases import MaskedBases

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
