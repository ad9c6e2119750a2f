"""Names that the user chose (classes, labels, numbers, test sets): their order, their columns, their files.

The columns of the program are contig, start, end, position, name, strand, sequence, truth and label. A column named
after the user's name has a prefix that none of those has, so that a class called `start` is the column `p_start`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from unicodedata import normalize

from megadna.errors import UserError, require, require_one_line

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
