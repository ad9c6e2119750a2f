"""Records of a sequence file; a genome in memory; and the stretches of DNA that a model reads.

In:  FASTA as `megadna preprocess` reads it (plain, gzip, BGZF, zstd, 2bit), or CSV, TSV or Parquet with a column of
     sequences; BED files of regions.
Out: Genome: uint8, one byte a base (3.1 GB for human), soft mask kept, U as T; windows on either strand.
     Stretch: whole records, BED regions (contig by contig, in the BED file's order) or sliding windows, in file order;
     bases are upper-case, U is T, IUPAC codes and gaps are N. One record at a time is in memory.
If a record is given in several stretches, their windows are those of the whole record: outputs do not depend on where
it was divided. A record is circular if its header says `circular=true` or `topology=circular`, or if the caller names
it: beyond one end it continues with the other end.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from megadna import alphabet
from megadna.alphabet import COMPLEMENT
from megadna.errors import UserError, require
from megadna.genome.bed import BedLine, locate, past_the_end, read_bed
from megadna.genome.contigs import name_of, nearest, renamed
from megadna.genome.pieces import scan_file
from megadna.genome.sources import open_sequences
from megadna.log import get_logger
from megadna.progress import tracked

log = get_logger(__name__)

PLAIN = np.zeros(256, bool)
PLAIN[list(b"ACGTacgt")] = True
_MODEL_INPUT = bytes(value if value in b"ACGT" else ord("N") for value in bytes(range(256)).upper())


@dataclass(frozen=True)
class Genome:
    """The bases of every contig."""

    path: Path
    bases: dict[str, np.ndarray]
    """uint8 by contig, in the order of the file."""

    @property
    def lengths(self) -> dict[str, int]:
        """Bases by contig."""
        return {name: len(bases) for name, bases in self.bases.items()}

    def windows(self, contig: str, starts: np.ndarray, length: int, reverse: np.ndarray | bool = False) -> np.ndarray:
        """uint8 [N, length] from each 0-based start on, reverse-complemented for each `reverse` (bool [N]); the caller
        has checked that every window is inside the contig."""
        found = self.bases[contig][np.asarray(starts)[:, None] + np.arange(length)]
        return np.where(np.reshape(reverse, (-1, 1)), COMPLEMENT[found[:, ::-1]], found)


def read_bases(path: Path, column: str = "") -> Iterator[tuple[bytes, np.ndarray]]:
    """(header line without '>', uint8 bases as a dataset stores them) of each record, one in memory at a time."""
    header: bytes | None = None
    parts: list[np.ndarray] = []
    for piece, bases in scan_file(open_sequences(path, column)):
        edges = [*piece.positions.tolist(), piece.size]
        parts.append(bases[: edges[0]].copy())
        for next_header, (start, end) in zip(piece.headers, pairwise(edges), strict=True):
            if header is not None:
                yield header, np.concatenate(parts)
            header, parts = next_header, [bases[start:end].copy()]
    if header is None:
        raise UserError(f"{path}: empty: holds no sequence")
    yield header, np.concatenate(parts)


def read_genome(path: Path) -> Genome:
    """Every record of the file; UserError if it is not FASTA, is empty, or has two contigs of one name."""
    require(open_sequences(path).kind not in ("stdin", "table"), f"{path}: a genome is a FASTA or 2bit file")
    genome: dict[str, np.ndarray] = {}
    for header, bases in tracked(read_bases(path), f"reading {path}", unit="contigs"):
        name = name_of(header)
        require(name not in genome, f"{path}: contig {name} occurs twice; keep one of them")
        genome[name] = bases
    require(any(map(len, genome.values())), f"{path}: empty: holds no sequence")
    return Genome(path, genome)


def as_text(windows: np.ndarray) -> list[str]:
    """Upper-case strings of uint8 [N, length]."""
    return [row.tobytes().decode("ascii").upper() for row in windows]


def reverse_complement(text: str) -> str:
    """The other strand of a sequence, read in its own direction."""
    return alphabet.reverse_complement(alphabet.dna_of(text)).tobytes().decode()


_CIRCULAR = re.compile(rb"\b(circular=(true|yes|y)|topology=circular)\b", re.I)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bases start to end (0-based, half-open) of a record."""

    name: str
    start: int
    end: int
    strand: str
    """+ or -; "." if the input does not say (read as +)."""
    bases: str
    """As the model reads them, 5' to 3' of the strand, context included."""
    before: int = 0
    """Bases of context before."""
    after: int = 0
    """Bases of context after."""
    far_before: int = 0
    """Bases of the record before `bases`; the grid of windows begins with the first of them."""
    far_after: int = 0
    """Bases of the record after `bases`."""
    window: int = 0
    """Bases of a window, the same in all stretches of a record; 0: as the tokenizer decides from `bases`."""
    region: str = ""
    """Name of the BED region (column 4); empty elsewhere."""

    @property
    def own(self) -> str:
        """Its bases without context."""
        return self.bases[self.before : len(self.bases) - self.after]

    def reversed(self) -> "Stretch":
        """The other strand of the same bases."""
        return replace(
            self,
            strand={"+": "-", "-": "+", ".": "-"}[self.strand],
            bases=reverse_complement(self.bases),
            before=self.after,
            after=self.before,
            far_before=self.far_after,
            far_after=self.far_before,
        )

    def part(self, first: int, last: int, low: int, high: int) -> "Stretch":
        """Its bases `first` to `last` (without context, in their order), with all of `bases` from `low` to `high`."""
        return replace(
            self,
            start=self.end - last if self.strand == "-" else self.start + first,
            end=self.end - first if self.strand == "-" else self.start + last,
            bases=self.bases[low:high],
            before=self.before + first - low,
            after=high - self.before - last,
        )


def window_grid(length: int, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts [W], borders [W - 1]) of the windows of at most `size` bases over `length` bases, on the grid of `stride`
    bases if tokens do not overlap; a border is the middle of the overlap of two neighbours."""
    step = max(stride, (size - size // 4) // stride * stride)
    starts = np.arange(0, max(1, length - size + step), step) if length > size else np.zeros(1, np.int64)
    if stride == 1:
        starts[-1] = max(0, length - size)
    return starts, (starts[:-1] + size + starts[1:]) // 2


def centred_starts(positions: np.ndarray, window: int, length: int) -> np.ndarray:
    """Starts [N] of the windows of `window` bases (odd) with these positions in the middle; at the ends of a contig of
    `length` bases they are moved inwards, so that every window has as many bases as there are."""
    return np.clip(positions - window // 2, 0, max(0, length - window))


def read_records(path: Path, column: str = "") -> Iterator[tuple[bytes, str]]:
    """(header line without '>', bases); UserError with file and line if it cannot be read, or is empty."""
    for header, bases in read_bases(path, column):
        yield header, bases.tobytes().translate(_MODEL_INPUT).decode()


def record_lengths(path: Path, column: str = "") -> dict[str, int]:
    """Bases of each record, by the first word of its header; UserError if two records have one name."""
    lengths: dict[str, int] = {}
    for header, bases in read_records(path, column):
        name = name_of(header)
        require(
            name not in lengths,
            f"{path}: two records are called {name}; --bed, --window, --circular, BED and bigWig files need unique "
            "names: rename or remove one",
        )
        lengths[name] = len(bases)
    return lengths


def read_stretches(
    path: Path, *, column: str = "", circular: tuple[str, ...] = (), context: int = 0
) -> Iterator[Stretch]:
    """One stretch per record; a circular one with `context` bases on either side."""
    for name, bases, is_circular in _with_topology(path, column, circular):
        size = len(bases)
        around = min(context, size) if is_circular else 0
        if around:
            bases = bases[size - around :] + bases + bases[:around]
        yield Stretch(name, 0, size, ".", bases, around, around)


def divided(
    stretches: Iterable[Stretch], *, longest: int, window: Callable[[str], int], stride: int
) -> Iterator[Stretch]:
    """The stretches, each with its window (`window` of its bases); those above `longest` bases (0: no limit) in
    several, divided where windows meet, each with the bases of every window that one of its outputs comes from."""
    for stretch in stretches:
        width = window(stretch.bases)
        size = stretch.end - stretch.start
        if not longest or size <= max(longest, width):
            yield replace(stretch, window=width)
            continue
        borders = window_grid(len(stretch.bases), width, stride)[1] - stretch.before
        for one, other in pairwise(_cuts(size, borders, max(longest, width))):
            first = max(0, stretch.before + one - width)
            last = min(len(stretch.bases), stretch.before + other + width)
            part = stretch.part(one, other, first, last)
            yield replace(part, far_before=first, far_after=len(stretch.bases) - last, window=width)


def _cuts(size: int, borders: np.ndarray, longest: int) -> list[int]:
    """0, the last border within `longest` bases of the cut before, ..., size; borders are at most `longest` apart."""
    cuts = [0]
    while size - cuts[-1] > longest:
        cuts.append(int(borders[np.searchsorted(borders, cuts[-1] + longest, side="right") - 1]))
    return [*cuts, size]


def read_regions(genome: Path, bed: Path, lengths: dict[str, int], *, context: int = 0) -> Iterator[Stretch]:
    """The BED file's regions, minus-strand ones reverse-complemented, each with up to `context` bases of its contig on
    either side; UserError with the line of one that does not fit."""
    lines = list(read_bed(bed, stranded=True))
    first_lines = {one.contig: one.line for one in reversed(lines)}
    names = locate(bed, dict(sorted(first_lines.items(), key=lambda item: item[1])), lengths, str(genome))
    if matched := renamed(names):
        log.info("contig names matched: %s", matched)
    regions: dict[str, list[BedLine]] = {}
    for one in lines:
        contig = names[one.contig]
        if one.end > lengths[contig]:
            raise past_the_end(bed, one.line, contig, one.end, lengths[contig])
        regions.setdefault(contig, []).append(one)
    for header, bases in read_records(genome):
        contig = name_of(header)
        for one in regions.get(contig, []):
            before, after = min(context, one.start), min(context, lengths[contig] - one.end)
            seen = bases[one.start - before : one.end + after]
            region = Stretch(contig, one.start, one.end, "+", seen, before, after, region=one.name)
            yield region.reversed() if one.strand == "-" else region


def sliding_stretches(path: Path, window: int, step: int, circular: tuple[str, ...] = ()) -> Iterator[Stretch]:
    """Windows of `window` bases, `step` apart, plus strand; the last of a contig is moved back to end with it, or, if
    the contig is circular, wraps around its end."""
    for name, bases, is_circular in _with_topology(path, "", circular):
        size = len(bases)
        last = max(0, size - window)
        wraps = is_circular and last > 0
        for start in range(0, size, step) if wraps else [*range(0, last, step), last]:
            piece = bases[start : start + window]
            wrapped = bases[: window - len(piece)] if wraps else ""
            yield Stretch(name, start, start + len(piece), "+", piece + wrapped, after=len(wrapped))


def _with_topology(path: Path, column: str, circular: tuple[str, ...]) -> Iterator[tuple[str, str, bool]]:
    """(name, bases, whether it is circular) of each record; UserError if one is empty, or if `circular` has a name that
    none has."""
    missing, known = set(circular), []
    for header, bases in read_records(path, column):
        name = name_of(header)
        require(bool(bases), f"{path}: record {name} has no bases; remove it")
        missing.discard(name)
        known += [name] if missing else []
        yield name, bases, name in circular or _CIRCULAR.search(header) is not None
    for name in sorted(missing):
        raise UserError(f"{path}: --circular {name}: no such record{nearest(name, known)}")
