"""How much of some sequences a split of a dataset contains: by shared 31-mers, or by coordinates for a BED file.

In:  a dataset folder, finished or being built; its held-out chunks, or the sequences or intervals of a benchmark.
Out: the contained share of each sequence; for held-out chunks also {split}.containment.npy and a summary, and the
     chunks to drop.

The chunk grid makes exact comparison blind: a genome against itself shifted by one base shares no chunk. FracMinHash
sketches (Irber et al. 2022, doi:10.1101/2022.01.11.475838), which are the 31-mers with hashes below 1/64 of the range,
see shifted, reverse-complemented and similar copies. A k-mer is canonical: the smaller of its two strands' codes.
K-mers with a base other than A, C, G, T (either case; U as T) have no hash. The sketches of the sequences in question
are held in memory; train is streamed. Own numpy code: about 50 million bases a second and core.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megadna.alphabet import OTHER, table
from megadna.data.dataset import ChunkDataset, ContigTable, map_file, read_index
from megadna.data.order import mix
from megadna.data.parts import Part
from megadna.errors import UserError
from megadna.files import atomic_file
from megadna.genome.bed import bases_before, locate, read_regions
from megadna.genome.contigs import name_of, renamed
from megadna.genome.records import read_bases
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

K = 31
SCALE = 64
MAX_CONTAINMENT = 0.2
"""Share of a held-out chunk's sketch that train may contain."""
HELD_OUT = ("valid", "test")
_CODES = table({"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}, OTHER)
_BATCH = 1 << 17  # bases sketched at a time: the arrays stay in the cache
_FILTER_BITS = 22
_WANTED_HASHES = 20  # per sequence of a benchmark, on average
Batches = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""(number of the first sequence, DNA of several sequences, where each one ends)."""


def kmer_codes(bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical 62-bit code (uint64 [n - 30]) of every 31-mer of uint8 DNA, and whether it is all A, C, G, T."""
    codes = _CODES[bases]
    known = codes < 4
    if len(codes) < K:
        return np.zeros(0, np.uint64), np.zeros(0, bool)
    forward = _packed((codes & 3).astype(np.uint64))
    # Complement is 3 - code; packing the reversed complement gives the other strand's codes in reverse order.
    backward = _packed((3 - (codes & 3)).astype(np.uint64)[::-1])[::-1]
    unknown = np.concatenate(([0], np.cumsum(~known)))
    return np.minimum(forward, backward), unknown[K:] == unknown[:-K]


def _packed(codes: np.ndarray) -> np.ndarray:
    """2-bit codes of all 31-mers, by doubling: words of 1, 2, 4, 8, 16 bases."""
    words = {1: codes}
    for size in (1, 2, 4, 8):
        half = words[size]
        words[2 * size] = (half[:-size] << np.uint64(2 * size)) | half[size:]
    count = len(codes) - K + 1
    # 31 = 16 + 8 + 4 + 2 + 1 bases, each word taken where the one before it ends.
    packed, at = words[16][:count], 16
    for size in (8, 4, 2, 1):
        packed = (packed << np.uint64(2 * size)) | words[size][at : at + count]
        at += size
    return packed


def sketch_positions(bases: np.ndarray, scale: int = SCALE) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, first bases) of the 31-mers that belong to the sketch, in order, with repeats; 1 in `scale` does."""
    codes, known = kmer_codes(bases)
    hashes = mix(codes)  # invertible, so that low hashes are a random sample of k-mers
    positions = np.flatnonzero((hashes <= np.uint64(2**64 // scale - 1)) & known)
    return hashes[positions], positions


def sketch_by_chunk(bases: np.ndarray, ends: np.ndarray, scale: int = SCALE) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, chunk numbers) of the sketched 31-mers inside one chunk; `ends` are the chunks' ends."""
    hashes, positions = sketch_positions(bases, scale)
    chunk = np.searchsorted(ends, positions, "right")
    inside = positions + K <= ends[chunk] if len(positions) else np.zeros(0, bool)
    return hashes[inside], chunk[inside]


def batches(bases: np.ndarray, lengths: np.ndarray) -> Batches:
    """Sequences one after the other, in batches of about 100,000 bases."""
    at = first = 0
    while first < len(lengths):
        ends = np.cumsum(lengths[first : first + _BATCH // 8], dtype=np.int64)
        count = max(1, int(np.searchsorted(ends, _BATCH, "right")))
        yield first, np.asarray(bases[at : at + int(ends[count - 1])]), ends[:count]
        at, first = at + int(ends[count - 1]), first + count


class _SplitFiles:
    """The DNA of a split, in a finished or unfinished folder (which has no manifest); memory-mapped."""

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        self.lengths, _ = read_index(folder / f"{split}.idx")
        self.bases = map_file(folder / f"{split}.bin")
        if self.lengths.min(initial=0) < 0 or int(self.lengths.sum(dtype=np.int64)) != len(self.bases):
            file = folder / f"{split}.idx"
            raise UserError(f"{file}: its lengths are not those of the .bin file; run megadna preprocess again")

    def batches(self, what: str) -> Batches:
        """Batches of chunks, with progress."""
        with Progress(what, len(self.bases), "bases") as progress:
            for first, bases, ends in batches(self.bases, self.lengths):
                yield first, bases, ends
                progress.advance(len(bases))


class Containment:
    """Shares of many sequences' sketches that another collection contains."""

    def __init__(self, sequences: Batches, num_sequences: int, scale: int = SCALE) -> None:
        self._scale = scale
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for first, bases, ends in sequences:
            found, chunk = sketch_by_chunk(bases, ends, scale)
            hashes.append(found)
            owners.append(chunk + first)
        pairs = np.unique(np.stack((np.concatenate(hashes), np.concatenate(owners).astype(np.uint64))), axis=1)
        self._owners = pairs[1].astype(np.int64)
        self.hashes, self._index = np.unique(pairs[0], return_inverse=True)
        self.sizes = np.bincount(self._owners, minlength=num_sequences)
        self._seen = np.zeros(len(self.hashes), bool)
        # Low bits: the high ones are all zero in a sketch. This table rules out most hashes of train.
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._low_bits(self.hashes)] = True

    @staticmethod
    def _low_bits(hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64((1 << _FILTER_BITS) - 1)).astype(np.int64)

    def mark(self, bases: np.ndarray, ends: np.ndarray) -> None:
        """Mark what these chunks contain."""
        hashes, _ = sketch_by_chunk(bases, ends, self._scale)
        hashes = hashes[self._filter[self._low_bits(hashes)]]
        if len(hashes) and len(self.hashes):
            index = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            self._seen[index[self.hashes[index] == hashes]] = True

    def shares(self) -> np.ndarray:
        """float32 per sequence: contained share of its sketch; NaN where it has none (too short, or all N)."""
        hits = np.bincount(self._owners, self._seen[self._index], minlength=len(self.sizes))
        with np.errstate(invalid="ignore"):
            return (hits / self.sizes).astype(np.float32)


def measure_leakage(folder: Path) -> dict[str, Any]:
    """Write {split}.containment.npy (float32 per held-out chunk) and return the summary for the manifest."""
    held = {}
    for split in HELD_OUT:
        if (folder / f"{split}.idx").exists():
            files = _SplitFiles(folder, split)
            held[split] = Containment(files.batches(f"sketching {split}"), len(files.lengths))
    for _, bases, ends in _SplitFiles(folder, "train").batches("looking for held-out chunks in train"):
        for containment in held.values():
            containment.mark(bases, ends)
    splits = {}
    for split, containment in held.items():
        shares = containment.shares()
        with atomic_file(folder / f"{split}.containment.npy") as temporary, temporary.open("wb") as file:
            np.save(file, shares)
        splits[split] = _summary(shares)
    flagged = sum(summary["flagged"] for summary in splits.values())
    return {"max_containment": MAX_CONTAINMENT, "flagged": flagged, "splits": splits}


def _summary(shares: np.ndarray) -> dict[str, Any]:
    known = shares[~np.isnan(shares)]
    return {
        "chunks": len(shares),
        "without_sketch": len(shares) - len(known),
        "flagged": int((known > MAX_CONTAINMENT).sum()),
        "mean": round(float(known.mean()), 6) if len(known) else None,
        "highest": round(float(known.max()), 6) if len(known) else None,
    }


def leaking_chunks(folder: Path, parts: list[Part], leakage: str) -> dict[int, frozenset[tuple[int, int]]]:
    """Chunks to drop, by source: (record number, start on the contig).

    drop_from_heldout: held-out chunks above MAX_CONTAINMENT. drop_from_train: train chunks that share a sketched
    31-mer with such a chunk, so that nothing of it is left in train.
    """
    leaking: dict[str, np.ndarray] = {}
    for split in HELD_OUT:
        if (folder / f"{split}.containment.npy").exists():
            shares = np.load(folder / f"{split}.containment.npy")
            leaking[split] = np.flatnonzero(shares > MAX_CONTAINMENT)
    if leakage == "drop_from_train":
        leaking = {"train": _train_chunks_with(folder, leaking)}
    return _by_source(folder, parts, leaking)


def _train_chunks_with(folder: Path, flagged: dict[str, np.ndarray]) -> np.ndarray:
    """Train chunks that share a sketched 31-mer with a flagged held-out chunk."""
    wanted = [np.zeros(0, np.uint64)]
    for split, chunks in flagged.items():
        held = _SplitFiles(folder, split)
        ends = np.cumsum(held.lengths, dtype=np.int64)
        wanted += [sketch_positions(held.bases[ends[c] - held.lengths[c] : ends[c]])[0] for c in chunks.tolist()]
    hashes = np.unique(np.concatenate(wanted))
    found = [np.zeros(0, np.int64)]
    for first, bases, ends in _SplitFiles(folder, "train").batches("looking for train chunks to drop"):
        mine, chunk = sketch_by_chunk(bases, ends)
        found.append(np.unique(chunk[np.isin(mine, hashes)]) + first)
    return np.concatenate(found)


def _by_source(
    folder: Path, parts: list[Part], leaking: dict[str, np.ndarray]
) -> dict[int, frozenset[tuple[int, int]]]:
    """(record number in its source, start on the contig) of chunks, by source number."""
    table = ContigTable.load(folder / "contigs.tsv")
    first_row = np.concatenate(([0], np.cumsum([part.totals.records for part in parts])))
    found: dict[int, set[tuple[int, int]]] = {}
    for split, chunks in leaking.items():
        starts = np.load(folder / f"{split}.start.npy", mmap_mode="r")
        for chunk in chunks.tolist():
            row = table.row_of(split, chunk)
            source = int(np.searchsorted(first_row, row, "right")) - 1
            found.setdefault(source, set()).add((row - int(first_row[source]), int(starts[chunk])))
    return {source: frozenset(pairs) for source, pairs in found.items()}


@dataclass(frozen=True)
class Overlap:
    """Contained share of each sequence."""

    names: list[str]
    shares: np.ndarray
    """float32; NaN where a sequence has no 31-mer of A, C, G and T in its sketch."""


def sequence_overlap(dataset: Path, split: str, path: Path, column: str = "") -> Overlap:
    """By 31-mers, for a FASTA file or a column of a table (default: sequence); short sequences get denser sketches, so
    that each has about 20 hashes."""
    ChunkDataset(dataset, split)  # UserError where it is not a finished dataset
    with Progress(f"reading {path}"):
        headers, records = zip(*read_bases(path, column), strict=True)
    bases, lengths = np.concatenate(records), np.array([len(record) for record in records])
    mean_kmers = max(1, int(lengths.mean()) - K + 1)
    scale = int(np.clip(mean_kmers // _WANTED_HASHES, 1, SCALE))
    containment = Containment(batches(bases, lengths), len(lengths), scale)
    for _, chunks, ends in _SplitFiles(dataset, split).batches(f"comparing with {split}"):
        containment.mark(chunks, ends)
    return Overlap([name_of(header) for header in headers], containment.shares())


def interval_overlap(dataset: Path, split: str, bed: Path) -> Overlap:
    """By coordinates: the share of each (merged) BED interval that chunks of the split cover. UserError where a contig
    of the BED file is not in the dataset, or an interval ends after its contig."""
    reader = ChunkDataset(dataset, split)
    table, regions = reader.contigs, read_regions(bed)
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(table.names["record"].to_pylist()):
        rows.setdefault(record, []).append(row)
    contigs = locate(bed, regions.first_lines, rows, str(dataset))
    if matched := renamed(contigs):
        log.info("contig names matched: %s", matched)
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
