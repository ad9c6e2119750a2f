"""Reader of one split of a dataset folder: chunks of nucleotides, memory-mapped.

In:  DATASET/{split}.bin, {split}.idx (Megatron's IndexedDataset, uint8), {split}.start.npy, contigs.tsv, manifest.json.
Out: `dataset[i]` is the i-th chunk as uint8 letters, a read-only view of the file (no copy, case kept).

Opening maps files and reads only their headers, so it does not grow with the dataset. An object may be pickled or
forked into loader workers; a pickled one opens its files again.
"""

import struct
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megadna.data.contigs import ContigTable, find_contig
from megadna.data.indexed import IDX_HEADER, UINT8_CODE
from megadna.data.manifest import SPLITS, Manifest, load_manifest
from megadna.errors import UserError
from megadna.reading import first_line

_AGAIN = "run megadna preprocess again"
_FIXED = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents


class Location(NamedTuple):
    """Where a chunk lies on its genome: 0-based, half-open."""

    source: str
    """Name of the source in the manifest."""
    contig: str
    """Name of the FASTA record."""
    start: int
    """First base."""
    end: int
    """One past the last base."""


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
        idx = _map_file(self.path / f"{self.split}.idx")
        self._bin = _map_file(self.path / f"{self.split}.bin")
        if len(idx) < _FIXED.size:
            raise UserError(f"{self.path / self.split}.idx: cut short; {_AGAIN}")
        magic, version, dtype, sequences, documents = _FIXED.unpack(idx[: _FIXED.size].tobytes())
        expected = _FIXED.size + 12 * sequences + 8 * documents
        if (magic, version, dtype) != (IDX_HEADER, 1, UINT8_CODE) or len(idx) != expected:
            raise UserError(f"{self.path / self.split}.idx: not a whole uint8 index of Megatron; {_AGAIN}")
        if sequences != self.manifest.chunks[self.split] or len(self._bin) != self.manifest.bases[self.split]:
            raise UserError(f"{self.path / self.split}.bin: does not fit manifest.json; {_AGAIN}")
        at = _FIXED.size
        self.lengths = np.ndarray((sequences,), np.int32, idx, at)
        """int32 [N], bases of each chunk; memory-mapped."""
        self._pointers = np.ndarray((sequences,), np.int64, idx, at + 4 * sequences)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Letters of chunk `index`, uint8 [lengths[index]], a read-only view; negative indices count from the end.
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

        keep_table: hold the table of records for further calls; False reads it up to the record, which is slower from
        the second call on and needs no memory.
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


def _map_file(path: Path) -> np.ndarray:
    """uint8 read-only map of a file's bytes."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {_AGAIN}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty; {_AGAIN}")
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
