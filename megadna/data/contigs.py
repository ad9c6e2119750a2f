"""contigs.tsv of a dataset folder: one line per FASTA record, in input order.

Columns: source, record, length, then first and last sequence index for train, valid and test (empty where the record
has no chunk in that split). Sequence indices of a split rise from line to line, which makes locating a chunk a binary
search. Nothing is quoted: record is the first word of a header line, and a source whose name holds a tab or a line end
is refused before anything is written (megadna.data.inputs).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import csv

from megadna.data.manifest import SPLITS
from megadna.errors import UserError

COLUMNS = ("source", "record", "length", *(f"{split}_{end}" for split in SPLITS for end in ("first", "last")))
HEADER = "\t".join(COLUMNS) + "\n"


@dataclass(frozen=True)
class ContigTable:
    """The records of a dataset, by column."""

    sources: list[str]
    records: list[str]
    lengths: np.ndarray
    """int64 [R], letters in the record."""
    first: dict[str, np.ndarray]
    """Per split int64 [R]: first sequence index, -1 where the record has no chunk there."""
    last: dict[str, np.ndarray]
    """Per split int64 [R]: last sequence index, -1 where the record has no chunk there."""

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
        numbers = [table[name].fill_null(-1).to_numpy() for name in COLUMNS[2:]]
        return cls(
            sources=table["source"].to_pylist(),
            records=table["record"].to_pylist(),
            lengths=numbers[0],
            first=dict(zip(SPLITS, numbers[1::2], strict=True)),
            last=dict(zip(SPLITS, numbers[2::2], strict=True)),
        )

    @cached_property
    def _present(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        rows = {split: np.flatnonzero(first >= 0) for split, first in self.first.items()}
        return {split: (rows[split], self.first[split][rows[split]]) for split in rows}

    def row_of(self, split: str, index: int) -> int:
        """Line (0-based, without the header) of the record that holds sequence `index` of `split`."""
        rows, first = self._present[split]
        return int(rows[np.searchsorted(first, index, side="right") - 1])
