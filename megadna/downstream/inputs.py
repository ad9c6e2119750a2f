"""What is checked of names and input before torch is imported and a model loaded.

Names that the user chose (classes, labels, numbers, test sets): their order, their columns, their files. megadna's own
columns are contig, start, end, position, name, strand, sequence, truth and label. Columns named after the user's names
have a prefix that none of those has: a class called `start` is the column `p_start`.

Input: one pass by the readers that run later, so that what they would refuse after hours is refused now. It costs
little: a model takes far longer for a base than reading does. Windows of a genome (annotate, search) of which more than
half is N (or another ambiguous base) are left out and counted.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from unicodedata import normalize

import numpy as np

from megadna.alphabet import BASES
from megadna.downstream.interpretation_options import (
    AnnotateOptions,
    GenomeWindowOptions,
    RegionOptions,
    SearchOptions,
)
from megadna.downstream.options import InputOptions, PredictOptions
from megadna.errors import UserError, require, require_one_line
from megadna.genome.records import Stretch, read_regions, read_stretches, record_lengths, sliding_stretches
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)

REGION = ("contig", "start", "end", "name", "strand")
"""First columns of every table of records, regions or windows."""
BASE = ("contig", "position", "name", "strand")
"""First columns of every table of bases."""
TRACK_OF_STRAND = {"+": "plus", "-": "minus", ".": "plus"}
"""Which bigWig file has a row of this strand."""
_INTEGER = re.compile("-?[0-9]+")
_DIGITS = re.compile("([0-9]+)")
_NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\x7f%/\\:*?"<>|]')
_NO_LOWER_CASE = re.compile("[^a-z0-9]")
_LEAST_FOR_UMAP = 20  # windows
_LONGEST_FILE_NAME = 240  # bytes: file systems allow 255, and a temporary name needs some of them


def in_natural_order(names: Iterable[str]) -> list[str]:
    """By value if all are integers; else as text, with runs of digits by value (exon2 before exon10)."""
    chosen = set(names)
    if all(_INTEGER.fullmatch(name) for name in chosen):
        return sorted(chosen, key=lambda name: (Decimal(name), name))
    return sorted(chosen, key=lambda name: (_pieces(name), name))


def _pieces(name: str) -> list[str | Decimal]:
    """Text and numbers alternating, text first."""
    return [Decimal(piece) if number % 2 else piece for number, piece in enumerate(_DIGITS.split(name))]


def require_names(names: Sequence[str], where: str) -> None:
    """UserError if a name is empty, occurs twice, or cannot be written in one line of a table."""
    for name, count in Counter(names).items():
        require(bool(name), f"{where}: a name is empty; give every one a name")
        require(count == 1, f"{where}: {name!r} is there {count} times; give each name once")
        require_one_line(where, name)


def value_columns(names: Sequence[str], *, is_regression: bool) -> list[str]:
    """Columns of probabilities (`p_NAME`) or of numbers (`value_NAME`)."""
    return [f"{'value' if is_regression else 'p'}_{name}" for name in names]


def file_names(names: Sequence[str], around: str) -> dict[str, str]:
    """Each of the (distinct) names as part of a file name `around.format(part)`.

    Characters that a file name cannot have are percent-encoded, the percent sign too, so that two names never give one
    file. Names that differ only in case or Unicode form would be one file on some systems: in these all but a-z and
    0-9 is encoded. UserError if a file name would be too long.
    """
    alike = Counter(normalize("NFKC", name).casefold() for name in names)
    parts = {}
    for name in names:
        unsafe = _NOT_IN_FILE_NAMES if alike[normalize("NFKC", name).casefold()] == 1 else _NO_LOWER_CASE
        parts[name] = unsafe.sub(lambda found: _encoded(found[0]), name)
        size = len(around.format(parts[name]).encode(errors="surrogateescape"))
        if size > _LONGEST_FILE_NAME:
            raise UserError(
                f"{name[:40]!r}...: a file named after it would need {size} bytes of {_LONGEST_FILE_NAME}; shorten it"
            )
    return parts


def bigwig_files(names: list[str], output: Path) -> dict[tuple[str, str], Path]:
    """The file of each name and strand (minus, plus)."""
    signs = sorted(set(TRACK_OF_STRAND.values()))
    parts = file_names(names, f"{output.stem}.{{}}.minus.bw")
    return {
        (name, sign): output.with_name(f"{output.stem}.{parts[name]}.{sign}.bw") for name in names for sign in signs
    }


def _encoded(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def count_unknown(sequences: Iterable[tuple[str, str]], missing: str) -> None:
    """(where, bases) of each: UserError if every base of one is N; the log counts the N, which have no `missing`."""
    total = unknown = 0
    for where, bases in sequences:
        here = len(bases) - sum(map(bases.count, BASES))
        require(here < len(bases), f"{where}: every base is N; leave it out")
        total, unknown = total + len(bases), unknown + here
    if unknown:
        log.warning("%d of %d bases are N: they have no %s", unknown, total, missing)


def read_input(options: InputOptions | RegionOptions, *, context: int = 0) -> Iterator[Stretch]:
    """Every record or region of --bed, with at most `context` bases of its contig (of a circular record) around it."""
    if options.bed is not None:
        return read_regions(options.input, options.bed, record_lengths(options.input), context=context)
    return read_stretches(options.input, column=options.column, circular=tuple(options.circular), context=context)


def check_input(options: InputOptions | RegionOptions) -> int | None:
    """Bases that a model will read; UserError if a record, a region or a name does not fit. None for standard input,
    which can be read only once.

    Several records may have one name (reads and peaks often do) unless coordinates need the name; the log counts them.
    """
    if str(options.input) == "-":
        return None
    with Progress(f"checking {options.input}"):
        return _check_records(options) if options.bed is None else _check_regions(options)


def _check_regions(options: InputOptions | RegionOptions) -> int:
    bigwig = options.written(".bw")
    apart = isinstance(options, PredictOptions) and options.strand == "apart"
    last: dict[tuple[str, str], int] = {}
    bases = 0
    for region in read_input(options):
        bases += region.end - region.start
        key = region.name, "" if apart else region.strand  # a bigWig file each
        if bigwig is not None and region.start < last.get(key, 0):
            raise UserError(f"{bigwig}: a bigWig needs regions that are sorted and do not overlap; use .parquet")
        last[key] = region.end
    return bases


def _check_records(options: InputOptions | RegionOptions) -> int:
    window, step = (options.window, options.step) if isinstance(options, PredictOptions) else (0, 0)
    hashes, bases = array("q"), 0
    for record in read_input(options):
        hashes.append(hash(record.name))  # 8 bytes per record
        size = record.end - record.start
        bases += min(size, window) * (1 + -(-max(0, size - window) // (step or window))) if window else size
    repeated = len(hashes) - len(np.unique(hashes))
    if repeated and (window or options.written(".bw", ".bed") or options.circular):
        record_lengths(options.input, options.column)  # names the record
    if repeated:
        text = "%s: %d of %d records have the name of an earlier one; the rows are in the file's order"
        log.warning(text, options.input, repeated, len(hashes))
    return bases


@dataclass(frozen=True)
class Survey:
    """What a genome has to embed."""

    lengths: dict[str, int]
    """Bases by contig."""
    windows: int
    bases: int
    """Of all windows together: those in two windows count twice."""


def windows_of(options: GenomeWindowOptions, window: int, step: int) -> Iterator[Stretch]:
    """The windows that are not mostly N, in the order of the genome."""
    windows = sliding_stretches(options.genome, window, step, tuple(options.circular))
    return (stretch for stretch in windows if not _is_mostly_n(stretch))


def survey(options: GenomeWindowOptions, window: int, step: int) -> Survey:
    """Read the whole genome; UserError if it cannot be read, two contigs share a name, or no window remains."""
    with Progress(f"checking {options.genome}"):
        lengths = record_lengths(options.genome)
        if short := [name for name, length in lengths.items() if length < window]:
            text = "%s shorter than a window (%d bases), one window each: %s"
            log.warning(text, counted(len(short), "contig"), window, ", ".join(short[:10]))
        kept = bases = left_out = 0
        for stretch in sliding_stretches(options.genome, window, step, tuple(options.circular)):
            if _is_mostly_n(stretch):
                left_out += 1
            else:
                kept += 1
                bases += stretch.end - stretch.start
    if left_out:
        text = "%d of %s left out: more than half of the bases are N"
        log.info(text, left_out, counted(left_out + kept, "window"))
    require(kept > 0, f"{options.genome}: more than half of every window is N; give a genome with known bases")
    return Survey(lengths, kept, bases)


def check_windows(options: AnnotateOptions) -> Survey:
    """What will be embedded; UserError if there are too few windows."""
    found = survey(options, options.window, options.step or options.window)
    least = max(options.clusters, 3)
    require(
        found.windows >= least,
        f"{options.genome}: {counted(found.windows, 'window')} of {options.window} bases, and --clusters "
        f"{options.clusters} needs at least {least}; take a smaller --window or --step, or fewer --clusters",
    )
    enough = options.projection != "umap" or found.windows >= _LEAST_FOR_UMAP
    require(
        enough, f"{options.genome}: UMAP needs {_LEAST_FOR_UMAP} windows, not {found.windows}; say --projection pca"
    )
    return found


def queries_of(options: SearchOptions) -> tuple[list[Stretch], int, int]:
    """(queries, bases of a window, bases from one to the next); UserError if a query is longer than a window, or has
    no A, C, G or T."""
    queries = list(read_stretches(options.input, column=options.column))
    window = options.window or max(len(query.bases) for query in queries)
    step = options.step or max(1, window // 4)
    require(step <= window, f"--step {step} is longer than the windows, which have {window} bases; say --window too")
    for query in queries:
        known = len(query.bases) - query.bases.count("N")
        require(known > 0, f"{options.input}: query {query.name} has no A, C, G or T; leave it out")
        require(
            len(query.bases) <= window,
            f"{options.input}: query {query.name} has {len(query.bases):,} bases, more than --window {window}; cut it, "
            "or give a longer --window",
        )
    if short := sum(2 * len(query.bases) < window for query in queries):
        text = "%d of %s with less than half the bases of a window (%d): compare like with like, by --window"
        log.warning(text, short, counted(len(queries), "query", "queries"), window)
    return queries, window, step


def _is_mostly_n(stretch: Stretch) -> bool:
    return 2 * stretch.bases.count("N") > len(stretch.bases)
