"""FracMinHash sketches of canonical 31-mers: the hashes below 1/64 of the range
(Irber et al. 2022, doi:10.1101/2022.01.11.475838).

A k-mer is canonical: the smaller of its two strands' codes. K-mers with a letter other than A, C, G, T (either case;
U as T) have no hash. Own numpy code: it works on whole chunks at once, at about 50 million bases a second and core.

How much of a sequence the training split contains, by sketches of 31-mers (megadna.data.leakage).

The chunk grid makes exact comparison blind: a genome against itself shifted by one base shares no chunk. Sketches see
shifted, reverse-complemented and similar copies. The sketches of the sequences in question are held in memory; train
is streamed.

How much of a benchmark's sequences a dataset's training split contains: by 31-mers, or by coordinates for a BED
file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megadna.alphabet import OTHER, table
from megadna.data.contigs import ContigTable
from megadna.data.dataset import ChunkDataset
from megadna.data.options import PreprocessOptions
from megadna.data.order import mix
from megadna.data.parts import Part
from megadna.errors import UserError
from megadna.files import atomic_file
from megadna.genome.bed import bases_before, locate, read_regions
from megadna.genome.contigs import names_of, renamed
from megadna.genome.pieces import scan_file
from megadna.genome.sources import open_sequences
from megadna.log import get_logger
from megadna.progress import Progress
from megadna.reading import first_line

log = get_logger(__name__)

K = 31
SCALE = 64
_CODES = table({"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}, OTHER)


def kmer_codes(letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical 62-bit code (uint64 [n - 30]) of every 31-mer of uint8 letters, and whether it is all A, C, G, T."""
    codes = _CODES[letters]
    good = codes < 4
    if len(codes) < K:
        return np.zeros(0, np.uint64), np.zeros(0, bool)
    forward = _packed((codes & 3).astype(np.uint64))
    # Complement is 3 - code; packing the reversed complement gives the other strand's codes in reverse order.
    backward = _packed((3 - (codes & 3)).astype(np.uint64)[::-1])[::-1]
    bad = np.concatenate(([0], np.cumsum(~good)))
    return np.minimum(forward, backward), bad[K:] == bad[:-K]


def _packed(codes: np.ndarray) -> np.ndarray:
    """2-bit codes of all 31-mers, by doubling: 1, 2, 4, 8, 16 letters, then 16 + 15."""
    words = {1: codes}
    for size in (1, 2, 4, 8):
        half = words[size]
        words[2 * size] = (half[:-size] << np.uint64(2 * size)) | half[size:]
    count = len(codes) - K + 1
    # 31 = 16 + 8 + 4 + 2 + 1 letters, each word taken where the one before it ends.
    packed, at = words[16][:count], 16
    for size in (8, 4, 2, 1):
        packed = (packed << np.uint64(2 * size)) | words[size][at : at + count]
        at += size
    return packed


def sketch_places(letters: np.ndarray, scale: int = SCALE) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, first letters) of the 31-mers that belong to the sketch, in order, with repeats; 1 in `scale` does."""
    codes, good = kmer_codes(letters)
    hashes = mix(codes)  # invertible, so that low hashes are a random sample of k-mers
    places = np.flatnonzero((hashes <= np.uint64(2**64 // scale - 1)) & good)
    return hashes[places], places


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


_WANTED_HASHES = 20  # per sequence of the benchmark, on average


@dataclass(frozen=True)
class Overlap:
    """Contained share of each sequence."""

    names: list[str]
    shares: np.ndarray
    """float32; NaN where a sequence has no 31-mer of A, C, G and T in its sketch."""


def sequence_overlap(dataset: Path, split: str, path: Path, column: str = "") -> Overlap:
    """By 31-mers, for a FASTA file or a column of a table (default: sequence); short sequences get denser sketches, so
    that each has about 20 hashes."""
    ChunkDataset(dataset, split)
    with Progress(f"reading {path}"):
        names, letters, lengths = _read(path, column)
    mean_kmers = max(1, int(lengths.mean()) - K + 1)
    scale = int(np.clip(mean_kmers // _WANTED_HASHES, 1, SCALE))
    containment = Containment(batches(letters, lengths), len(lengths), scale)
    return Overlap(names, containment.search(Bin(dataset, split)).shares())


def _read(path: Path, column: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    names: list[str] = []
    parts, starts, size = [], [], 0
    for piece, dna in scan_file(open_sequences(path, column)):
        parts.append(dna.copy())
        starts.append(piece.positions + size)
        names += [name.decode(errors="replace") for name in names_of(piece.headers)]
        size += piece.size
    if not names:
        raise UserError(f"{path}: holds no sequence")
    return names, np.concatenate(parts), np.diff(np.concatenate(starts), append=size)


def interval_overlap(dataset: Path, split: str, bed: Path) -> Overlap:
    """By coordinates: the share of each (merged) BED interval that chunks of the split cover. UserError where a contig
    of the BED file is not in the dataset, or an interval passes its end."""
    reader = ChunkDataset(dataset, split)
    table, regions = reader.contigs, read_regions(bed)
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(table.names["record"].to_pylist()):
        rows.setdefault(record, []).append(row)
    contigs = locate(bed, regions.first_lines, rows, str(dataset))
    if said := renamed(contigs):
        log.info("contig names matched: %s", said)
    names, shares = [], []
    for name, intervals in regions.merged.items():
        regions.check_ends(name, max(int(table.lengths[row]) for row in rows[contigs[name]]))
        names += [f"{name}:{start}-{end}" for start, end in intervals]
        starts, ends = np.array(intervals).T
        spans = [_chunk_spans(reader, row) for row in rows[contigs[name]]]
        covered = [bases_before(*span, ends) - bases_before(*span, starts) for span in spans]
        shares.append(np.max(covered, axis=0) / (ends - starts))
    return Overlap(names, np.concatenate(shares).astype(np.float32))


def _chunk_spans(reader: ChunkDataset, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends on the contig of a record's chunks."""
    first, last = int(reader.contigs.first[reader.split][row]), int(reader.contigs.last[reader.split][row])
    here = slice(first, last + 1) if first >= 0 else slice(0)
    starts = reader.starts[here].astype(np.int64)
    ends = starts + reader.lengths[here]
    return np.maximum(starts, np.append(0, ends)[:-1]), ends  # chunks of old datasets may overlap
