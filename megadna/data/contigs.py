"""contigs.tsv of a dataset folder: one line per FASTA record, in input order.

Columns: source, record, length, then first and last sequence index for train, valid and test (empty where the record
has no chunk in that split). Sequence indices of a split rise from line to line, which makes locating a chunk a binary
search.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

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
        lines = path.read_text(encoding="utf-8").split("\n")
        if lines[0] + "\n" != HEADER:
            raise UserError(f"{path}: line 1: not the header of a contig table; run megadna preprocess again")
        rows = [line.split("\t") for line in lines[1:] if line]
        for number, row in enumerate(rows, start=2):
            if len(row) != len(COLUMNS):
                raise UserError(f"{path}: line {number}: {len(row)} columns instead of {len(COLUMNS)}")
        columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
        numbers = [np.array([int(value) if value else -1 for value in column], np.int64) for column in columns[2:]]
        return cls(
            sources=list(columns[0]),
            records=list(columns[1]),
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
