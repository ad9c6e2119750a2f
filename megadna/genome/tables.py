"""Parquet, CSV, TSV and line files -> FASTA text, one record a row, named row_1, row_2, ... or by a name column."""

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from megadna.errors import UserError

_FLUSH = 1 << 17


@dataclass(frozen=True)
class TableFormat:
    """Where the sequences of a table or line file stand."""

    column: str = ""
    """Column that holds the sequences."""
    lines: bool = False
    """One sequence a line, no header."""
    spaced_kmers: bool = False
    """Sequences are overlapping k-mers with blanks between (DNABERT), joined again."""


def table_blocks(path: Path, table: TableFormat) -> Iterator[bytes]:
    """FASTA text of every row."""
    parts: list[bytes] = []
    size = 0
    for number, sequence in enumerate(_sequences(path, table), start=1):
        text = join_kmers(sequence, f"{path}: row {number}") if table.spaced_kmers else sequence
        if ">" in text or not text.isascii():
            raise UserError(f"{path}: row {number}: not a nucleotide sequence: {text[:20]!r}")
        parts.append(b">row_%d\n%s\n" % (number, text.strip().encode()))
        size += len(parts[-1])
        if size >= _FLUSH:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def join_kmers(text: str, where: str) -> str:
    """`ACG CGT GTT` -> `ACGTT`; UserError (beginning with `where`) if neighbours do not overlap by k - 1."""
    kmers = text.split()
    for left, right in pairwise(kmers):
        if len(left) != len(right) or left[1:] != right[:-1]:
            raise UserError(f"{where}: {left} {right} are no overlapping k-mers; leave out --spaced_kmers")
    return "".join(kmers[:1] + [kmer[-1] for kmer in kmers[1:]])


def _sequences(path: Path, table: TableFormat) -> Iterator[str]:
    if not table.lines and not table.column:
        raise UserError(f"{path}: a table; say which column holds the sequences with --column")
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return _parquet(path, table.column)
    return _lines(path) if table.lines else _delimited(path, table.column)


def _open_text(path: Path) -> TextIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return io.TextIOWrapper(gzip.open(path) if packed else path.open("rb"), encoding="utf-8-sig", newline="")


def _lines(path: Path) -> Iterator[str]:
    with _open_text(path) as file:
        try:
            yield from (line.strip() for line in file if line.strip())
        except (EOFError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as lines of text ({error})") from error


def _delimited(path: Path, column: str) -> Iterator[str]:
    tabs = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    with _open_text(path) as file:
        try:
            rows = csv.DictReader(file, delimiter="\t" if tabs else ",")
            if column not in (rows.fieldnames or []):
                raise UserError(f"{path}: no column {column!r}; it has {', '.join(rows.fieldnames or ['none'])}")
            for row in rows:
                if row[column] is None:
                    raise UserError(f"{path}: line {rows.line_num}: column {column!r} is missing")
                yield row[column]
        except (EOFError, OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read as a table ({error})") from error


def _parquet(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for number, value in enumerate(batch.column(0).to_pylist(), start=1):
                if not isinstance(value, str):
                    raise UserError(f"{path}: column {column!r} holds {type(value).__name__}, not text (row {number})")
                yield value
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: the Parquet file is damaged ({error})") from error
