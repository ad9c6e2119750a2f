"""contigs.tsv of a dataset folder: one line per FASTA record, in input order.

Columns: source, record, length, then first and last sequence index for train, valid and test (empty where the record
has no chunk in that split). Sequence indices of a split rise from line to line, which makes locating a chunk a binary
search. Nothing is quoted: record is the first word of a header line, and a source whose name holds a tab or a line end
is refused before anything is written (megadna.data.inputs). A table may have millions of lines: one question is
answered line by line, and the whole table is held as arrays, never as Python strings.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import csv

from megadna.data.manifest import SPLITS
from megadna.errors import UserError

COLUMNS = ("source", "record", "length", *(f"{split}_{end}" for split in SPLITS for end in ("first", "last")))
HEADER = "\t".join(COLUMNS) + "\n"


def contig_rows(path: Path) -> Iterator[list[str]]:
    """The fields of each line, one line in memory at a time; UserError with the line that does not fit."""
    if not path.is_file():
        raise UserError(f"{path}: missing; run megadna preprocess again")
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != len(COLUMNS) or not line.endswith("\n") or (number == 1 and line != HEADER):
                raise UserError(f"{path}: line {number}: damaged; run megadna preprocess again")
            if number > 1:
                yield fields


def find_contig(path: Path, split: str, index: int) -> tuple[str, str]:
    """Source and record that hold sequence `index` of `split`; reads the table without holding it."""
    column = COLUMNS.index(f"{split}_first")
    for fields in contig_rows(path):
        if fields[column] and _number(path, fields[column]) <= index <= _number(path, fields[column + 1]):
            return fields[0], fields[1]
    raise UserError(f"{path}: no record holds {split} chunk {index}; run megadna preprocess again")


def check_rising(path: Path) -> None:
    """UserError where the sequence indices of a split do not rise from line to line; holds one line at a time."""
    columns = {split: COLUMNS.index(f"{split}_first") for split in SPLITS}
    before = dict.fromkeys(SPLITS, -1)
    for fields in contig_rows(path):
        for split, column in columns.items():
            if fields[column]:
                first = _number(path, fields[column])
                if first <= before[split]:
                    raise UserError(f"{path}: {split} columns do not rise; run megadna preprocess again")
                before[split] = first


def _number(path: Path, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{path}: damaged ({text[:20]!r} is no number); run megadna preprocess again")
    return int(text)


@dataclass(frozen=True)
class ContigTable:
    """The records of a dataset, by column."""

    names: pyarrow.Table
    """Columns source and record."""
    lengths: np.ndarray
    """int64 [R]: bases of each record."""
    first: dict[str, np.ndarray]
    """Per split int64 [R]: first sequence index, -1 where the record has no chunk there."""
    last: dict[str, np.ndarray]
    """Per split int64 [R]: last sequence index, -1 where the record has no chunk there."""
    _present: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "ContigTable":
        """Read the table; UserError with the line that does not fit."""
        if not path.is_file():
            raise UserError(f"{path}: missing; run megadna preprocess again")
        kinds = {name: pyarrow.int64() for name in COLUMNS[2:]} | {name: pyarrow.string() for name in COLUMNS[:2]}
        try:
            table = csv.read_csv(
                path,
                csv.ReadOptions(use_threads=False),
                csv.ParseOptions(delimiter="\t", quote_char=False),
                csv.ConvertOptions(column_types=kinds, null_values=[""], include_columns=COLUMNS),
            )
        except (pyarrow.ArrowException, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); run megadna preprocess again") from error
        first, last = (
            {split: table[f"{split}_{end}"].fill_null(-1).to_numpy() for split in SPLITS} for end in ("first", "last")
        )
        return cls(table.select(["source", "record"]), table["length"].to_numpy(), first, last)

    def row_of(self, split: str, index: int) -> int:
        """Line (0-based, without the header) of the record that holds sequence `index` of `split`."""
        if split not in self._present:
            rows = np.flatnonzero(self.first[split] >= 0)
            self._present[split] = rows, self.first[split][rows]
        rows, first = self._present[split]
        return int(rows[np.searchsorted(first, index, side="right") - 1])

    def name_of(self, row: int) -> tuple[str, str]:
        """Source and record of a line."""
        return self.names["source"][row].as_py(), self.names["record"][row].as_py()
