"""Which bytes of a FASTA sequence line mean what, and how a dataset stores them."""

import numpy as np

BASES = b"ACGTN"
IUPAC = b"RYKMSWBDHV"
URACIL = b"U"
GAPS = b"-*."
SPACES = b" \t\v\f"

PROTEIN_ONLY = b"EFILPQZXJO"


def _both_cases(letters: bytes) -> bytes:
    return letters + letters.lower()


LEGAL = np.zeros(256, bool)
LEGAL[list(_both_cases(BASES + IUPAC + URACIL) + GAPS)] = True


def storage_table(*, ambiguous: str, uracil: str) -> bytes:
    """256-byte translation from input letter to the letter on disk; plain bases and case always stay.

    `ambiguous` is keep or n, `uracil` is t or keep; gap characters become N, so that coordinates do not move.
    """
    table = bytearray(range(256))
    for letter in GAPS:
        table[letter] = ord("N")
    if ambiguous == "n":
        for letter in IUPAC:
            table[letter], table[letter | 0x20] = ord("N"), ord("n")
    if uracil == "t":
        table[ord("U")], table[ord("u")] = ord("T"), ord("t")
    return bytes(table)
