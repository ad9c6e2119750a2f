"""Local context by an independent loop: rows of the tables, the convolution and its gradients, borders of sequences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megadna.config import Config, ModelConfig, TokenizerConfig
from megadna.errors import UserError
from megadna.model.local_context import CONTEXTS, Convolve, _same_sequence, context_rows
from megadna.tokenizer.base import NucleotideTokenizer, context_symbols

TOKENS = ["[CLS]", "A", "C", "[MASK]", "N", "G", "T", "A", "A", "[SEP]", "[CLS]", "C", "[SEP]", "[PAD]"]


def symbols_by_hand(tokens):
    names = {"A": 0, "C": 1, "G": 2, "T": 3, "[CLS]": 5, "[SEP]": 5, "[PAD]": 5}
    return [names.get(token, 4) for token in tokens]


def test_symbols_are_those_of_the_vocabulary():
    tokenizer = NucleotideTokenizer()
    symbols = context_symbols(tokenizer)
    assert [symbols[tokenizer.tokens().index(token)] for token in TOKENS] == symbols_by_hand(TOKENS)


def test_rows_are_the_symbols_as_digits_and_stop_at_an_edge():
    symbols = symbols_by_hand(TOKENS)
    found = context_rows(torch.tensor([symbols]))

    def at(position, offset):
        step = np.sign(offset)
        for distance in range(1, abs(offset) + 1):
            where = position + step * distance
            if not 0 <= where < len(symbols) or symbols[where] == 5:
                return 5
        return symbols[position + offset]

    for name, offsets in CONTEXTS.items():
        expected = [int("".join(str(at(i, offset)) for offset in offsets), 6) for i in range(len(symbols))]
        assert found[name][0].tolist() == expected


@pytest.mark.parametrize("lengths", [None, [7, 13, 4, 16]])
def test_the_convolution_equals_a_loop_with_its_gradients(lengths):
    """Two rows of 20 tokens; the third sequence of the packed ones ends the first row."""
    torch.manual_seed(0)
    rows, length, width = 2, 20, 3
    hidden = torch.randn(length, rows, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, width, dtype=torch.float64, requires_grad=True)
    numbers = torch.arange(rows).repeat_interleave(length)
    same = None
    if lengths is not None:
        lengths = [7, 13, 4, 16]
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
        segments = PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
        same = _same_sequence(segments, hidden, 1, 0)
    numbers = numbers.view(rows, length)
    expected = torch.zeros_like(hidden)
    for row in range(rows):
        for position in range(length):
            total = torch.zeros(width, dtype=torch.float64)
            for tap in range(31):
                where = position + tap - 15
                if 0 <= where < length and numbers[row, where] == numbers[row, position]:
                    total = total + weight[tap] * hidden[where, row]
            expected[position, row] = total
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, 0, 15, 15))
    found = Convolve.apply(padded, weight, same)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    wanted = torch.autograd.grad((expected * probe).sum(), [hidden, weight])
    # The weight's gradient is summed in fp32.
    for one, other in zip(torch.autograd.grad((found * probe).sum(), [hidden, weight]), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_kmers_are_refused():
    config = Config(model=ModelConfig(local_context="both"))
    with pytest.raises(UserError, match=r"local_context both needs tokenizer.kind nucleotide, got kmer; set"):
        replace(config, tokenizer=TokenizerConfig(kind="kmer"))
