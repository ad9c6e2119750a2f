"""Pieces of a sequence file -> chunks: their grid, what is left out and why, and the split of each.

In:  the Pieces of one source, in order (megadna.genome.fasta); a piece may end anywhere.
Out: Plan: which bases of the buffer go to which split, and a row for each record that ended; Totals.

The unfinished chunk at the end of a piece is carried over in front of the next one, so the result does not depend on
where pieces end: several workers can read one file. Positions count from the first carried-over base in the buffer
unless a name says contig.
"""

from dataclasses import dataclass, field

import numpy as np

from megadna.data.splits import NO_SPLIT, SplitRule
from megadna.errors import UserError
from megadna.genome.bed import KeptIntervals, bases_before
from megadna.genome.contigs import ContigFilter, names_of
from megadna.genome.fasta import Counts, Piece

LONG_GAP = 50_000
"""Bases of an assembly gap: shorter runs of N in large numbers are the sign of a hard-masked genome."""


@dataclass(frozen=True)
class Policy:
    """What the chunker needs to know of the options, for one source."""

    chunk_length: int
    min_tail: int
    block_chunks: int
    rule: SplitRule
    select: ContigFilter
    keep: KeptIntervals
    rank_blocks: bool = False
    """Look for the train blocks with the lowest hashes, in case a split would be empty."""
    left_out: frozenset[tuple[int, int]] = frozenset()
    """(record number, start on the contig) of chunks dropped because of leakage."""


@dataclass
class Plan:
    """Chunks of one piece."""

    runs: list[np.ndarray]
    """Per split int64 [W, 2]: start and end in the buffer of what is written, in order."""
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
    """Counts over the pieces of a source that were read so far."""

    counts: Counts = field(default_factory=Counts)
    records: int = 0
    """Records that ended."""
    empty_records: int = 0
    chunks: list[int] = field(default_factory=lambda: [0, 0, 0])
    """By split."""
    sizes: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Bases on disk by split."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Bases left out, by reason."""
    dropped_chunks: dict[str, int] = field(default_factory=dict)
    short_run_n: int = 0
    """N in runs shorter than LONG_GAP."""
    lowest: list[tuple[int, int, int]] = field(default_factory=list)
    """(hash, record number, block) of the two train blocks with the lowest hashes, if asked for."""

    def drop(self, reason: str, bases: int, chunks: int = 0) -> None:
        """Count what is left out."""
        for dropped, count in ((self.dropped, bases), (self.dropped_chunks, chunks)):
            if count:
                dropped[reason] = dropped.get(reason, 0) + count


@dataclass
class _Open:
    """The record that the last piece did not end."""

    name: bytes
    reason: str | None
    """Why the record is left out."""
    offset: int
    """Position on the contig of the first carried-over base."""
    next_chunk: int
    """Number of the record's next chunk."""
    counts: np.ndarray
    """Chunks of the record by split."""


@dataclass
class _Records:
    """The records of a piece; the first may have begun in an earlier one."""

    start: np.ndarray
    end: np.ndarray
    is_closed: np.ndarray
    """Whether the record ends in this piece."""
    offset: np.ndarray
    """Position on the contig of the record's first base here."""
    next_chunk: np.ndarray
    """Number of the record's first chunk here."""
    keys: np.ndarray
    """What the split rule needs to know of the record's name."""
    names: list[bytes]
    reasons: list[str | None]

    @property
    def lengths(self) -> np.ndarray:
        """Bases of each record so far."""
        return self.offset + self.end - self.start


@dataclass
class _Segments:
    """Parts of a piece with a grid of chunks each: a record, or the part of it that the BED files keep."""

    record: np.ndarray
    """Row of the record in the piece."""
    start: np.ndarray
    end: np.ndarray
    is_final: np.ndarray
    """Whether the segment ends here, so that its last chunk may be short."""

    def num_chunks(self, chunk_length: int) -> np.ndarray:
        """Chunks of each segment that are complete."""
        size = self.end - self.start
        return np.where(self.is_final, -(-size // chunk_length), size // chunk_length)


@dataclass
class _Chunks:
    """The chunks of a piece, column by column."""

    record: np.ndarray
    """Row of the record in the piece."""
    number: np.ndarray
    """Number of the record in the source."""
    key: np.ndarray
    start: np.ndarray
    length: np.ndarray
    contig_start: np.ndarray
    block: np.ndarray


class Chunker:
    """Chunks of one source, piece by piece."""

    def __init__(self, policy: Policy, totals: Totals) -> None:
        """`totals` is counted up piece by piece."""
        self.policy, self.totals = policy, totals
        self._open: _Open | None = None
        self._pending = np.zeros(0, np.uint8)
        self._open_run = 0
        self._records_begun = 0

    def plan(self, piece: Piece, buffer: np.ndarray, headroom: int, *, final: bool) -> Plan:
        """Chunks of the carried-over bases and this piece; `final`: the source ends with it."""
        shift = len(self._pending)
        origin, size = headroom - shift, shift + piece.size
        buffer[origin:headroom] = self._pending
        records = self._records(piece, size, final=final)
        self.totals.counts.add(piece.counts)
        self._count_short_runs(piece, final=final)
        segments = self._segments(records)
        chunk = self._chunks(segments, records)
        split = self._judge(chunk, *self._n_runs(piece))
        plan = self._collect(chunk, split, records, origin)
        self._carry_over(records, segments, buffer[origin : origin + size])
        return plan

    def _records(self, piece: Piece, size: int, *, final: bool) -> _Records:
        begun = self._open
        if begun is None and piece.size and not (len(piece.positions) and piece.positions[0] == 0):
            raise UserError("text before the first header line (a line that begins with '>')")
        starts = piece.positions + len(self._pending)
        names, reasons = names_of(piece.headers), self.policy.select.reasons(piece.headers)
        if begun is not None:
            starts = np.concatenate(([0], starts))
            names.insert(0, begun.name)
            reasons.insert(0, begun.reason)
        offsets, next_chunks = np.zeros((2, len(starts)), np.int64)
        if begun is not None:
            offsets[0], next_chunks[0] = begun.offset, begun.next_chunk
        ends = np.append(starts[1:], size) if len(starts) else starts
        is_closed = np.ones(len(starts), bool)
        is_closed[-1:] = final
        if reasons.count(None) < len(reasons):
            for reason, bases in zip(reasons, (ends - starts).tolist(), strict=True):
                if reason is not None:
                    self.totals.drop(reason, bases)
        return _Records(starts, ends, is_closed, offsets, next_chunks, self.policy.rule.keys(names), names, reasons)

    def _n_runs(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of the runs of N, those of the carried-over bases first."""
        shift = len(self._pending)
        starts, ends = piece.run_starts + shift, piece.run_ends + shift
        is_n = np.zeros(shift + 2, np.int8)
        is_n[1:-1] = (self._pending & 0xDF) == ord("N")
        if is_n.any():
            edges = np.flatnonzero(np.diff(is_n))
            starts, ends = np.concatenate((edges[::2], starts)), np.concatenate((edges[1::2], ends))
        return starts, ends

    def _count_short_runs(self, piece: Piece, *, final: bool) -> None:
        """Count the N of the runs that ended; a run may continue from one block, record or piece to the next."""
        starts, ends = piece.run_starts, piece.run_ends
        if not len(starts) and not self._open_run:
            return
        if self._open_run:
            starts, ends = np.append(-self._open_run, starts), np.append(0, ends)
        joined = ends[:-1] == starts[1:]
        lengths = ends[np.append(~joined, True)] - starts[np.append(True, ~joined)]
        self._open_run = 0
        if ends[-1] == piece.size and not final:
            self._open_run = int(lengths[-1])
            lengths = lengths[:-1]
        self.totals.short_run_n += int(lengths[lengths < LONG_GAP].sum())

    def _segments(self, records: _Records) -> _Segments:
        is_used = np.ones(len(records.start), bool)
        if records.reasons.count(None) < len(records.reasons):
            is_used[:] = [reason is None for reason in records.reasons]
        if not self.policy.keep:
            rows = np.flatnonzero(is_used & (records.end > records.start))
            return _Segments(rows, records.start[rows], records.end[rows], records.is_closed[rows])
        kept = [part for row in np.flatnonzero(is_used).tolist() for part in self._kept(records, row)]
        columns = np.array(kept, np.int64).reshape(-1, 4).T
        return _Segments(columns[0], columns[1], columns[2], columns[3].astype(bool))

    def _kept(self, records: _Records, row: int) -> list[tuple[int, int, int, bool]]:
        """(row, start, end, whether it ends here) of what the BED files keep of a record; the rest is counted."""
        start, end = int(records.start[row]), int(records.end[row])
        shift = start - int(records.offset[row])
        parts, left_out = [], end - start
        for kept_start, kept_end in self.policy.keep(records.names[row]):
            first, last = max(start, kept_start + shift), min(end, kept_end + shift)
            if first < last:
                parts.append((row, first, last, bool(records.is_closed[row]) or kept_end + shift <= end))
                left_out -= last - first
        self.totals.drop("bed", left_out)
        return parts

    def _chunks(self, segments: _Segments, records: _Records) -> _Chunks:
        length = self.policy.chunk_length
        counts = segments.num_chunks(length)
        segment = np.repeat(np.arange(len(counts)), counts)
        before = np.cumsum(counts) - counts
        order = np.arange(len(segment))  # chunks of the piece
        record = segments.record[segment]
        start = segments.start[segment] + (order - before[segment]) * length
        # The numbers of a record's chunks run through all of its segments.
        first_segment = np.searchsorted(segments.record, segments.record, "left")
        first_chunk = before[first_segment][segment]
        return _Chunks(
            record=record,
            number=record + self._records_begun - (self._open is not None),
            key=records.keys[record],
            start=start,
            length=np.minimum(length, segments.end[segment] - start),
            contig_start=start - records.start[record] + records.offset[record],
            block=(order - first_chunk + records.next_chunk[record]) // self.policy.block_chunks,
        )

    def _judge(self, chunk: _Chunks, n_starts: np.ndarray, n_ends: np.ndarray) -> np.ndarray:
        """Split of each chunk, NO_SPLIT where it is dropped; the bases of dropped chunks are counted by reason."""
        policy = self.policy
        split = self._assign(chunk)
        reasons: list[tuple[str, np.ndarray]] = []
        if len(n_starts):
            ends = chunk.start + chunk.length
            num_n = bases_before(n_starts, n_ends, ends) - bases_before(n_starts, n_ends, chunk.start)
            reasons.append(("mostly_n", 2 * num_n > chunk.length))
        if policy.min_tail > 1:
            reasons.append(("short_tail", chunk.length < min(policy.min_tail, policy.chunk_length)))
        if policy.left_out:
            pairs = zip(chunk.number.tolist(), chunk.contig_start.tolist(), strict=True)
            reasons.append(("leakage", np.fromiter((pair in policy.left_out for pair in pairs), bool, len(split))))
        for reason, mask in reasons:
            mask = mask & (split != NO_SPLIT)
            self.totals.drop(reason, int(chunk.length[mask].sum()), int(mask.sum()))
            split[mask] = NO_SPLIT
        return split

    def _assign(self, chunk: _Chunks) -> np.ndarray:
        """Split of each chunk by the rule, which is asked once per block."""
        changes = (chunk.block[1:] != chunk.block[:-1]) | (chunk.number[1:] != chunk.number[:-1])
        is_first = np.append(True, changes)[: len(chunk.block)]
        first = np.flatnonzero(is_first)
        splits = self.policy.rule.assign(chunk.number[first], chunk.key[first], chunk.block[first])
        return splits[np.cumsum(is_first) - 1]

    def _collect(self, chunk: _Chunks, split: np.ndarray, records: _Records, origin: int) -> Plan:
        """Runs of the buffer to write and rows of finished records."""
        runs, lengths, starts = [], [], []
        for number in range(NO_SPLIT):
            mine = split == number
            start, length = chunk.start[mine], chunk.length[mine]
            lengths.append(length.astype(np.int32))
            starts.append(chunk.contig_start[mine].astype(np.uint64))
            self.totals.chunks[number] += len(length)
            self.totals.sizes[number] += int(length.sum())
            is_first = np.append(True, start[1:] != start[:-1] + length[:-1])[: len(start)]
            is_last = np.append(is_first[1:], True)[: len(start)]
            runs.append(np.stack((start[is_first], (start + length)[is_last]), axis=1) + origin)
        kept = split != NO_SPLIT
        cells = np.bincount(chunk.record[kept] * NO_SPLIT + split[kept], minlength=NO_SPLIT * len(records.start))
        counts = cells.reshape(-1, NO_SPLIT)
        if self._open is not None:
            counts[0] += self._open.counts
        self._last_counts = counts[-1] if len(counts) else np.zeros(NO_SPLIT, np.int64)
        done = int(records.is_closed.sum())
        self.totals.records += done
        self.totals.empty_records += int((records.lengths[:done] == 0).sum())
        if self.policy.rank_blocks:
            lowest = self.policy.rule.lowest(chunk.number, chunk.key, chunk.block, split)
            self.totals.lowest = sorted({*self.totals.lowest, *lowest})[:2]
        return Plan(runs, lengths, starts, records.names[:done], records.lengths[:done], counts[:done])

    def _carry_over(self, records: _Records, segments: _Segments, bases: np.ndarray) -> None:
        """Keep the open record and the bases of its unfinished chunk for the next piece."""
        self._records_begun += len(records.start) - (self._open is not None)
        self._pending = bases[:0]
        self._open = None
        if not len(records.start) or records.is_closed[-1]:
            return
        row = len(records.start) - 1
        at, num_chunks = len(bases), segments.num_chunks(self.policy.chunk_length)
        if len(segments.record) and segments.record[-1] == row and not segments.is_final[-1]:
            at = int(segments.start[-1] + num_chunks[-1] * self.policy.chunk_length)
        self._pending = bases[at:].copy()
        self._open = _Open(
            name=records.names[row],
            reason=records.reasons[row],
            offset=int(records.offset[row] + at - records.start[row]),
            next_chunk=int(records.next_chunk[row] + num_chunks[segments.record == row].sum()),
            counts=self._last_counts,
        )
