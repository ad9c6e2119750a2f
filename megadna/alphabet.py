"""Letters of DNA as tables over the 256 byte values.

A letter is one ASCII byte, upper or lower case (lower case = soft-masked repeat). Codes: 0..3 = A, C, G, T; 4 =
anything else.

Which bytes of a FASTA sequence line mean what, and how a dataset stores them.
"""

import numpy as np
from numpy.typing import NDArray

Letters = NDArray[np.uint8]

BASES = "ACGT"
IUPAC_AMBIGUOUS = "RYSWKMBDHVN"
OTHER = 4


def table(entries: dict[str, int], default: int, *, dtype: np.typing.DTypeLike = np.uint8) -> NDArray:
    """Look-up table [256] that treats both cases of a letter alike."""
    result: NDArray = np.full(256, default, dtype=dtype)
    for letter, value in entries.items():
        result[[ord(letter), ord(letter.lower())]] = value
    return result


def _complement_table() -> Letters:
    result = np.arange(256, dtype=np.uint8)
    for left, right in zip("ATCGRYKMBVDH", "TAGCYRMKVBHD", strict=True):  # S, W and N are their own complements
        result[[ord(left), ord(left.lower())]] = [ord(right), ord(right.lower())]
    result[[ord("U"), ord("u")]] = [ord("A"), ord("a")]
    return result


BASE_CODES = table({base: code for code, base in enumerate(BASES)}, OTHER)
COMPLEMENT = _complement_table()
_CODE_LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)


def letters_of(sequence: str) -> Letters:
    """The bytes of a sequence; a character outside ASCII becomes `?`, which every tokenizer maps to [UNK]."""
    return np.frombuffer(sequence.encode("ascii", errors="replace"), dtype=np.uint8)


def base_codes(letters: Letters) -> NDArray[np.uint8]:
    """Codes 0..3 of A, C, G, T in either case, 4 of everything else."""
    return BASE_CODES.take(letters)


def code_letters(codes: NDArray[np.uint8]) -> Letters:
    """Upper-case letters of codes; 4 gives N."""
    return _CODE_LETTERS.take(codes)


def reverse_complement(letters: Letters) -> Letters:
    """The other strand read 5' to 3', case and IUPAC codes kept."""
    return COMPLEMENT.take(letters[::-1])


STORED_BASES = b"ACGTN"
IUPAC = b"RYKMSWBDHV"
URACIL = b"U"
GAPS = b"-*."
SPACES = b" \t\v\f"

PROTEIN_ONLY = b"EFILPQZXJO"


def _both_cases(letters: bytes) -> bytes:
    return letters + letters.lower()


LEGAL = np.zeros(256, bool)
LEGAL[list(_both_cases(STORED_BASES + IUPAC + URACIL) + GAPS)] = True


def _storage_table() -> bytes:
    stored = bytearray(range(256))
    for gap in GAPS:
        stored[gap] = ord("N")
    stored[ord("U")], stored[ord("u")] = ord("T"), ord("t")
    return bytes(stored)


STORED = _storage_table()
"""256-byte translation from input to disk: U becomes T; gap characters become N, so that coordinates do not move."""
