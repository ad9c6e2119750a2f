"""Pieces of letters -> chunks: the grid, what is dropped and why, and which split a chunk belongs to.

In:  the Pieces of one source, in order (megadna.genome.fasta); a source's text may be cut into pieces anywhere.
Out: Plan: which stretches of the letter buffer go to which split, and a row per finished record; Totals.

What the pieces leave undecided (the unfinished chunk at the end, a run of N that may yet prove long) is kept back as
a few thousand letters in the State and stands before the next piece. So the result does not depend on where pieces
end. Coordinates: positions in `letters` (kept-back letters first) unless a name says contig.
"""

from collections.abc import Iterator

import numpy as np

from megadna.data.plan import Chunks, Plan, Policy, Records, Segments, State, Totals, covered
from megadna.data.splits import TRAIN
from megadna.errors import UserError
from megadna.genome.contigs import names_of
from megadna.genome.fasta import Piece


class Chunker:
    """Chunks of one source, piece by piece."""

    def __init__(self, policy: Policy, totals: Totals) -> None:
        """`totals` is counted up piece by piece."""
        self.policy, self.totals, self.state = policy, totals, State()

    def plan(self, piece: Piece, buffer: np.ndarray, headroom: int, *, final: bool) -> Plan:
        """Chunks of the kept-back letters and this piece; `final` if the source's text ends with it."""
        state = self.state
        origin = headroom - len(state.pending)
        buffer[origin:headroom] = np.frombuffer(state.pending, np.uint8)
        size = len(state.pending) + piece.size
        table = self._records(piece, size, final=final)
        n_starts, n_ends = self._n_runs(piece, table.start[1:])
        self.totals.counts.add(piece.counts)
        self.totals.short_run_n += self._short_runs(piece, final=final)
        segments = self._segments(table, n_starts, n_ends)
        chunk = self._chunks(segments, table)
        split = self._judge(chunk, segments, n_starts, n_ends)
        plan = self._collect(chunk, split, table, origin)
        self._keep_back(table, segments, buffer[origin : origin + size], n_starts, n_ends)
        return plan

    def _records(self, piece: Piece, size: int, *, final: bool) -> Records:
        """The open record and those that begin in this piece."""
        state, policy = self.state, self.policy
        begun = state.records > 0
        if not begun and piece.size and not (len(piece.positions) and piece.positions[0] == 0):
            raise UserError("text before the first header line (a line that begins with '>')")
        starts = piece.positions + len(state.pending)
        names = names_of(piece.headers)
        reasons = policy.select.reasons(piece.headers)
        if begun:
            starts = np.concatenate(([0], starts))
            names.insert(0, state.name)
            reasons.insert(0, state.reason)
        ends = np.append(starts[1:], size) if len(starts) else starts
        closed = np.ones(len(starts), bool)
        closed[-1:] = final
        offsets = np.zeros(len(starts), np.int64)
        offsets[:1] = state.contig_offset if begun else 0
        lengths = offsets + ends - starts
        short = lengths < policy.min_record
        for row in np.flatnonzero(short & closed):
            reasons[row] = reasons[row] or "short_record"
        skip = np.zeros(len(starts), bool)
        if reasons.count(None) < len(reasons):
            skip[:] = [reason is not None for reason in reasons]
        for row in np.flatnonzero(skip):
            self.totals.drop(str(reasons[row]), int(ends[row] - starts[row]))
        first = state.records - begun
        keys = policy.rule.keys(names)
        return Records(
            starts, ends, closed, offsets, lengths, skip, short & ~closed, keys, names, reasons, first, begun
        )

    def _n_runs(self, piece: Piece, boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs of N in the letters: merged over block borders, never over record borders."""
        shift = len(self.state.pending)
        starts, ends = piece.run_starts + shift, piece.run_ends + shift
        if shift:
            mask = np.zeros(shift + 2, np.int8)
            mask[1:-1] = (np.frombuffer(self.state.pending, np.uint8) & 0xDF) == 0x4E
            if mask.any():
                edges = np.flatnonzero(np.diff(mask))
                starts, ends = np.concatenate((edges[::2], starts)), np.concatenate((edges[1::2], ends))
        if not len(starts):
            return starts, ends
        inside = boundaries[np.searchsorted(starts, boundaries, "left") > np.searchsorted(ends, boundaries, "right")]
        starts, ends = np.sort(np.concatenate((starts, inside))), np.sort(np.concatenate((ends, inside)))
        joined = ends[:-1] == starts[1:]
        at = starts[1:]
        joined &= np.searchsorted(boundaries, at, "left") == np.searchsorted(boundaries, at, "right")
        return starts[np.append(True, ~joined)], ends[np.append(~joined, True)]

    def _short_runs(self, piece: Piece, *, final: bool) -> int:
        """N in runs under 50 kb that ended; such runs in plenty are the sign of a hard-masked genome."""
        starts, ends, state = piece.run_starts, piece.run_ends, self.state
        if not len(starts) and not state.open_run:
            return 0
        if state.open_run:
            starts, ends = np.append(-state.open_run, starts), np.append(0, ends)
        joined = ends[:-1] == starts[1:]
        lengths = ends[np.append(~joined, True)] - starts[np.append(True, ~joined)]
        state.open_run = 0
        if ends[-1] == piece.size and not final:
            state.open_run = int(lengths[-1])
            lengths = lengths[:-1]
        return int(lengths[lengths < 50_000].sum())

    def _segments(self, table: Records, n_starts: np.ndarray, n_ends: np.ndarray) -> Segments:
        policy = self.policy
        usable = ~table.skip & ~table.waiting
        if policy.max_n_run is None and not policy.keep:
            rows = np.flatnonzero(usable & (table.end > table.start))
            start, end, final = table.start[rows], table.end[rows], table.closed[rows]
            limit = end
        else:
            cut = [part for row in np.flatnonzero(usable) for part in self._cut(table, int(row), n_starts, n_ends)]
            columns = np.array(cut, np.int64).reshape(-1, 5)
            rows, start, end, limit = (columns[:, column] for column in range(4))
            final = columns[:, 4].astype(bool)
        within = np.zeros(len(rows), np.int64)
        if len(rows) and table.begun and rows[0] == 0 and start[0] == 0:
            within[0] = self.state.within
        total, emit = self._count_chunks(start, end, limit, final, within)
        return Segments(start, end, rows, within, emit, total, final)

    def _count_chunks(
        self, start: np.ndarray, end: np.ndarray, limit: np.ndarray, final: np.ndarray, within: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chunks that exist and chunks that can be written now. A chunk exists if it has a base its forerunner has
        not."""
        length, stride, reach = self.policy.chunk_length, self.policy.stride, self.policy.reach
        size = limit - start
        overlap = np.where(within > 0, self.policy.overlap, 0)
        total = np.where(size > overlap, 1 + np.maximum(0, -((length - size) // stride)), 0)
        complete = np.where(size >= length, (size - length) // stride + 1, 0)
        emit = np.where(final, total, np.minimum(complete, np.maximum(0, total - reach)))
        return total, emit

    def _cut(
        self, table: Records, row: int, n_starts: np.ndarray, n_ends: np.ndarray
    ) -> list[tuple[int, int, int, int, bool]]:
        """(record, start, end, limit, final) of the stretches of a record that BED files and long runs of N leave.

        In an open stretch chunks may be written up to `limit`: what follows is a run of N that may yet prove long.
        """
        policy, p0, p1 = self.policy, int(table.start[row]), int(table.end[row])
        shift, closed = int(table.offset[row]) - p0, bool(table.closed[row])
        kept = policy.keep(table.names[row])
        inside = [
            (max(a - shift, p0), min(b - shift, p1), b - shift) for a, b in kept if a < p1 + shift and b > p0 + shift
        ]
        self.totals.drop("bed", p1 - p0 - sum(b - a for a, b, _ in inside))
        long_runs, undecided = self._long_runs(table, row, n_starts, n_ends)
        parts = []
        for a, b, true_end in inside:
            at = a
            for run_start, run_end in long_runs:
                if run_end <= at or run_start >= b:
                    continue
                if run_start > at:
                    parts.append((row, at, run_start, run_start, True))
                self.totals.drop("n_run", min(run_end, b) - max(run_start, at))
                at = min(run_end, b)
            final = closed or true_end <= p1
            if at < b or (not final and at == p1):
                parts.append((row, at, b, b if final else max(at, min(b, undecided)), final))
        return parts

    def _long_runs(
        self, table: Records, row: int, n_starts: np.ndarray, n_ends: np.ndarray
    ) -> tuple[list[tuple[int, int]], int]:
        """Runs of N above max_n_run on a record, and where an undecided run at its open end begins."""
        p0, p1, limit = int(table.start[row]), int(table.end[row]), self.policy.max_n_run
        if limit is None:
            return [], p1
        first, last = np.searchsorted(n_starts, p0), np.searchsorted(n_starts, p1)
        starts, ends = n_starts[first:last], n_ends[first:last]
        lengths = ends - starts
        if len(starts) and table.begun and row == 0 and starts[0] == 0:
            lengths[0] += self.state.n_before
        long = lengths > limit
        undecided = p1
        if len(starts) and not table.closed[row] and ends[-1] == p1 and not long[-1]:
            undecided = int(starts[-1])
        return list(zip(starts[long].tolist(), ends[long].tolist(), strict=True)), undecided

    def _chunks(self, segments: Segments, table: Records) -> Chunks:
        """Every chunk to be judged now."""
        emit, stride = segments.emit, self.policy.stride
        segment = np.repeat(np.arange(len(emit)), emit)
        before = np.cumsum(emit) - emit
        step = np.arange(len(segment)) - before[segment]
        record = segments.record[segment]
        start = segments.start[segment] + step * stride
        length = np.minimum(self.policy.chunk_length, segments.end[segment] - start)
        # The grid number runs through all segments of a record.
        first_of_record = np.searchsorted(segments.record, segments.record, "left")
        grid = (before - before[first_of_record])[segment] + step if len(segment) else step
        if table.begun:
            grid = grid + np.where(record == 0, self.state.grid, 0)
        contig_start = start - table.start[record] + table.offset[record]
        return Chunks(
            segment, step, record, start, length, grid, contig_start, table.keys[record], record + table.first
        )

    def _judge(self, chunk: Chunks, segments: Segments, n_starts: np.ndarray, n_ends: np.ndarray) -> np.ndarray:
        """Split of each chunk, 3 where it is dropped; bases of dropped chunks are counted by reason."""
        policy = self.policy
        split = self._assign(chunk, chunk.grid)
        reasons: list[tuple[str, np.ndarray]] = []
        if policy.overlap:
            reasons.append(("overlap", self._conflicts(chunk, segments, split)))
        if len(n_starts):
            num_n = covered(n_starts, n_ends, chunk.start + chunk.length) - covered(n_starts, n_ends, chunk.start)
            reasons.append(("mostly_n", 2 * num_n > chunk.length))
        if policy.min_tail > 1:
            reasons.append(("short_tail", chunk.length < min(policy.min_tail, policy.chunk_length)))
        if policy.left_out:
            pairs = zip(chunk.number.tolist(), chunk.contig_start.tolist(), strict=True)
            reasons.append(("leakage", np.fromiter((pair in policy.left_out for pair in pairs), bool, len(split))))
        # A base counts once: for the first chunk of its segment that has it.
        first = chunk.step + segments.within[chunk.segment] == 0
        self._own = chunk.length - np.where(first, 0, policy.overlap)
        for reason, mask in reasons:
            mask = mask & (split < 3)
            if mask.any():
                self.totals.drop(reason, int(self._own[mask].sum()), int(mask.sum()))
                split = np.where(mask, np.uint8(3), split)
        return split

    def _assign(self, chunk: Chunks, grid: np.ndarray) -> np.ndarray:
        """Split of each chunk; asked once per block."""
        block = grid // self.policy.block_chunks
        new = np.append(True, (block[1:] != block[:-1]) | (chunk.number[1:] != chunk.number[:-1]))[: len(block)]
        first = np.flatnonzero(new)
        return self.policy.rule.assign(chunk.number[first], chunk.key[first], block[first])[np.cumsum(new) - 1]

    def _conflicts(self, chunk: Chunks, segments: Segments, split: np.ndarray) -> np.ndarray:
        """Chunks that share a base with one of a split that goes first: test before valid before train."""
        conflict = np.zeros(len(split), bool)
        place = chunk.step + segments.within[chunk.segment]
        for distance in range(1, self.policy.reach + 1):
            behind = place >= distance
            ahead = chunk.step + distance < segments.total[chunk.segment]
            conflict |= behind & (self._assign(chunk, np.maximum(chunk.grid - distance, 0)) > split)
            conflict |= ahead & (self._assign(chunk, chunk.grid + distance) > split)
        return conflict

    def _collect(self, chunk: Chunks, split: np.ndarray, table: Records, origin: int) -> Plan:
        """Stretches to write and rows of finished records."""
        runs, lengths, starts = [], [], []
        for number in range(3):
            mine = split == number
            start, length = chunk.start[mine], chunk.length[mine]
            lengths.append(length.astype(np.int32))
            self.totals.chunks[number] += len(length)
            self.totals.sizes[number] += int(length.sum())
            starts.append(chunk.contig_start[mine].astype(np.uint64))
            new = np.append(True, start[1:] != start[:-1] + length[:-1])[: len(start)]
            last = np.append(new[1:], True)[: len(start)]
            runs.append(np.stack((start[new], (start + length)[last]), axis=1) + origin)
        kept = split < 3
        counts = np.bincount(chunk.record[kept] * 3 + split[kept], minlength=3 * len(table.start)).reshape(-1, 3)
        if table.begun:
            counts[0] += self.state.counts
        done = int(table.closed.sum())
        self._open_counts = counts[-1] if done < len(counts) else np.zeros(3, np.int64)
        self.totals.records += done
        self.totals.empty_records += int((table.length[:done] == 0).sum())
        self.totals.kept += int(self._own[kept].sum())
        if self.policy.rank_blocks:
            self.totals.lowest = sorted({*self.totals.lowest, *self._lowest(chunk, split)})[:2]
        return Plan(runs, lengths, starts, table.names[:done], table.length[:done], counts[:done])

    def _lowest(self, chunk: Chunks, split: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(hash, record number, block) of train chunks, the lowest among them."""
        mine = np.flatnonzero(split == TRAIN)
        blocks = chunk.grid[mine] // self.policy.block_chunks
        hashes, units = self.policy.rule.rank(chunk.key[mine], blocks)
        several = 2 * self.policy.block_chunks + 1  # enough chunks to have two blocks among them
        if len(hashes) > several and self.policy.rule.mode == "region":
            few = np.argpartition(hashes, several)[:several]
            hashes, units, mine = hashes[few], units[few], mine[few]
        return zip(hashes.tolist(), chunk.number[mine].tolist(), units.tolist(), strict=True)

    def _keep_back(
        self, table: Records, segments: Segments, letters: np.ndarray, n_starts: np.ndarray, n_ends: np.ndarray
    ) -> None:
        """The State after this piece."""
        state, begun = self.state, table.begun
        state.records += len(table.start) - begun
        if not len(table.start) or table.closed[-1]:
            return
        row = len(table.start) - 1
        same = begun and row == 0
        mine = np.flatnonzero(segments.record == row)
        at, within = len(letters), 0
        if table.waiting[row] and not table.skip[row]:
            at = int(table.start[row])
            within = state.within if same else 0
        elif len(mine) and not segments.final[mine[-1]]:
            last = mine[-1]
            at = int(segments.start[last] + segments.emit[last] * self.policy.stride)
            within = int(segments.within[last] + segments.emit[last])
        grid = (state.grid if same else 0) + int(segments.emit[mine].sum())
        state.n_before = self._run_before(table, row, at, n_starts, n_ends)
        state.name, state.reason, state.grid, state.within = table.names[row], table.reasons[row], grid, within
        state.contig_offset = int(table.offset[row] + at - table.start[row])
        state.pending = letters[at:].tobytes()
        state.counts = tuple(int(count) for count in self._open_counts)  # type: ignore[assignment]

    def _run_before(self, table: Records, row: int, at: int, n_starts: np.ndarray, n_ends: np.ndarray) -> int:
        if self.policy.max_n_run is None:
            return 0
        index = int(np.searchsorted(n_starts, at, "left")) - 1
        before = self.state.n_before if table.begun and row == 0 else 0
        if at == table.start[row]:
            return before
        if index < 0 or n_ends[index] < at or n_starts[index] < table.start[row]:
            return 0
        return at - int(n_starts[index]) + (before if n_starts[index] == table.start[row] else 0)
