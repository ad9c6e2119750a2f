"""DNA as bytes: which ones a sequence may contain, their codes, complements, and how a dataset stores them.

A base is one ASCII byte, upper or lower case (lower case = soft-masked repeat). Codes: 0..3 = A, C, G, T; 4 = anything
else. All tables are over the 256 byte values.
"""

import numpy as np
from numpy.typing import NDArray

Dna = NDArray[np.uint8]

BASES = "ACGT"
IUPAC_AMBIGUOUS = "RYSWKMBDHVN"
OTHER = 4
GAPS = b"-*."
SPACES = b" \t\v\f"
PROTEIN_ONLY = b"EFILPQZXJO"


def table(entries: dict[str, int], default: int, *, dtype: np.typing.DTypeLike = np.uint8) -> NDArray:
    """Look-up table [256] that treats both cases of a character alike."""
    result: NDArray = np.full(256, default, dtype=dtype)
    for base, value in entries.items():
        result[[ord(base), ord(base.lower())]] = value
    return result


def _complement_table() -> Dna:
    result = np.arange(256, dtype=np.uint8)
    for left, right in zip("ATUCGRYKMBVDH", "TAAGCYRMKVBHD", strict=True):  # S, W and N are their own complements
        result[[ord(left), ord(left.lower())]] = [ord(right), ord(right.lower())]
    return result


def _storage_table() -> bytes:
    stored = bytearray(range(256))
    for gap in GAPS:
        stored[gap] = ord("N")
    stored[ord("U")], stored[ord("u")] = ord("T"), ord("t")
    return bytes(stored)


BASE_CODES = table({base: code for code, base in enumerate(BASES)}, OTHER)
COMPLEMENT = _complement_table()
STORED = _storage_table()
"""256-byte translation from input to disk: U becomes T; gap characters become N, so that coordinates do not move."""
LEGAL = table(dict.fromkeys(BASES + IUPAC_AMBIGUOUS + "U" + GAPS.decode(), True), False, dtype=bool)
_CODE_BASES = np.frombuffer(b"ACGTN", dtype=np.uint8)


def dna_of(sequence: str) -> Dna:
    """The bytes of a sequence; a character outside ASCII becomes `?`, which every tokenizer maps to [UNK]."""
    return np.frombuffer(sequence.encode("ascii", errors="replace"), dtype=np.uint8)


def base_codes(bases: Dna) -> NDArray[np.uint8]:
    """Codes 0..3 of A, C, G, T in either case, 4 of everything else."""
    return BASE_CODES.take(bases)


def code_dna(codes: NDArray[np.uint8]) -> Dna:
    """Upper-case bases of codes; 4 gives N."""
    return _CODE_BASES.take(codes)


def reverse_complement(bases: Dna) -> Dna:
    """The other strand read 5' to 3', case and IUPAC codes kept."""
    return COMPLEMENT.take(bases[::-1])
