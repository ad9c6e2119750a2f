"""Sequence files -> stretches of DNA that a model reads: whole records, BED regions or sliding windows.

In:  FASTA (gzip, BGZF, zstd, 2bit too), CSV, TSV or Parquet with a sequence column; a genome FASTA with a BED file.
Out: Stretch, in file order (BED regions: contig by contig, in the BED file's order). Letters are upper-case, U is T,
     IUPAC codes and gaps are N. One record at a time is in memory.
A record is circular where its header says `circular=true` or `topology=circular`, or where the caller names it: the
letters beyond one end are then those of the other end.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from megadna.data.inputs import SourceFile
from megadna.data.pieces import Recipe, read_pieces
from megadna.downstream.genome import reverse_complement
from megadna.errors import UserError
from megadna.genome.contigs import names_of
from megadna.genome.letters import storage_table
from megadna.genome.sources import detect_format
from megadna.genome.tables import TableFormat

_CIRCULAR = re.compile(rb"\b(circular=(true|yes|y)|topology=circular)\b", re.I)
_TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bases start to end (0-based, half-open) of a record."""

    name: str
    start: int
    end: int
    strand: str
    """+ or -; "." where the input says nothing (read as it stands)."""
    letters: str
    """As the model reads them, 5' to 3' of the strand, context included."""
    before: int = 0
    """Letters of context in front."""
    after: int = 0
    """Letters of context behind."""

    def reversed(self) -> "Stretch":
        """The other strand of the same bases."""
        strand = {"+": "-", "-": "+", ".": "-"}[self.strand]
        letters = reverse_complement(self.letters)
        return replace(self, strand=strand, letters=letters, before=self.after, after=self.before)


def is_table(path: Path) -> bool:
    """Whether the file is a table by its name."""
    return path.name.endswith(_TABLE_ENDINGS)


def read_records(path: Path, column: str = "") -> Iterator[tuple[bytes, str]]:
    """(header line without '>', letters); UserError names file and line where it cannot be read, or is empty."""
    table = TableFormat(column or ("sequence" if is_table(path) else ""))
    source = SourceFile(path, path.name, detect_format(path, table), 0)
    recipe = Recipe(table, storage_table(ambiguous="n", uracil="t"), fold=True)
    header, parts = None, [""]
    for found in read_pieces([source], 0, recipe, workers=1):
        piece = found.piece
        letters = found.scanner.buffer[: piece.size].tobytes().decode()
        edges = [*piece.positions.tolist(), piece.size]
        parts.append(letters[: edges[0]])
        for next_header, (start, end) in zip(piece.headers, pairwise(edges), strict=True):
            if header is not None:
                yield header, "".join(parts)
            header, parts = next_header, [letters[start:end]]
    if header is None:
        raise UserError(f"{path}: holds no sequence")
    yield header, "".join(parts)


def record_lengths(path: Path, column: str = "") -> dict[str, int]:
    """Bases of each record, by the first word of its header."""
    return {names_of([header])[0].decode(): len(letters) for header, letters in read_records(path, column)}


def read_stretches(
    path: Path, *, column: str = "", circular: tuple[str, ...] = (), context: int = 0, longest: int = 0
) -> Iterator[Stretch]:
    """One stretch a record; records above `longest` bases (0: no limit) in several, with `context` letters around."""
    missing = set(circular)
    for header, letters in read_records(path, column):
        name = names_of([header])[0].decode(errors="replace")
        ring = name in circular or _CIRCULAR.search(header) is not None
        missing.discard(name)
        size = len(letters)
        if size == 0:
            raise UserError(f"{path}: record {name} has no letters; remove it")
        for start in range(0, size, longest or size):
            end = min(size, start + (longest or size))
            before, after = min(context, size if ring else start), min(context, size if ring else size - end)
            front = letters[max(0, start - before) : start]
            behind = letters[end : end + after]
            front = letters[size - (before - len(front)) :] + front if before > len(front) else front
            behind += letters[: after - len(behind)]
            yield Stretch(name, start, end, ".", front + letters[start:end] + behind, before, after)
    if missing:
        raise UserError(f"{path}: --circular names {', '.join(sorted(missing))}, which is no record of it")


def read_regions(genome: Path, bed: Path, lengths: dict[str, int]) -> Iterator[Stretch]:
    """The BED file's regions, minus-strand ones reverse-complemented; UserError with the line that does not fit."""
    regions: dict[str, list[tuple[int, int, str]]] = {}
    for number, line in enumerate(bed.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split()
        if not columns or columns[0] in ("track", "browser") or line.startswith("#"):
            continue
        if len(columns) < 3 or not columns[1].isdigit() or not columns[2].isdigit():
            raise UserError(f"{bed}: line {number}: not a BED interval (contig, start, end)")
        contig, start, end = columns[0], int(columns[1]), int(columns[2])
        if contig not in lengths:
            known = ", ".join(list(lengths)[:3])
            raise UserError(f"{bed}: line {number}: no contig {contig} in {genome}, which has {known}, ...")
        if not start < end <= lengths[contig]:
            raise UserError(f"{bed}: line {number}: {start}-{end} does not lie in {contig} (0-{lengths[contig]})")
        strand = columns[5] if len(columns) > 5 and columns[5] in "+-" else "+"
        regions.setdefault(contig, []).append((start, end, strand))
    if not regions:
        raise UserError(f"{bed}: holds no interval")
    for header, letters in read_records(genome):
        name = names_of([header])[0].decode()
        for start, end, strand in regions.get(name, ()):
            region = Stretch(name, start, end, "+", letters[start:end])
            yield region if strand == "+" else region.reversed()


def sliding_stretches(path: Path, window: int, step: int) -> Iterator[Stretch]:
    """Windows of `window` bases, `step` apart, plus strand; the last of a contig is moved back to end with it."""
    for header, letters in read_records(path):
        name = names_of([header])[0].decode()
        last = max(0, len(letters) - window)
        for start in [*range(0, last, step), last]:
            piece = letters[start : start + window]
            yield Stretch(name, start, start + len(piece), "+", piece)
