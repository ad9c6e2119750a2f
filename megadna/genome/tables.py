"""Parquet, CSV and TSV files (read by pyarrow) -> FASTA text, one record a row, named row_1, row_2, ...

Memory is bounded by bytes and not by rows. A page of a Parquet file is small on disk where its values repeat: a
dictionary keeps each once, and compression keeps one of a run. Arrow unpacks a whole batch of rows, so the rows of a
batch follow from the longest value that the column's encoding can give (specification:
https://parquet.apache.org/docs/file-format/data-pages/encodings/).
"""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
from isal import igzip
from pyarrow import compute, csv, parquet

from megadna.errors import UserError
from megadna.genome.packed import as_file, file_blocks, refuse

_ROWS = 1024
_BATCH = 1 << 24  # bytes of a batch of rows
_PIECE = 1 << 20  # bytes read from disk to see a dictionary; without it, a whole row group
_DICTIONARY = ("RLE_DICTIONARY", "PLAIN_DICTIONARY")


def text_batches(path: Path, column: str) -> Iterator[pyarrow.RecordBatch]:
    """Batches of at most 1,024 rows of a column. UserError where it does not exist or is not text, or where a
    row group unpacks to far more than its size on disk."""
    file = parquet.ParquetFile(path)
    schema = file.schema_arrow
    if column not in schema.names:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    text = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(text) or pyarrow.types.is_large_string(text) or pyarrow.types.is_string_view(text)):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text")
    as_dictionary = parquet.ParquetFile(path, read_dictionary=[column], buffer_size=_PIECE)
    for group in range(file.num_row_groups):
        chunk = _chunk(path, file, group, column)
        refuse_bomb(path, chunk.total_uncompressed_size, chunk.total_compressed_size)
        rows = _rows(chunk, _longest_entry(as_dictionary, group, column, chunk))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=[column])


def refuse_large_table(path: Path) -> None:
    """UserError where the whole table would take far more memory than its file's size explains."""
    file = parquet.ParquetFile(path)
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    as_dictionary = parquet.ParquetFile(path, read_dictionary=leaves, buffer_size=_PIECE)
    size = 0
    for group in range(file.num_row_groups):
        for number, leaf in enumerate(leaves):
            chunk = file.metadata.row_group(group).column(number)
            longest = _longest_entry(as_dictionary, group, leaf, chunk)
            size += chunk.total_uncompressed_size + chunk.num_values * (8 + longest)
    refuse_bomb(path, size, path.stat().st_size)


def _chunk(path: Path, file: Any, group: int, column: str) -> Any:
    """Metadata of a column's part of a row group; UserError where the row group lacks it."""
    found = file.metadata.row_group(group)
    parts = [part for part in map(found.column, range(found.num_columns)) if part.path_in_schema == column]
    if not parts:
        raise UserError(f"{path}: damaged: row group {group} has no column {column!r}; fetch it again")
    return parts[0]


def _longest_entry(as_dictionary: Any, group: int, column: str, chunk: Any) -> int:
    """Bytes of the longest value of a column's dictionary, which is read alone; 0 where it has none."""
    if chunk.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") or not chunk.num_values:
        return 0
    if not set(_DICTIONARY) & set(chunk.encodings):
        return 0
    first = next(as_dictionary.iter_batches(batch_size=1, row_groups=[group], columns=[column]), None)
    values = None if first is None else first.column(0)
    if values is None or not pyarrow.types.is_dictionary(values.type):
        return int(chunk.total_uncompressed_size)
    lengths = compute.binary_length(values.dictionary)
    return int(compute.max(lengths).as_py() or 0)


def _rows(chunk: Any, longest: int) -> int:
    """Rows of a batch: its values fit _BATCH, where they are as long as the column's mean or as its dictionary's
    longest; where a value may repeat the one before (DELTA_BYTE_ARRAY), as the whole column."""
    size = int(chunk.total_uncompressed_size)
    if "DELTA_BYTE_ARRAY" in chunk.encodings:
        longest = max(longest, size)
    row = max(longest, size // max(1, chunk.num_values), 1)
    return max(1, min(_ROWS, _BATCH // row))


_FLUSH = 1 << 17
_SMALL = 1 << 29  # bytes that any file may take
_RATIO = 200  # times its own size that a larger one may take; sequences take 4 to 20 times, labels of bases 40
_COLUMNS = 5_000
_LONGEST_ROW = 1 << 25  # bytes


def table_blocks(path: Path, column: str) -> Iterator[bytes]:
    """FASTA text of every row."""
    parts: list[bytes] = []
    size = 0
    for number, text in enumerate(_sequences(path, column), start=1):
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
            raise UserError(f"{where}: {left} {right} are not overlapping k-mers")
    return "".join(kmers[:1] + [kmer[-1] for kmer in kmers[1:]])


def open_bounded(path: Path, separator: str) -> io.BufferedReader:
    """The bytes of a table file, plain or gzip, for a reader that takes all of it; UserError where it is no text
    (UTF-16, a PDF ...), has more columns than a table has, or where more comes out than `refuse_bomb` allows."""
    opened = as_file(_bounded_blocks(path))
    refuse(path, opened.peek()[:18])
    columns = opened.peek().partition(b"\n")[0].count(separator.encode()) + 1
    if columns > _COLUMNS:
        raise UserError(f"{path}: its header line has more than {_COLUMNS:,} columns; leave out those not needed")
    return opened


def _bounded_blocks(path: Path) -> Iterator[bytes]:
    """The bytes, unpacked if they are packed as gzip; UserError beyond what `refuse_bomb` allows."""
    with path.open("rb") as packed:
        is_gzip = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        read, size = 0, path.stat().st_size
        for block in file_blocks(igzip.open(packed, "rb") if is_gzip else packed):
            read += len(block)
            refuse_bomb(path, read, size)
            yield block


def refuse_bomb(path: Path, unpacked: int, packed: int) -> None:
    """UserError where `packed` bytes on disk take memory out of all proportion."""
    if unpacked > _SMALL and unpacked > _RATIO * packed:
        raise UserError(
            f"{path}: {packed:,} bytes unpack to {unpacked:,}: not read, as no sequences shrink so much; write the "
            "table again without repeated rows, or as FASTA"
        )


def _sequences(path: Path, column: str) -> Iterator[str]:
    if not column:
        raise UserError(f"{path}: a table; name the column of the sequences with --column")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        for batch in text_batches(path, column) if magic == b"PAR1" else _delimited(path, column, magic):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise UserError(f"{path}: column {column!r} holds {type(value).__name__}, not text")
                yield value
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        if "straddling" in what:  # pyarrow's word for a row longer than a block
            what = f"a row is longer than {_LONGEST_ROW:,} bytes; give it as FASTA"
        raise UserError(f"{path}: cannot be read as a table ({what})") from error


def _delimited(path: Path, column: str, magic: bytes) -> Iterator[pyarrow.RecordBatch]:
    """The column of a CSV or TSV file."""
    is_tsv = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))

    def read(**options: Any) -> csv.CSVStreamingReader:
        return csv.open_csv(
            pyarrow.input_stream(str(path), compression="gzip" if magic[:2] == b"\x1f\x8b" else None),
            csv.ReadOptions(use_threads=False, block_size=_LONGEST_ROW),
            csv.ParseOptions(delimiter="\t" if is_tsv else ","),
            csv.ConvertOptions(column_types={column: pyarrow.string()}, **options),
        )

    try:
        yield from read(include_columns=[column])
    except KeyError as error:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(read().schema.names)}") from error
