"""What every tokenizer offers: DNA -> ids, without special tokens, and back.

A tokenizer holds tables only, so loader processes share it for free. Special tokens are added where batches are made:
[CLS] x [SEP].

One token a base: the vocabulary of AIDO.DNA, 16 ids in its order (reference: the AIDO.DNA model card's vocab.txt).

Bases are upper-cased, IUPAC ambiguity codes become N, U keeps its own id; any other byte is [UNK].
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import BASES, IUPAC_AMBIGUOUS, Dna, table

NUM_SPECIAL = 2
"""Special tokens of a row: [CLS] before, [SEP] after."""


class Tokenizer(ABC):
    """Nucleotides to ids of 0..vocab_size-1 and back."""

    kind: str
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    unk_id: int
    base_ids: NDArray[np.int64]
    """Ids of A, C, G, T in that order; only where a token is one base."""
    nucleotide_ids: NDArray[np.int64]
    """Ids made of A, C, G, T alone, ascending: what a masked token may be replaced by."""
    n_id: int | None = None
    """Id of N where N has one of its own."""
    bases_per_token: int = 1
    """Bases that one token covers (k)."""
    stride: int = 1
    """Bases from the start of one token to the start of the next."""

    @abstractmethod
    def tokens(self) -> list[str]:
        """Text of every id, in id order."""

    @abstractmethod
    def encode(self, bases: Dna) -> NDArray[np.unsignedinteger]:
        """Ids [m] of DNA [n], no special tokens; any byte is allowed."""

    @abstractmethod
    def decode(self, ids: NDArray) -> str:
        """The sequence that ids spell; special tokens appear as their text."""

    def spans(self, ids: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First base, and one past the last base, under each of the ids [m] of a sequence."""
        starts = np.arange(len(ids)) * self.stride
        return starts, starts + self.bases_per_token

    @property
    def vocab_size(self) -> int:
        """Rows that the vocabulary really has (no padding)."""
        return len(self.tokens())

    def num_tokens(self, num_bases: int) -> int:
        """Tokens of `num_bases` bases, special tokens not counted."""
        return max(0, (num_bases - self.bases_per_token) // self.stride + 1)

    def num_bases(self, num_tokens: int) -> int:
        """Bases of `num_tokens` tokens."""
        return self.stride * (num_tokens - 1) + self.bases_per_token if num_tokens > 0 else 0


HIDDEN, EDGE = 4, 5


def context_symbols(tokenizer: Tokenizer) -> list[int]:
    """What each token id is to the context tables of the encoder (model/local_context.py), where a token is one base:
    0 to 3 for A, C, G, T, EDGE for [CLS], [SEP] and [PAD], HIDDEN for [MASK], N and all else."""
    symbols = [HIDDEN] * tokenizer.vocab_size
    for symbol, number in enumerate(tokenizer.base_ids.tolist()):
        symbols[number] = symbol
    for number in (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id):
        symbols[number] = EDGE
    return symbols


TOKENS = [
    "[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "A", "G", "C", "T", "U", "N", "[BOS]", "[EOS]",
    "[UNUSED1]", "[UNUSED2]", "[UNUSED3]",
]  # fmt: skip


class NucleotideTokenizer(Tokenizer):
    """AIDO.DNA's vocabulary; `base_ids` are the ids of A, C, G, T in that order."""

    kind = "nucleotide"
    pad_id, mask_id, cls_id, sep_id, unk_id = range(5)
    n_id = TOKENS.index("N")

    def __init__(self) -> None:
        self.base_ids = np.array([TOKENS.index(base) for base in BASES])
        self.nucleotide_ids = np.sort(self.base_ids)
        entries = {base: TOKENS.index(base) for base in "ACGTUN"}
        self._table = table(dict.fromkeys(IUPAC_AMBIGUOUS, self.n_id) | entries, self.unk_id)

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return list(TOKENS)

    def encode(self, bases: Dna) -> NDArray[np.uint8]:
        """Ids [n] of DNA [n]: one look-up in a table of 256."""
        return self._table.take(bases)

    def decode(self, ids: NDArray) -> str:
        """Bases joined; special tokens appear as their text."""
        return "".join(TOKENS[i] for i in ids)
