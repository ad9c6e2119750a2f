"""A text column of a Parquet file, batch by batch, with memory bounded by bytes and not by rows.

A page of the file is small on disk where its values repeat: a dictionary keeps each once, and compression keeps one of
a run. Arrow unpacks what a batch of rows asks for, so the rows of a batch follow from the longest value that the
column's encoding can give (specification: https://parquet.apache.org/docs/file-format/data-pages/encodings/).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet

from megadna.errors import UserError
from megadna.genome.tables import refuse_bomb

_ROWS = 1024
_BATCH = 1 << 24  # bytes of a batch of rows
_PIECE = 1 << 20  # bytes read from disk to see a dictionary; without it, a whole row group
_DICTIONARY = ("RLE_DICTIONARY", "PLAIN_DICTIONARY")


def text_batches(path: Path, column: str) -> Iterator[pyarrow.RecordBatch]:
    """Batches of at most 1,024 rows of a column. UserError where there is none of that name, or no text in it, or where
    a row group unpacks to far more than its size on disk."""
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
