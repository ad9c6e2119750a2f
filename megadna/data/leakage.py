"""How much of a sequence the training split contains, by sketches of 31-mers (megadna.data.sketch).

The chunk grid makes exact comparison blind: a genome against itself shifted by one base shares no chunk. Sketches see
shifted, reverse-complemented and similar copies. The sketches of the sequences in question are held in memory; train
is streamed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megadna.data.contigs import ContigTable
from megadna.data.options import PreprocessOptions
from megadna.data.parts import Part
from megadna.data.sketch import SCALE, sketch_places
from megadna.errors import UserError
from megadna.files import atomic_file
from megadna.progress import Progress
from megadna.reading import first_line

HELD_OUT = ("valid", "test")
_AGAIN = "run megadna preprocess again"
_STRETCH = 1 << 17  # letters sketched at a time: the arrays stay in the cache
_FILTER_BITS = 22


class Bin:
    """Letters, lengths and starts of a split, in a finished or unfinished folder; memory-mapped."""

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        try:
            self.letters = np.memmap(folder / f"{split}.bin", np.uint8, "r")
            count = int(np.fromfile(folder / f"{split}.idx", np.uint64, 1, offset=18)[0])
            self.lengths = np.memmap(folder / f"{split}.idx", np.int32, "r", offset=34, shape=(count,))
            self.starts = np.load(folder / f"{split}.start.npy", mmap_mode="r")
        except Exception as error:  # numpy reads its header as Python: from TokenError to MemoryError
            raise UserError(f"{folder}: its {split} files are damaged ({first_line(error)}); {_AGAIN}") from error
        if self.lengths.min(initial=0) < 0 or int(self.lengths.sum(dtype=np.int64)) != len(self.letters):
            raise UserError(f"{folder / split}.idx: its lengths are not those of the .bin file; {_AGAIN}")

    def batches(self) -> "Batches":
        """The split's chunks."""
        return batches(self.letters, self.lengths)

    def tracked(self, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Letters and ends of the batches, with progress."""
        with Progress(what, len(self.letters), "bases") as progress:
            for _, letters, ends in self.batches():
                yield letters, ends
                progress.advance(len(letters))


Batches = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""(number of the first sequence, letters of several sequences, where each one ends)."""


def batches(letters: np.ndarray, lengths: np.ndarray) -> Batches:
    """Sequences one after the other, in batches of about 100,000 letters."""
    at = first = 0
    while first < len(lengths):
        ends = np.cumsum(lengths[first : first + _STRETCH // 8], dtype=np.int64)
        count = max(1, int(np.searchsorted(ends, _STRETCH, "right")))
        yield first, np.asarray(letters[at : at + int(ends[count - 1])]), ends[:count]
        at, first = at + int(ends[count - 1]), first + count


def sketch_by_chunk(letters: np.ndarray, ends: np.ndarray, scale: int = SCALE) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, chunk numbers) of the sketched 31-mers that lie inside one chunk; `ends` are the chunks' ends."""
    hashes, places = sketch_places(np.asarray(letters), scale)
    chunk = np.searchsorted(ends, places, "right")
    inside = places + 31 <= ends[chunk] if len(places) else np.zeros(0, bool)
    return hashes[inside], chunk[inside]


class Containment:
    """Shares of many sequences' sketches that another collection contains."""

    def __init__(self, batches: Batches, num_sequences: int, scale: int = SCALE) -> None:
        self._scale = scale
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for first, letters, ends in batches:
            found, chunk = sketch_by_chunk(letters, ends, scale)
            hashes.append(found)
            owners.append(chunk + first)
        pairs = np.unique(np.stack((np.concatenate(hashes), np.concatenate(owners).astype(np.uint64))), axis=1)
        self._owners = pairs[1].astype(np.int64)
        self.hashes, self._index = np.unique(pairs[0], return_inverse=True)
        self.sizes = np.bincount(self._owners, minlength=num_sequences)
        self._seen = np.zeros(len(self.hashes), bool)
        # Low bits: the high ones are all zero in a sketch. Most hashes of train end at this table.
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._low_bits(self.hashes)] = True

    @staticmethod
    def _low_bits(hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64((1 << _FILTER_BITS) - 1)).astype(np.int64)

    def search(self, split: Bin) -> "Containment":
        """Mark what a split contains."""
        for letters, ends in split.tracked(f"comparing with {split.split}"):
            self.mark(sketch_by_chunk(letters, ends, self._scale)[0])
        return self

    def mark(self, hashes: np.ndarray) -> None:
        """Mark these hashes as contained."""
        hashes = hashes[self._filter[self._low_bits(hashes)]]
        if len(hashes) and len(self.hashes):
            place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            self._seen[place[self.hashes[place] == hashes]] = True

    def shares(self) -> np.ndarray:
        """float32 per sequence: contained share of its sketch; NaN where it has none (too short, or all N)."""
        hits = np.bincount(self._owners, self._seen[self._index], minlength=len(self.sizes))
        with np.errstate(invalid="ignore"):
            return (hits / self.sizes).astype(np.float32)


def measure_leakage(folder: Path, max_containment: float) -> dict[str, Any]:
    """Write {split}.containment.npy (float32 per held-out chunk) and return the summary for the manifest."""
    summary: dict[str, Any] = {"max_containment": max_containment, "flagged": 0, "splits": {}}
    held = _containments(folder)
    train = Bin(folder, "train")
    for letters, ends in train.tracked("looking for held-out chunks in train"):
        hashes, _ = sketch_by_chunk(letters, ends)
        for containment in held.values():
            containment.mark(hashes)
    for split, containment in held.items():
        shares = containment.shares()
        with atomic_file(folder / f"{split}.containment.npy") as temporary, temporary.open("wb") as file:
            np.save(file, shares)
        known = shares[~np.isnan(shares)]
        flagged = int((known > max_containment).sum())
        summary["splits"][split] = {
            "chunks": len(shares),
            "without_sketch": int(np.isnan(shares).sum()),
            "flagged": flagged,
            "mean": round(float(known.mean()), 6) if len(known) else None,
            "highest": round(float(known.max()), 6) if len(known) else None,
        }
        summary["flagged"] += flagged
    return summary


def _containments(folder: Path) -> dict[str, Containment]:
    bins = {split: Bin(folder, split) for split in HELD_OUT if (folder / f"{split}.idx").exists()}
    return {split: Containment(found.batches(), len(found.lengths)) for split, found in bins.items()}


def leaking_chunks(
    folder: Path, parts: list[Part], options: PreprocessOptions
) -> dict[int, frozenset[tuple[int, int]]]:
    """Chunks to drop, by source: (record number, start on the contig).

    drop_from_heldout: held-out chunks above --max_containment. drop_from_train: train chunks that share a sketched
    31-mer with such a chunk, so that nothing of it is left in train.
    """
    guilty: dict[str, np.ndarray] = {}
    for split in HELD_OUT:
        if (folder / f"{split}.containment.npy").exists():
            shares = np.load(folder / f"{split}.containment.npy")
            guilty[split] = np.flatnonzero(shares > options.max_containment)
    if options.leakage == "drop_from_train":
        guilty = {"train": _train_chunks_with(folder, guilty)}
    return _by_source(folder, parts, guilty)


def _train_chunks_with(folder: Path, flagged: dict[str, np.ndarray]) -> np.ndarray:
    """Train chunks that share a sketched 31-mer with a flagged held-out chunk."""
    wanted = [np.zeros(0, np.uint64)]
    for split, chunks in flagged.items():
        held = Bin(folder, split)
        ends = np.cumsum(held.lengths, dtype=np.int64)
        for chunk in chunks.tolist():
            wanted.append(sketch_places(np.asarray(held.letters[ends[chunk] - held.lengths[chunk] : ends[chunk]]))[0])
    hashes = np.unique(np.concatenate(wanted))
    found = [np.zeros(0, np.int64)]
    first = 0
    for letters, ends in Bin(folder, "train").tracked("looking for train chunks to drop"):
        mine, chunk = sketch_by_chunk(letters, ends)
        found.append(np.unique(chunk[np.isin(mine, hashes)]) + first)
        first += len(ends)
    return np.concatenate(found)


def _by_source(folder: Path, parts: list[Part], guilty: dict[str, np.ndarray]) -> dict[int, frozenset[tuple[int, int]]]:
    """(record number in its source, start on the contig) of chunks, by source number."""
    table = ContigTable.load(folder / "contigs.tsv")
    first_row = np.concatenate(([0], np.cumsum([part.totals.records for part in parts])))
    found: dict[int, set[tuple[int, int]]] = {}
    for split, chunks in guilty.items():
        starts = np.load(folder / f"{split}.start.npy", mmap_mode="r")
        for chunk in chunks.tolist():
            row = table.row_of(split, chunk)
            source = int(np.searchsorted(first_row, row, "right")) - 1
            found.setdefault(source, set()).add((row - int(first_row[source]), int(starts[chunk])))
    return {source: frozenset(pairs) for source, pairs in found.items()}
