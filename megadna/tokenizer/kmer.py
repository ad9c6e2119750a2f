"""k bases a token, overlapping (stride 1, as DNABERT) or not (stride k, as Nucleotide Transformer).

Three vocabulary layouts: `dnabert` (5 special tokens; A, T, C, G), `bionemo` (5; A, C, G, T), `multimolecule` (6; A,
C, G, T). Ids are closed-form: first + sum of code(base i) * 4^(k-1-i) in the layout's order of bases. A k-mer that
touches anything but A, C, G, T (either case) is the unknown token. Bases after the last whole k-mer give no token.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import BASES, OTHER, Dna, table
from megadna.tokenizer.base import Tokenizer

_BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# multimolecule has no separate sep: <eos> closes a sequence. Its <null> row is never used.
_MULTIMOLECULE_SPECIALS = {
    "pad": "<pad>", "cls": "<cls>", "sep": "<eos>", "unk": "<unk>", "mask": "<mask>", "null": "<null>",
}  # fmt: skip
LAYOUTS = {
    "dnabert": ("ATCG", _BERT_SPECIALS),
    "bionemo": ("ACGT", _BERT_SPECIALS),
    "multimolecule": ("ACGT", _MULTIMOLECULE_SPECIALS),
}


class KmerTokenizer(Tokenizer):
    """Every word of k bases is one token."""

    kind = "kmer"

    def __init__(self, k: int, *, stride: int, layout: str) -> None:
        assert 1 <= k <= 8 and stride in (1, k), (k, stride)
        self.bases_per_token, self.stride, self.layout = k, stride, layout
        self.base_order, specials = LAYOUTS[layout]
        self.special_tokens = list(specials.values())
        ids = {name: number for number, name in enumerate(specials)}
        self.pad_id, self.unk_id, self.mask_id = ids["pad"], ids["unk"], ids["mask"]
        self.cls_id, self.sep_id = ids["cls"], ids["sep"]
        self.first = len(specials)
        self.nucleotide_ids = self.first + np.arange(4**k)
        if k == 1:
            self.base_ids = self.first + np.array([self.base_order.index(base) for base in BASES])
        self._dtype = np.min_scalar_type(self.first + 4**k - 1)
        codes = {base: code for code, base in enumerate(self.base_order)}
        self._codes = table(codes, OTHER, dtype=self._dtype)
        self._bases = np.frombuffer(self.base_order.encode(), dtype=np.uint8)

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return self.special_tokens + ["".join(word) for word in product(self.base_order, repeat=self.bases_per_token)]

    @property
    def vocab_size(self) -> int:
        """Special tokens and 4^k words."""
        return self.first + 4**self.bases_per_token

    def encode(self, bases: Dna) -> NDArray[np.unsignedinteger]:
        """Ids [m] of DNA [n]: m = n - k + 1 if overlapping, n // k if not."""
        codes = self._codes.take(bases)
        known = codes < OTHER
        starts = [self._strided(codes, base) for base in range(self.bases_per_token)]
        ids = starts[0].astype(self._dtype)
        for column in starts[1:]:
            ids <<= 2
            ids += column
        ids += self._dtype.type(self.first)
        if not known.all():
            for base in range(self.bases_per_token):
                ids[~self._strided(known, base)] = self.unk_id
        return ids

    def _strided(self, values: NDArray, base: int) -> NDArray:
        """Values at base number `base` of every token."""
        count = self.num_tokens(len(values))
        return values[base : base + (count - 1) * self.stride + 1 : self.stride] if count else values[:0]

    def decode(self, ids: NDArray) -> str:
        """The sequence under the k-mers; a base that no k-mer shows is N. `ids` hold no [CLS] and [SEP]."""
        ids = np.asarray(ids, dtype=np.int64)
        bases = np.full(self.num_bases(len(ids)), ord("N"), dtype=np.uint8)
        known = np.flatnonzero(ids >= self.first)
        words = ids[known] - self.first
        for base in range(self.bases_per_token):
            codes = words >> 2 * (self.bases_per_token - 1 - base) & 3
            bases[known * self.stride + base] = self._bases[codes]
        return bases.tobytes().decode()
