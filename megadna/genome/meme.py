"""Motifs in MEME's minimal format, read and written with every digit.

In:  a file of `letter-probability matrix` blocks over A, C, G, T (MEME suite, JASPAR, HOCOMOCO; plain or packed).
     Counts, log-odds matrices and all other sections are skipped.
Out: Motif for each, in file order; or such a file, from which the same numbers are read again.
UserError names file and line where a matrix is not one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.alphabet import BASES
from megadna.errors import UserError, require, require_one_line
from megadna.files import write_text
from megadna.genome.packed import open_bytes

# Shapes: W positions of a motif, 4 the bases A C G T.

_MATRIX = "letter-probability matrix"
_WIDTH = re.compile(r"\bw= *(\d+)")
_SITES = re.compile(r"\bnsites= *([0-9.]+)")
_ALPHABET = re.compile(r"ALPHABET\s*=?\s*(\S+)")
_DNA = ("ACGT", '"DNA"', '"ACGT"')
_OFF = 0.02
"""By which the sum of a position's probabilities may differ from 1: files round them to two digits and more."""


@dataclass(frozen=True)
class Motif:
    """One motif."""

    name: str
    """First word of its line: the identifier."""
    p_W4: np.ndarray
    """Probability of A, C, G, T at each position, fp64."""
    sites: float = 0.0
    """Sequences that it was made from; 0: not stated."""
    title: str = ""
    """The rest of its line: an alternate name."""


def read_meme(path: Path) -> list[Motif]:
    """Every motif of the file; UserError if there is none."""
    lines = _lines(path)
    found: list[Motif] = []
    name, title = "", ""
    for number, line in lines:
        if alphabet := _ALPHABET.match(line):
            known = alphabet[1] in _DNA
            require(known, f"{path}: line {number}: alphabet {alphabet[1]}; motifs must be of A, C, G and T")
        elif line.startswith("MOTIF"):
            name, _, title = line[5:].strip().partition(" ")
            require(bool(name), f"{path}: line {number}: a motif without a name")
        elif line.startswith(_MATRIX):
            require(bool(name), f"{path}: line {number}: a matrix without a MOTIF line before it")
            width, sites = _WIDTH.search(line), _SITES.search(line)
            p_W4 = _matrix(path, number, lines, int(width[1]) if width else None)
            found.append(Motif(name, p_W4, float(sites[1]) if sites else 0.0, title.strip()))
            name = ""
    require(bool(found), f"{path}: no motif in it; give a file in MEME format ('MOTIF', '{_MATRIX}')")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without blanks at its ends) of each line."""
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode().replace("\t", " ").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text: no file in MEME format") from error


def _matrix(path: Path, number: int, lines: Iterator[tuple[int, str]], width: int | None) -> np.ndarray:
    """fp64 [W, 4] from the lines after number `number`: `width` of them, or all up to the first of another kind."""
    rows: list[list[float]] = []
    while width is None or len(rows) < width:
        number, line = next(lines, (number + 1, ""))
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = []
        if not values and rows and width is None:
            break
        good = len(values) == 4 and min(values) >= 0 and abs(sum(values) - 1) <= _OFF
        if not good:
            of = "" if width is None else f" (row {len(rows) + 1} of {width})"
            raise UserError(
                f"{path}: line {number}: not four probabilities of A, C, G and T that add up to 1{of}: {line[:60]!r}"
            )
        rows.append(values)
    require(bool(rows), f"{path}: line {number}: a matrix without a row")
    return np.array(rows)


def write_meme(path: Path, motifs: Iterable[Motif]) -> None:
    """Write a file that `read_meme` and the MEME suite read; as many digits as the numbers have. The file appears
    complete or not at all; UserError if a name has a blank or is empty."""
    text = [
        "MEME version 4",
        f"ALPHABET= {BASES}",
        "strands: + -",
        "Background letter frequencies\n" + " ".join(f"{base} 0.25" for base in BASES),
    ]
    for motif in motifs:
        require_one_line(str(path), motif.name + motif.title)
        require(bool(motif.name) and " " not in motif.name, f"{path}: {motif.name!r}: no name of a motif: one word")
        head = f"MOTIF {motif.name} {motif.title}".strip()
        size = f"alength= 4 w= {len(motif.p_W4)} nsites= {motif.sites:.15g} E= 0"
        rows = [" ".join(repr(float(p)) for p in p_4) for p_4 in motif.p_W4]
        text.append("\n".join([head, f"{_MATRIX}: {size}", *rows]))
    write_text(path, "\n\n".join(text) + "\n")
