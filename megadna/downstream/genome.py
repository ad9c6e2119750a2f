"""Records of a sequence file; a genome in memory, contig by contig, and windows cut out of it.

In:  a FASTA file of any kind that `megadna preprocess` reads (plain, gzip, BGZF, zstd, 2bit); records also of tables.
Out: letters as uint8, one byte a base (3.1 GB for human), soft mask kept, U as T; windows on either strand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megadna.data.inputs import SourceFile
from megadna.data.pieces import Recipe, stream_pieces
from megadna.errors import UserError, require
from megadna.genome.contigs import names_of
from megadna.genome.letters import storage_table
from megadna.genome.sources import STDIN, detect_format
from megadna.genome.tables import TableFormat
from megadna.progress import tracked
from megadna.tokenizer import alphabet
from megadna.tokenizer.alphabet import COMPLEMENT

PLAIN = np.zeros(256, bool)
PLAIN[list(b"ACGTacgt")] = True
_TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")


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


def read_letters(path: Path, *, column: str = "", ambiguous: str, fold: bool) -> Iterator[tuple[bytes, np.ndarray]]:
    """(header line without '>', uint8 letters) of each record, one in memory at a time; of a table, rows of `column`.

    `ambiguous`: IUPAC codes are kept (keep) or become N (n); `fold`: upper-case. UserError names file and line where it
    cannot be read, or is empty.
    """
    table = TableFormat(column or ("sequence" if path.name.endswith(_TABLE_ENDINGS) else ""))
    source = SourceFile(path, path.name, detect_format(path, table), 0)
    recipe = Recipe(table, storage_table(ambiguous=ambiguous, uracil="t"), fold)
    scanner = recipe.scanner()
    header: bytes | None = None
    parts: list[np.ndarray] = []
    for piece, _ in stream_pieces(source, recipe, scanner):
        letters = scanner.buffer[: piece.size]
        edges = [*piece.positions.tolist(), piece.size]
        parts.append(letters[: edges[0]].copy())
        for next_header, (start, end) in zip(piece.headers, pairwise(edges), strict=True):
            if header is not None:
                yield header, parts[0] if len(parts) == 1 else np.concatenate(parts)
            header, parts = next_header, [letters[start:end].copy()]
    if header is None:
        raise UserError(f"{path}: empty: holds no sequence")
    yield header, np.concatenate(parts)


def read_genome(path: Path) -> Genome:
    """Every record of the file; UserError where it is no FASTA, empty, or names a contig twice."""
    require(path != STDIN and not path.name.endswith(_TABLE_ENDINGS), f"{path}: a genome is a FASTA or 2bit file")
    genome: dict[str, np.ndarray] = {}
    for header, letters in tracked(read_letters(path, ambiguous="keep", fold=False), f"reading {path}", unit="contigs"):
        name = names_of([header])[0].decode(errors="replace")
        require(name not in genome, f"{path}: contig {name} occurs twice; keep one of them")
        genome[name] = letters
    require(any(map(len, genome.values())), f"{path}: empty: holds no sequence")
    return Genome(path, genome)


def as_text(windows: np.ndarray) -> list[str]:
    """Upper-case strings of uint8 [N, length]."""
    return [row.tobytes().decode("ascii").upper() for row in windows]


def reverse_complement(text: str) -> str:
    """The other strand of a sequence, read in its own direction."""
    return alphabet.reverse_complement(alphabet.letters_of(text)).tobytes().decode()
