"""Parquet, CSV, TSV and line files (read by pyarrow) -> FASTA text, one record a row, named row_1, row_2, ..."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv

from megadna.errors import UserError

_FLUSH = 1 << 17
_LONGEST_ROW = 1 << 25  # bytes


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
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"PAR1":
            from megadna.genome.parquet import text_batches  # pyarrow's takes a tenth of a second

            batches = text_batches(path, table.column)
        else:
            batches = _delimited(path, table, "gzip" if magic[:2] == b"\x1f\x8b" else None)
        for batch in batches:
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise UserError(f"{path}: column {table.column!r} holds {type(value).__name__}, not text")
                yield value
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as {'lines' if table.lines else 'a table'} ({what})") from error


def _delimited(path: Path, table: TableFormat, compression: str | None) -> Iterator[pyarrow.RecordBatch]:
    """Rows of a CSV or TSV file; a line file is one without header whose only column no letter ends."""
    tabs = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    column = "line" if table.lines else table.column
    delimiter = "\x1f" if table.lines else "\t" if tabs else ","

    def read(**options: Any) -> csv.CSVStreamingReader:
        return csv.open_csv(
            pyarrow.input_stream(str(path), compression=compression),
            csv.ReadOptions(use_threads=False, block_size=_LONGEST_ROW, column_names=["line"] if table.lines else None),
            csv.ParseOptions(delimiter=delimiter, quote_char=False if table.lines else '"'),
            csv.ConvertOptions(column_types={column: pyarrow.string()}, **options),
        )

    try:
        yield from read(include_columns=[column])
    except KeyError:
        _require_column(path, column, read().schema.names)


def _require_column(path: Path, column: str, names: list[str]) -> None:
    if column not in names:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(names)}")
