"""A genome in memory, contig by contig, and windows cut out of it.

In:  a FASTA file of any kind that `megadna preprocess` reads (plain, gzip, BGZF, zstd, 2bit).
Out: letters as uint8, one byte a base (3.1 GB for human), soft mask kept, U as T; windows on either strand.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.data.inputs import SourceFile
from megadna.data.pieces import Recipe, stream_pieces
from megadna.errors import UserError, require
from megadna.genome.contigs import names_of
from megadna.genome.letters import storage_table
from megadna.genome.sources import detect_format
from megadna.genome.tables import TableFormat

COMPLEMENT = np.arange(256, dtype=np.uint8)
COMPLEMENT[list(b"ACGTRYKMBVDHacgtrykmbvdh")] = list(b"TGCAYRMKVBHDtgcayrmkvbhd")
PLAIN = np.zeros(256, bool)
PLAIN[list(b"ACGTacgt")] = True


@dataclass(frozen=True)
class Genome:
    """The letters of every contig."""

    path: Path
    letters: dict[str, np.ndarray]
    """uint8 by contig, in the order of the file."""

    @property
    def lengths(self) -> dict[str, int]:
        """Bases by contig."""
        return {name: len(letters) for name, letters in self.letters.items()}

    def windows(self, contig: str, starts: np.ndarray, length: int, reverse: np.ndarray | bool = False) -> np.ndarray:
        """uint8 [N, length] from each 0-based start on; the reverse complement where `reverse` (bool [N]) says so.

        The caller has checked that every window lies inside the contig.
        """
        found = self.letters[contig][np.asarray(starts)[:, None] + np.arange(length)]
        return np.where(np.reshape(reverse, (-1, 1)), COMPLEMENT[found[:, ::-1]], found)


def read_genome(path: Path) -> Genome:
    """Every record of the file; UserError where it is no FASTA, empty, or names a contig twice."""
    table = TableFormat()
    source = SourceFile(path, path.name, detect_format(path, table), 0)
    require(source.kind not in ("table", "stdin"), f"{path}: a genome is a FASTA or 2bit file")
    recipe = Recipe(table, storage_table(ambiguous="keep", uracil="t"), False, 0)
    scanner = recipe.scanner()
    parts: dict[str, list[np.ndarray]] = {}
    name = ""
    for piece, _ in stream_pieces(source, recipe, scanner):
        letters = scanner.buffer[: piece.size]
        edges = [*piece.positions.tolist(), piece.size]
        if name:
            parts[name].append(letters[: edges[0]].copy())
        for header, start, end in zip(names_of(piece.headers), edges[:-1], edges[1:], strict=True):
            name = header.decode(errors="replace")
            if name in parts:
                raise UserError(f"{path}: contig {name} stands there twice; keep one of them")
            parts[name] = [letters[start:end].copy()]
    genome = {}
    for contig in list(parts):
        pieces = parts.pop(contig)  # popped, so that a contig never stands in memory twice for long
        genome[contig] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    require(any(map(len, genome.values())), f"{path}: empty: holds no sequence")
    return Genome(path, genome)


def as_text(windows: np.ndarray) -> list[str]:
    """Upper-case strings of uint8 [N, length]."""
    return [row.tobytes().decode("ascii").upper() for row in windows]


def reverse_complement(text: str) -> str:
    """The other strand of a sequence, read in its own direction."""
    return COMPLEMENT[np.frombuffer(text.encode(), np.uint8)][::-1].tobytes().decode()
