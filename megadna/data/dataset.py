"""Reader of dataset folders: the chunks of one split, of one folder or of several, and the groups to blend them by.

In:  DATASET/{split}.bin, {split}.idx (Megatron's IndexedDataset, uint8), {split}.start.npy, contigs.tsv, manifest.json.
Out: `dataset[i]`, `pool[c]`: a chunk as uint8 DNA, a read-only view of the file (no copy, case kept); groups: half-open
     ranges of chunk numbers, with a share each. Also the writer of the .idx, streamed from blocks.

Opening maps files and reads only their headers, so it does not grow with the dataset. An object may be pickled or
forked into loader workers; a pickled one opens its files again.

Layout of the .idx (megatron-core 0.16, indexed_dataset.py; ours is byte-identical to its builder's): magic, version 1,
dtype code 1 (uint8), number of sequences, number of document indices; then int32 lengths, int64 byte pointers, int64
document indices that begin with 0.

contigs.tsv has one line per FASTA record, in input order: source, record, length, then first and last sequence index
for train, valid and test (empty where the record has no chunk in that split). Sequence indices of a split rise from
line to line, which makes locating a chunk a binary search. Nothing is quoted: record is the first word of a header
line, and a source whose name holds a tab or a line end is refused before anything is written. A table may have millions
of lines: one question is answered line by line, and the whole table is held as arrays, never as Python strings.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import csv

from megadna.config import BlendConfig
from megadna.data.manifest import SPLITS, Manifest, Source, load_manifest
from megadna.errors import UserError
from megadna.reading import first_line

IDX_HEADER = b"MMIDIDX\x00\x00"
UINT8_CODE = 1
_FIXED = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents
_AGAIN = "run megadna preprocess again"

Blocks = Callable[[], Iterator[np.ndarray]]
"""Starts a pass over an array that need not fit in memory."""


def write_index(path: Path, lengths: Blocks, num_sequences: int, documents: Blocks, num_documents: int) -> None:
    """Write the .idx of `num_sequences` sequences; `documents` are the indices after the last sequence of each."""
    with path.open("wb") as file:
        file.write(_FIXED.pack(IDX_HEADER, 1, UINT8_CODE, num_sequences, num_documents + 1))
        for block in lengths():
            file.write(block.astype(np.int32).tobytes())
        pointer = 0
        for block in lengths():
            ends = pointer + np.cumsum(block, dtype=np.int64)
            if len(ends):
                file.write(np.concatenate(([pointer], ends[:-1])).astype(np.int64).tobytes())
                pointer = int(ends[-1])
        file.write(np.zeros(1, np.int64).tobytes())
        for block in documents():
            file.write(block.astype(np.int64).tobytes())


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(lengths int32 [N], byte pointers int64 [N]) of an .idx file, memory-mapped."""
    data = map_file(path)
    if len(data) < _FIXED.size:
        raise UserError(f"{path}: cut short; {_AGAIN}")
    magic, version, dtype, sequences, documents = _FIXED.unpack(data[: _FIXED.size].tobytes())
    expected = _FIXED.size + 12 * sequences + 8 * documents
    if (magic, version, dtype) != (IDX_HEADER, 1, UINT8_CODE) or len(data) != expected:
        raise UserError(f"{path}: not a whole uint8 index of Megatron; {_AGAIN}")
    lengths = np.ndarray((sequences,), np.int32, data, _FIXED.size)
    return lengths, np.ndarray((sequences,), np.int64, data, _FIXED.size + 4 * sequences)


def map_file(path: Path) -> np.ndarray:
    """uint8 read-only map of a file's bytes."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {_AGAIN}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty; {_AGAIN}")
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


COLUMNS = ("source", "record", "length", *(f"{split}_{end}" for split in SPLITS for end in ("first", "last")))
HEADER = "\t".join(COLUMNS) + "\n"


def contig_rows(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Source, record and the numbers of each line (-1: none), one line in memory at a time; UserError that names the
    line that does not fit."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {_AGAIN}")
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != len(COLUMNS) or not line.endswith("\n") or (number == 1 and line != HEADER):
                raise UserError(f"{path}: line {number}: damaged; {_AGAIN}")
            if number > 1:
                source, record, *texts = fields
                for text in texts:
                    if text and not text.isdecimal():
                        raise UserError(f"{path}: line {number}: damaged ({text[:20]!r} is no number); {_AGAIN}")
                yield source, record, [int(text) if text else -1 for text in texts]


def find_contig(path: Path, split: str, index: int) -> tuple[str, str]:
    """Source and record that hold sequence `index` of `split`; one line in memory at a time."""
    column = COLUMNS.index(f"{split}_first") - 2
    for source, record, numbers in contig_rows(path):
        if -1 < numbers[column] <= index <= numbers[column + 1]:
            return source, record
    raise UserError(f"{path}: no record holds {split} chunk {index}; {_AGAIN}")


def check_rising(path: Path) -> None:
    """UserError where the sequence indices of a split do not rise from line to line; one line in memory at a time."""
    before = [-1] * len(SPLITS)
    for _, _, numbers in contig_rows(path):
        for split, first in enumerate(numbers[1::2]):
            if -1 < first <= before[split]:
                raise UserError(f"{path}: {SPLITS[split]} columns do not rise; {_AGAIN}")
            before[split] = max(first, before[split])


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
            raise UserError(f"{path}: missing; {_AGAIN}")
        kinds = {name: pyarrow.int64() for name in COLUMNS[2:]} | {name: pyarrow.string() for name in COLUMNS[:2]}
        try:
            table = csv.read_csv(
                path,
                csv.ReadOptions(use_threads=False),
                csv.ParseOptions(delimiter="\t", quote_char=False),
                csv.ConvertOptions(column_types=kinds, null_values=[""], include_columns=COLUMNS),
            )
        except (pyarrow.ArrowException, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); {_AGAIN}") from error
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


class Location(NamedTuple):
    """Source, contig, start and end of a chunk, 0-based and half-open."""

    source: str
    """Name of the source in the manifest."""
    contig: str
    """Name of the FASTA record."""
    start: int
    end: int


class ChunkDataset:
    """One split of a dataset folder."""

    def __init__(self, path: Path | str, split: str) -> None:
        """Open; UserError that names the file and the remedy where something is missing, unfinished or damaged."""
        self.path = Path(path)
        self.split = split
        self.manifest: Manifest = load_manifest(self.path)
        if split not in SPLITS:
            raise UserError(f"{self.path}: no split {split!r}; one of {', '.join(SPLITS)}")
        if not self.manifest.chunks[split]:
            raise UserError(f"{self.path}: holds no {split} chunks; preprocess with a {split} fraction above 0")
        self._open()

    def _open(self) -> None:
        self.lengths, self._pointers = read_index(self.path / f"{self.split}.idx")
        self._bin = map_file(self.path / f"{self.split}.bin")
        chunks, bases = self.manifest.chunks[self.split], self.manifest.bases[self.split]
        if (len(self.lengths), len(self._bin)) != (chunks, bases):
            raise UserError(f"{self.path / self.split}.bin: does not fit manifest.json; {_AGAIN}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Chunk `index` as uint8 DNA, a read-only view; negative indices count from the end.
        UserError where the index points outside the .bin file."""
        start, length = int(self._pointers[index]), int(self.lengths[index])
        if not 0 <= start <= start + length <= len(self._bin):
            raise UserError(f"{self.path / self.split}.idx: chunk {index} lies outside the .bin file; {_AGAIN}")
        return self._bin[start : start + length]

    @cached_property
    def starts(self) -> np.ndarray:
        """uint64 [N], first base of each chunk on its contig, 0-based; memory-mapped."""
        file = self.path / f"{self.split}.start.npy"
        if not file.is_file():
            raise UserError(f"{file}: missing; {_AGAIN}")
        try:
            starts = np.load(file, mmap_mode="r")
        except Exception as error:  # numpy reads its header as Python: from TokenError to MemoryError
            raise UserError(f"{file}: not an array of numbers ({first_line(error)}); {_AGAIN}") from error
        if not isinstance(starts, np.ndarray) or (starts.dtype, starts.shape) != (np.dtype("<u8"), (len(self),)):
            raise UserError(f"{file}: not a uint64 for each of the {len(self)} chunks; {_AGAIN}")
        return starts

    @cached_property
    def contigs(self) -> ContigTable:
        """The table of records, read on first use."""
        return ContigTable.load(self.path / "contigs.tsv")

    def locate(self, index: int, *, keep_table: bool = True) -> Location:
        """Source, contig, start and end of chunk `index`.

        keep_table: keep the table of records in memory for further calls; False reads it up to the record, which is
        slower from the second call on and needs no memory.
        """
        if not -len(self) <= index < len(self):
            raise UserError(f"{self.path}: {self.split} has {len(self)} chunks, no chunk {index}")
        index = int(index) % len(self)
        if keep_table:
            source, contig = self.contigs.name_of(self.contigs.row_of(self.split, index))
        else:
            source, contig = find_contig(self.path / "contigs.tsv", self.split, index)
        start = int(self.starts[index])
        return Location(source, contig, start, start + int(self.lengths[index]))


class ChunkPool:
    """The chunks of several datasets under one numbering."""

    def __init__(self, datasets: list[ChunkDataset]) -> None:
        self.datasets = datasets
        self.chunk_length = max(dataset.manifest.chunk_length for dataset in datasets)
        self.offsets = [0, *np.cumsum([len(dataset) for dataset in datasets]).tolist()]

    @property
    def dataset_id(self) -> str:
        """Identity of the data: the dataset's own, or a hash of those of several in their order."""
        names = [dataset.manifest.dataset_id for dataset in self.datasets]
        return names[0] if len(names) == 1 else hashlib.sha256("".join(names).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return self.offsets[-1]

    def __getitem__(self, chunk: int) -> np.ndarray:
        """A chunk as uint8 DNA, a read-only view of the file."""
        number = bisect_right(self.offsets, chunk) - 1
        return self.datasets[number][chunk - self.offsets[number]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N], bases of each chunk."""
        return self.lengths_of(0, len(self))

    def lengths_of(self, start: int, stop: int) -> np.ndarray:
        """Bases of the chunks start..stop-1, int32; a view of the file where one dataset holds them."""
        pieces = [
            dataset.lengths[max(0, start - offset) : max(0, stop - offset)]
            for dataset, offset in zip(self.datasets, self.offsets, strict=False)
        ]
        pieces = [piece for piece in pieces if len(piece)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def open_chunks(path: str | list[str], split: str) -> ChunkPool:
    """The split of the dataset folder or folders."""
    paths = [path] if isinstance(path, str) else path
    return ChunkPool([ChunkDataset(folder, split) for folder in paths])


@dataclass(frozen=True)
class Group:
    """Chunks that have one share of all samples."""

    name: str
    ranges: list[tuple[int, int]]
    """Half-open ranges of chunk numbers of the pool."""
    share: float
    """Of all samples; the shares of all groups sum to 1."""
    bases: int
    """Bases in the ranges."""


def blend_groups(pool: ChunkPool, split: str, blend: BlendConfig) -> list[Group]:
    """The groups that `blend` asks for, in the order of their first chunk; one of everything where it asks for none."""
    if not blend.by:
        bases_of_all = sum(dataset.manifest.bases[split] for dataset in pool.datasets)
        return [Group("all", [(0, len(pool))], 1.0, bases_of_all)]
    ranges: dict[str, list[tuple[int, int]]] = {}
    for name, span in _named_spans(pool, split, blend.by):
        ranges.setdefault(name, []).append(span)
    bases = {name: sum(int(pool.lengths_of(*span).sum()) for span in spans) for name, spans in ranges.items()}
    shares = _shares(bases, blend)
    return [Group(name, spans, shares[name], bases[name]) for name, spans in ranges.items() if name in shares]


def _named_spans(pool: ChunkPool, split: str, by: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """(group, range of chunk numbers) of each dataset, or of each source that has chunks."""
    for dataset, offset in zip(pool.datasets, pool.offsets, strict=False):
        if by == "dataset":
            yield dataset.path.name, (offset, offset + len(dataset))
            continue
        for source in dataset.manifest.sources:
            start, stop = source.ranges[split]
            if start < stop:
                yield _column(source, by, dataset), (offset + start, offset + stop)


def _column(source: Source, column: str, dataset: ChunkDataset) -> str:
    values = {"source": source.name, "species": source.species, **source.taxa}
    if not values.get(column):
        known = ", ".join(["dataset", *values])
        raise UserError(f"data.blend.by {column}: {dataset.path} has no such value for {source.name}; known: {known}")
    return values[column]


def _shares(bases: dict[str, int], blend: BlendConfig) -> dict[str, float]:
    unknown = [name for name in blend.weights if name not in bases]
    if unknown:
        raise UserError(f"data.blend.weights: no {blend.by} {unknown[0]!r} in the data; there are {', '.join(bases)}")
    weights = blend.weights or bases
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
