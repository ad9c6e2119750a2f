"""One token a base: the vocabulary of AIDO.DNA, 16 ids in its order (reference: the AIDO.DNA model card's vocab.txt).

Letters are upper-cased, IUPAC ambiguity codes become N, U keeps its own id; any other byte is [UNK].
"""

import numpy as np
from numpy.typing import NDArray

from megadna.tokenizer.alphabet import BASES, IUPAC_AMBIGUOUS, Letters, table
from megadna.tokenizer.base import Tokenizer

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
        entries = {letter: TOKENS.index(letter) for letter in "ACGTUN"}
        self._table = table(dict.fromkeys(IUPAC_AMBIGUOUS, self.n_id) | entries, self.unk_id)

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return list(TOKENS)

    def encode(self, letters: Letters) -> NDArray[np.uint8]:
        """Ids [n] of letters [n]: one look-up in a table of 256."""
        return self._table.take(letters)

    def decode(self, ids: NDArray) -> str:
        """Letters joined; special tokens appear as their text."""
        return "".join(TOKENS[i] for i in ids)
