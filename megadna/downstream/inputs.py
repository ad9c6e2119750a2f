"""Names that the user chose (classes, labels, numbers, test sets): their order, their columns, their files.

The columns of the program are contig, start, end, position, name, strand, sequence, truth and label. A column named
after the user's name has a prefix that none of those has, so that a class called `start` is the column `p_start`.

What can be said of the input and output of embed and predict before torch is imported and a model loaded.

One pass over the input, by the readers that run later: what they would refuse after hours is refused now. Reading is
a small share of a run: a model takes far longer for a base.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from unicodedata import normalize

import numpy as np

from megadna.downstream.options import InputOptions, PredictOptions
from megadna.errors import UserError, require, require_one_line
from megadna.genome.records import Stretch, read_regions, read_stretches, record_lengths
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

REGION = ("contig", "start", "end", "name", "strand")
"""First columns of every table of records, regions or windows."""
BASE = ("contig", "position", "name", "strand")
"""First columns of every table of bases."""
_INTEGER = re.compile("-?[0-9]+")
_DIGITS = re.compile("([0-9]+)")
_NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\x7f%/\\:*?"<>|]')
_NO_LOWER_CASE = re.compile("[^a-z0-9]")
_LONGEST_FILE_NAME = 240  # bytes: file systems allow 255, and a temporary name needs some of them


def in_natural_order(names: Iterable[str]) -> list[str]:
    """By value where all are integers; else as text, runs of digits in it by value (exon2 before exon10)."""
    chosen = set(names)
    if all(_INTEGER.fullmatch(name) for name in chosen):
        return sorted(chosen, key=lambda name: (Decimal(name), name))
    return sorted(chosen, key=lambda name: (_pieces(name), name))


def _pieces(name: str) -> list[str | Decimal]:
    """Text and numbers in turn, text first."""
    return [Decimal(piece) if place % 2 else piece for place, piece in enumerate(_DIGITS.split(name))]


def require_names(names: Sequence[str], where: str) -> None:
    """UserError where a name is empty, occurs twice, or cannot be written in one line of a table."""
    for name, count in Counter(names).items():
        require(bool(name), f"{where}: a name is empty; give every one a name")
        require(count == 1, f"{where}: {name!r} is there {count} times; each name once")
        require_one_line(where, name)


def value_columns(names: Sequence[str], *, is_regression: bool) -> list[str]:
    """Columns of probabilities (`p_NAME`) or of numbers (`value_NAME`)."""
    return [f"{'value' if is_regression else 'p'}_{name}" for name in names]


def file_names(names: Sequence[str], around: str) -> dict[str, str]:
    """Each of the (distinct) names as part of a file name `around.format(part)`.

    What a file name cannot hold is percent-encoded, the percent sign too, so that two names never give one file. Names
    that differ in case or Unicode form only would be one file on some systems: there all but a-z and 0-9 is encoded.
    UserError where a file name would be too long.
    """
    alike = Counter(normalize("NFKC", name).casefold() for name in names)
    parts = {}
    for name in names:
        unsafe = _NOT_IN_FILE_NAMES if alike[normalize("NFKC", name).casefold()] == 1 else _NO_LOWER_CASE
        parts[name] = unsafe.sub(lambda found: _encoded(found[0]), name)
        size = len(around.format(parts[name]).encode(errors="surrogateescape"))
        if size > _LONGEST_FILE_NAME:
            raise UserError(
                f"{name[:40]!r}...: a file named after it has {size} bytes; at most {_LONGEST_FILE_NAME} go"
            )
    return parts


def _encoded(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode())


def check_input(options: InputOptions) -> int | None:
    """Bases that a model will read; UserError where a record, a region or a name does not fit. None for standard input,
    which can be read but once.

    Records of one name are allowed where the order of the rows tells them apart, and counted in the log (reads and
    peaks often share a name); not where coordinates need the name.
    """
    if str(options.input) == "-":
        return None
    with Progress(f"checking {options.input}"):
        return _check_records(options) if options.bed is None else _check_regions(options)


def _check_regions(options: InputOptions) -> int:
    ends_in_bigwig = options.output is not None and options.output.suffix == ".bw"
    apart = isinstance(options, PredictOptions) and options.strand == "apart"
    last: dict[tuple[str, str], int] = {}
    bases = 0
    assert options.bed is not None
    for region in read_regions(options.input, options.bed, record_lengths(options.input)):
        bases += region.end - region.start
        if ends_in_bigwig:
            _require_apart(region, last, apart, options.output)
    return bases


def _check_records(options: InputOptions) -> int:
    window = options.window if isinstance(options, PredictOptions) else 0
    step = (isinstance(options, PredictOptions) and options.step) or window
    hashes, bases = array("q"), 0
    for record in read_stretches(options.input, column=options.column, circular=tuple(options.circular)):
        hashes.append(hash(record.name))  # 8 bytes a record
        size = record.end - record.start
        bases += min(size, window) * (1 + -(-max(0, size - window) // step)) if window else size
    sorted_hashes = np.sort(hashes)
    repeated = int((sorted_hashes[1:] == sorted_hashes[:-1]).sum())
    in_coordinates = options.output is not None and options.output.suffix in (".bw", ".bed")
    if repeated and (window or in_coordinates or options.circular):
        record_lengths(options.input, options.column)  # names the record
    if repeated:
        said = "%s: %d of %d records have the name of an earlier one; the rows are in the file's order"
        log.warning(said, options.input, repeated, len(hashes))
    return bases


def _require_apart(region: Stretch, last: dict[tuple[str, str], int], apart: bool, output: Path | None) -> None:
    """UserError where the region begins before the end of the one before it, in the same file."""
    key = region.name, "" if apart else region.strand
    if region.start < last.get(key, 0):
        raise UserError(f"{output}: a bigWig needs regions that are sorted and do not overlap; use .parquet")
    last[key] = region.end
