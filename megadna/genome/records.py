"""Records of a sequence file; a genome in memory, contig by contig, and windows cut out of it.

In:  a FASTA file of any kind that `megadna preprocess` reads (plain, gzip, BGZF, zstd, 2bit); records also of tables.
Out: letters as uint8, one byte a base (3.1 GB for human), soft mask kept, U as T; windows on either strand.

Sequence files -> stretches of DNA that a model reads: whole records, BED regions or sliding windows.

In:  FASTA (gzip, BGZF, zstd, 2bit too), CSV, TSV or Parquet with a sequence column; a genome FASTA with a BED file.
Out: Stretch, in file order (BED regions: contig by contig, in the BED file's order). Letters are upper-case, U is T,
     IUPAC codes and gaps are N. One record at a time is in memory.
Where a record is given in several stretches, their windows are those of the whole record: the outputs do not depend on
where it was divided.
A record is circular where its header says `circular=true` or `topology=circular`, or where the caller names it: the
letters beyond one end are then those of the other end.
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
from megadna.genome.contigs import names_of, nearest, renamed
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


def _read(path: Path, column: str = "") -> Iterator[tuple[bytes, np.ndarray]]:
    """(header line without '>', uint8 bases as a dataset stores them) of each record, one in memory at a time."""
    header: bytes | None = None
    parts: list[np.ndarray] = []
    for piece, letters in scan_file(open_sequences(path, column)):
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
    require(open_sequences(path).kind not in ("stdin", "table"), f"{path}: a genome is a FASTA or 2bit file")
    genome: dict[str, np.ndarray] = {}
    for header, letters in tracked(_read(path), f"reading {path}", unit="contigs"):
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


_CIRCULAR = re.compile(rb"\b(circular=(true|yes|y)|topology=circular)\b", re.I)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bases start to end (0-based, half-open) of a record."""

    name: str
    start: int
    end: int
    strand: str
    """+ or -; "." where the input says nothing (read as it is)."""
    letters: str
    """As the model reads them, 5' to 3' of the strand, context included."""
    before: int = 0
    """Bases of context before."""
    after: int = 0
    """Bases of context after."""
    far_before: int = 0
    """Bases of the record before `letters`; the grid of windows begins with the first of them."""
    far_after: int = 0
    """Bases of the record after `letters`."""
    window: int = 0
    """Bases of a window, the same in all stretches of a record; 0: what the tokenizer makes of `letters`."""
    region: str = ""
    """Name of the BED region (column 4); empty elsewhere."""

    def reversed(self) -> "Stretch":
        """The other strand of the same bases."""
        return replace(
            self,
            strand={"+": "-", "-": "+", ".": "-"}[self.strand],
            letters=reverse_complement(self.letters),
            before=self.after,
            after=self.before,
            far_before=self.far_after,
            far_after=self.far_before,
        )


def window_grid(length: int, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts [W], borders [W - 1]) of the windows of at most `size` bases over `length` bases, on the grid of `stride`
    bases where tokens do not overlap; a border is the middle of the overlap of two neighbours."""
    step = max(stride, (size - size // 4) // stride * stride)
    starts = np.arange(0, max(1, length - size + step), step) if length > size else np.zeros(1, np.int64)
    if stride == 1:
        starts[-1] = max(0, length - size)
    return starts, (starts[:-1] + size + starts[1:]) // 2


def read_records(path: Path, column: str = "") -> Iterator[tuple[bytes, str]]:
    """(header line without '>', letters); UserError names file and line where it cannot be read, or is empty."""
    for header, letters in _read(path, column):
        yield header, letters.tobytes().translate(_MODEL_INPUT).decode()


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
    path: Path, *, column: str = "", circular: tuple[str, ...] = (), context: int = 0
) -> Iterator[Stretch]:
    """One stretch a record, of a ring with `context` letters around."""
    for header, letters, ring in _with_rings(path, column, circular):
        size = len(letters)
        around = min(context, size) if ring else 0
        if around:
            letters = letters[size - around :] + letters + letters[:around]
        yield Stretch(names_of([header])[0].decode(errors="replace"), 0, size, ".", letters, around, around)


def divided(
    stretches: Iterable[Stretch], *, longest: int, window: Callable[[str], int], stride: int
) -> Iterator[Stretch]:
    """The stretches, each with its window (`window` of its letters); those above `longest` bases (0: no limit) in
    several, divided where windows meet, each with the letters of every window that answers for a base of it."""
    for stretch in stretches:
        width = window(stretch.letters)
        size = stretch.end - stretch.start
        if not longest or size <= max(longest, width):
            yield replace(stretch, window=width)
            continue
        borders = window_grid(len(stretch.letters), width, stride)[1] - stretch.before
        for one, other in pairwise(_cuts(size, borders, max(longest, width))):
            first = max(0, stretch.before + one - width)
            last = min(len(stretch.letters), stretch.before + other + width)
            yield replace(
                stretch,
                start=stretch.end - other if stretch.strand == "-" else stretch.start + one,
                end=stretch.end - one if stretch.strand == "-" else stretch.start + other,
                letters=stretch.letters[first:last],
                before=stretch.before + one - first,
                after=last - stretch.before - other,
                far_before=first,
                far_after=len(stretch.letters) - last,
                window=width,
            )


def _cuts(size: int, borders: np.ndarray, longest: int) -> list[int]:
    """0, the last border within `longest` bases of the cut before, ..., size; borders are at most `longest` apart."""
    cuts = [0]
    while size - cuts[-1] > longest:
        cuts.append(int(borders[np.searchsorted(borders, cuts[-1] + longest, side="right") - 1]))
    return [*cuts, size]


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
    """(header, letters, whether it is a ring) of each record; UserError where one is empty, or `circular` names none of
    them."""
    missing, known = set(circular), []
    for header, letters in read_records(path, column):
        name = names_of([header])[0].decode(errors="replace")
        if not letters:
            raise UserError(f"{path}: record {name} has no letters; remove it")
        missing.discard(name)
        known += [name] if missing else []
        yield header, letters, name in circular or _CIRCULAR.search(header) is not None
    for name in sorted(missing):
        raise UserError(f"{path}: --circular names {name}, which is no record of it{nearest(name, known)}")
