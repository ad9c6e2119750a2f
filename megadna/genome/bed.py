"""BED files -> intervals; the only reader of BED in the project.

In:  BED, bedGraph or narrowPeak (three columns or more, between tabs or blanks): plain, gzip, BGZF or zstd, any line
     ends. Empty lines, comments (#), and track and browser lines are skipped.
Out: BedLine for each further line, in file order; or Regions, merged by contig. 0-based, half-open.
UserError names file and line where a line is not an interval, has no base, or is on no contig.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megadna.errors import UserError, require
from megadna.genome.contigs import match_contigs, nearest
from megadna.genome.packed import file_blocks, open_bytes

_MOST_DIGITS = 15  # of a coordinate
_MAY_BEGIN_A_HEADER = (b"#", b"t", b"b", b"", b" ", b"\t")


class BedLine(NamedTuple):
    """One interval."""

    line: int
    """In the file, from 1."""
    contig: str
    start: int
    end: int
    name: str = ""
    """Column 4; "" where it is missing or a dot."""
    score: str = ""
    """Column 5 as it is written."""
    strand: str = "."
    """Column 6: +, - or . (missing)."""
    summit: int = -1
    """Column 10 of a narrowPeak file, bases from `start`; -1: none."""


def read_bed(path: Path, *, stranded: bool = False, summits: bool = False) -> Iterator[BedLine]:
    """Every interval of the file. `stranded`: column 6, where there is one, must be a strand; `summits`: column 10 must
    be a summit. (Files of other kinds have other content there.)"""
    require(path.is_file(), f"{path}: no such BED file")
    empty = True
    for number, text in enumerate(_lines(path), start=1):
        columns = text.split(b"\t") if b"\t" in text else text.split()
        if b" " in text:
            columns = [column.strip() for column in columns]
        if text[:1] in _MAY_BEGIN_A_HEADER and _is_header(columns):
            continue
        try:
            yield _interval(number, columns, stranded=stranded, summits=summits)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        empty = False
    require(not empty, f"{path}: empty: holds no interval")


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with open_bytes(path) as file:
        for block in file_blocks(file):
            text = rest + block
            cut = text.rfind(b"\n") + 1
            yield from text[:cut].splitlines()
            rest = bytes(text[cut:])
    yield from rest.splitlines()


def _is_header(columns: list[bytes]) -> bool:
    if not any(columns) or columns[0].startswith(b"#"):
        return True
    is_interval = len(columns) > 2 and columns[1].isdigit() and columns[2].isdigit()
    return columns[0].split()[:1] in ([b"track"], [b"browser"]) and not is_interval


def _interval(number: int, columns: list[bytes], *, stranded: bool, summits: bool) -> BedLine:
    """ValueError says what is wrong with the line."""
    if len(columns) < 3 or not columns[0] or not columns[1].isdigit() or not columns[2].isdigit():
        shown = b" ".join(columns)[:40].decode(errors="replace")
        raise ValueError(f"not a BED interval (contig, start, end): {shown!r}")
    if max(len(columns[1]), len(columns[2])) > _MOST_DIGITS:
        raise ValueError(f"a coordinate of more than {_MOST_DIGITS} digits")
    start, end = int(columns[1]), int(columns[2])
    if start >= end:
        raise ValueError(f"the interval {start}-{end} holds no base; its end must be above its start")
    name, score, strand = [column.decode(errors="replace") for column in (*columns[3:6], b"", b"", b"")[:3]]
    summit = -1
    if stranded and strand not in ("+", "-", ".", ""):
        raise ValueError(f"strand {strand[:20]!r} (column 6) is none of + - .")
    if summits:
        value = columns[9] if len(columns) > 9 else b""
        if value != b"-1" and not (value.isdigit() and len(value) <= _MOST_DIGITS and start + int(value) < end):
            raise ValueError(f"summit {value[:20].decode(errors='replace')!r} (column 10) is no base of {start}-{end}")
        summit = int(value)
    contig = columns[0].decode(errors="replace")
    return BedLine(number, contig, start, end, "" if name == "." else name, score, strand or ".", summit)


def locate(
    path: Path,
    first_lines: Mapping[str, int],
    contigs: Collection[str],
    genome: str,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """The contig that each of the file's names is (`first_lines`: where it comes first); UserError where one is none
    of `contigs`, those of `genome`."""
    found = match_contigs(first_lines, contigs, aliases)
    for name, line in first_lines.items():
        if name not in found:
            raise UserError(f"{path}: line {line}: no contig {name} in {genome}{nearest(name, contigs)}")
    return found


def past_the_end(path: Path, line: int, contig: str, end: int, length: int) -> UserError:
    """The error for an interval that ends after its contig."""
    return UserError(
        f"{path}: line {line}: {contig} ends at {length:,}, the interval at {end:,}; does the file belong to another "
        "genome build?"
    )


@dataclass(frozen=True)
class Regions:
    """The intervals of a BED file by contig: sorted, those that overlap or touch joined."""

    path: Path
    merged: dict[str, list[tuple[int, int]]]
    first_lines: dict[str, int]
    """Where each contig is named first."""
    furthest: dict[str, tuple[int, int]]
    """(end, line) of the interval of each contig that ends last."""

    def check_ends(self, contig: str, length: int) -> None:
        """UserError where an interval of `contig` (the file's name) passes its end."""
        end, line = self.furthest[contig]
        if end > length:
            raise past_the_end(self.path, line, contig, end, length)

    def on(self, names: Mapping[str, str]) -> dict[str, list[tuple[int, int]]]:
        """`merged` by the genome's names: those of the file, and as `names` (file -> genome) says."""
        more = {ours: self.merged[theirs] for theirs, ours in names.items()}
        return self.merged | more if more else self.merged


def read_regions(path: Path) -> Regions:
    """All intervals of a BED file."""
    found: dict[str, list[tuple[int, int]]] = {}
    first_lines: dict[str, int] = {}
    furthest: dict[str, tuple[int, int]] = {}
    for line, contig, start, end, *_ in read_bed(path):
        if contig not in found:
            found[contig], first_lines[contig], furthest[contig] = [], line, (end, line)
        elif end > furthest[contig][0]:
            furthest[contig] = (end, line)
        found[contig].append((start, end))
    return Regions(path, {contig: merged(intervals) for contig, intervals in found.items()}, first_lines, furthest)


def merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted intervals, those that overlap or touch joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


@dataclass(frozen=True)
class KeptIntervals:
    """Intervals to keep on a contig: those of `include` (None: everything) without those of `exclude`."""

    include: dict[str, list[tuple[int, int]]] | None
    exclude: dict[str, list[tuple[int, int]]]

    def __bool__(self) -> bool:
        return self.include is not None or bool(self.exclude)

    def __call__(self, record: bytes) -> list[tuple[int, int]]:
        """Sorted, disjoint, half-open intervals of the record of this name; the last may end far after the contig."""
        name = record.decode(errors="replace")
        kept = [(0, 1 << 62)] if self.include is None else self.include.get(name, [])
        for start, end in self.exclude.get(name, []):
            kept = [part for a, b in kept for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]]
        return kept


def bases_before(starts: np.ndarray, ends: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """How many of the bases before each position are in the intervals, which are sorted and disjoint."""
    index = np.searchsorted(starts, positions, "right")
    sums = np.append(0, np.cumsum(ends - starts))
    return sums[index] - np.maximum(0, np.append(0, ends)[index] - positions)
