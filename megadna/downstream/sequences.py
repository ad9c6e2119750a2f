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
from pathlib import Path

from megadna.downstream.genome import read_letters, reverse_complement
from megadna.errors import UserError, require
from megadna.genome.bed import BedLine, locate, past_the_end, read_bed
from megadna.genome.contig_names import nearest, renamed
from megadna.genome.contigs import names_of
from megadna.log import get_logger

log = get_logger(__name__)
_CIRCULAR = re.compile(rb"\b(circular=(true|yes|y)|topology=circular)\b", re.I)


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
    region: str = ""
    """Name of the BED region (column 4); empty elsewhere."""

    def reversed(self) -> "Stretch":
        """The other strand of the same bases."""
        strand = {"+": "-", "-": "+", ".": "-"}[self.strand]
        letters = reverse_complement(self.letters)
        return replace(self, strand=strand, letters=letters, before=self.after, after=self.before)


def read_records(path: Path, column: str = "") -> Iterator[tuple[bytes, str]]:
    """(header line without '>', letters); UserError names file and line where it cannot be read, or is empty."""
    for header, letters in read_letters(path, column=column, ambiguous="n", fold=True):
        yield header, letters.tobytes().decode()


def record_lengths(path: Path, column: str = "") -> dict[str, int]:
    """Bases of each record, by the first word of its header; UserError where two records have one name."""
    lengths: dict[str, int] = {}
    for header, letters in read_records(path, column):
        name = names_of([header])[0].decode(errors="replace")
        require(
            name not in lengths,
            f"{path}: two records are called {name}; --bed, --window, --circular, BED and bigWig files need names that "
            "are unique: rename or remove one",
        )
        lengths[name] = len(letters)
    return lengths


def read_stretches(
    path: Path, *, column: str = "", circular: tuple[str, ...] = (), context: int = 0, longest: int = 0
) -> Iterator[Stretch]:
    """One stretch a record; records above `longest` bases (0: no limit) in several, with `context` letters around."""
    for header, letters, ring in _with_rings(path, column, circular):
        name, size = names_of([header])[0].decode(errors="replace"), len(letters)
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


def read_regions(genome: Path, bed: Path, lengths: dict[str, int]) -> Iterator[Stretch]:
    """The BED file's regions, minus-strand ones reverse-complemented; UserError with the line that does not fit."""
    lines = list(read_bed(bed, stranded=True))
    first_lines = {one.contig: one.line for one in reversed(lines)}
    names = locate(bed, dict(sorted(first_lines.items(), key=lambda item: item[1])), lengths, str(genome))
    if said := renamed(names):
        log.info("contig names matched: %s", said)
    regions: dict[str, list[BedLine]] = {}
    for one in lines:
        contig = names[one.contig]
        if one.end > lengths[contig]:
            raise past_the_end(bed, one.line, contig, one.end, lengths[contig])
        regions.setdefault(contig, []).append(one)
    for header, letters in read_records(genome):
        contig = names_of([header])[0].decode(errors="replace")
        for one in regions.get(contig, []):
            region = Stretch(contig, one.start, one.end, "+", letters[one.start : one.end], region=one.name)
            yield region.reversed() if one.strand == "-" else region


def sliding_stretches(path: Path, window: int, step: int, circular: tuple[str, ...] = ()) -> Iterator[Stretch]:
    """Windows of `window` bases, `step` apart, plus strand; the last of a contig is moved back to end with it, on a
    ring it is read on across the end."""
    for header, letters, ring in _with_rings(path, "", circular):
        name, size = names_of([header])[0].decode(errors="replace"), len(letters)
        last = max(0, size - window)
        for start in range(0, size, step) if ring and last else [*range(0, last, step), last]:
            piece = letters[start : start + window]
            wrapped = letters[: window - len(piece)] if ring and last else ""
            yield Stretch(name, start, start + len(piece), "+", piece + wrapped, after=len(wrapped))


def _with_rings(path: Path, column: str, circular: tuple[str, ...]) -> Iterator[tuple[bytes, str, bool]]:
    """(header, letters, whether it is a ring) of each record; UserError where `circular` names none of them."""
    missing, known = set(circular), []
    for header, letters in read_records(path, column):
        name = names_of([header])[0].decode(errors="replace")
        missing.discard(name)
        known += [name] if missing else []
        yield header, letters, name in circular or _CIRCULAR.search(header) is not None
    for name in sorted(missing):
        raise UserError(f"{path}: --circular names {name}, which is no record of it{nearest(name, known)}")
