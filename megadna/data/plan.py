"""What the chunker works with: the policy, the state between pieces, the plan of a piece, and its tables.

Coordinates are positions in the letters of a piece, kept-back letters first, unless a name says contig.
"""

from dataclasses import dataclass, field

import numpy as np

from megadna.data.splits import SplitRule
from megadna.genome.bed import KeptIntervals
from megadna.genome.contigs import ContigFilter
from megadna.genome.fasta import Counts


@dataclass(frozen=True)
class Policy:
    """What the chunker needs of the options, for one source."""

    chunk_length: int
    overlap: int
    min_tail: int
    min_record: int
    max_n_run: int | None
    block_chunks: int
    rule: SplitRule
    select: ContigFilter
    keep: KeptIntervals
    rank_blocks: bool = False
    """Look for the train blocks with the lowest hashes, in case a split would be empty."""
    left_out: frozenset[tuple[int, int]] = frozenset()
    """(record number, start on the contig) of chunks dropped because of leakage."""

    @property
    def stride(self) -> int:
        """Bases from one chunk's start to the next one's."""
        return self.chunk_length - self.overlap

    @property
    def reach(self) -> int:
        """How many chunks ahead a chunk can share bases with."""
        return -(-self.chunk_length // self.stride) - 1

    @property
    def headroom(self) -> int:
        """Most letters that can be kept back."""
        return (self.reach + 2) * self.chunk_length + (self.max_n_run or 0) + self.min_record


@dataclass
class State:
    """Where a source's pieces left off."""

    records: int = 0
    """Records begun."""
    name: bytes = b""
    reason: str | None = None
    """Why the open record is left out."""
    contig_offset: int = 0
    """Place of the first kept-back letter on the open record."""
    grid: int = 0
    """Grid number of the next chunk."""
    within: int = 0
    """Chunks of the open segment before the next one."""
    n_before: int = 0
    """Length of the run of N that ends just before the first kept-back letter."""
    pending: bytes = b""
    counts: tuple[int, int, int] = (0, 0, 0)
    """Chunks of the open record by split."""
    open_run: int = 0
    """Length of the run of N at the end of the text so far, for the hard-mask warning."""


@dataclass
class Plan:
    """Chunks planned for one input block."""

    runs: list[np.ndarray]
    """Per split int64 [W, 2]: stretches of the buffer (absolute positions) to write, in order."""
    lengths: list[np.ndarray]
    """Per split int32: chunk lengths."""
    starts: list[np.ndarray]
    """Per split uint64: chunk starts on their contig."""
    names: list[bytes]
    """Records that ended in this piece."""
    record_lengths: np.ndarray
    """int64 [R]."""
    record_counts: np.ndarray
    """int64 [R, 3]: chunks by split."""


@dataclass
class Totals:
    """What a source has come to so far."""

    counts: Counts = field(default_factory=Counts)
    records: int = 0
    """Records that ended."""
    empty_records: int = 0
    chunks: list[int] = field(default_factory=lambda: [0, 0, 0])
    """By split."""
    sizes: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Bytes by split."""
    kept: int = 0
    """Bases on disk, counted once."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Bases left out, by reason."""
    dropped_chunks: dict[str, int] = field(default_factory=dict)
    short_run_n: int = 0
    """N in runs under 50 kb."""
    lowest: list[tuple[int, int, int]] = field(default_factory=list)
    """(hash, record number, block) of the two train blocks with the lowest hashes, if asked for."""

    def drop(self, reason: str, bases: int, chunks: int = 0) -> None:
        """Count what is left out."""
        for dropped, count in ((self.dropped, bases), (self.dropped_chunks, chunks)):
            if count:
                dropped[reason] = dropped.get(reason, 0) + count


@dataclass
class Segments:
    """Stretches of letters with a chunk grid each: start, end, record (local number), first grid number, chunks to
    emit."""

    start: np.ndarray
    end: np.ndarray
    record: np.ndarray
    within: np.ndarray
    """Chunks of the segment emitted before."""
    emit: np.ndarray
    total: np.ndarray
    """Chunks known to exist, from `start` on."""
    final: np.ndarray
    """Whether nothing can follow in the segment."""


@dataclass
class Records:
    """The records of a piece: the open one first if there is one."""

    start: np.ndarray
    end: np.ndarray
    closed: np.ndarray
    offset: np.ndarray
    """Place on the contig of each record's first letter here."""
    length: np.ndarray
    """Letters of the record so far."""
    skip: np.ndarray
    waiting: np.ndarray
    """Open and still below the minimum record length."""
    keys: np.ndarray
    names: list[bytes]
    reasons: list[str | None]
    first: int
    """Number of the first one in the source."""
    begun: bool
    """Whether the first one began in an earlier piece."""


@dataclass
class Chunks:
    """Columns of the chunks of a piece."""

    segment: np.ndarray
    step: np.ndarray
    record: np.ndarray
    start: np.ndarray
    length: np.ndarray
    grid: np.ndarray
    contig_start: np.ndarray
    key: np.ndarray
    number: np.ndarray
    """Record number in the source."""


def covered(starts: np.ndarray, ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bases before each position that lie in the runs."""
    index = np.searchsorted(starts, places, "right")
    lengths = np.concatenate(([0], np.cumsum(ends - starts)))
    return lengths[index] - np.where(index > 0, np.maximum(0, ends[index - 1] - places), 0)
