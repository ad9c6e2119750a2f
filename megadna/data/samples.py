"""Sample i of a training run: a pure function of (seed, i).

In:  the config, a tokenizer, the chunks of the training split.
Out: rows for any i: which windows, where they are cut, which strand, which tokens are masked.

A sample is decided in this order: its group (Blend), the row of the group's epoch, its window or packed windows
(Windows, PackedRows), length, strand, mask, tokens.

Windows: a chunk that fits a row is one window. A longer chunk gives consecutive windows, so that an epoch shows every
base once; the last one is shorter. A tail under 1/32 of a window gets no row: the windows then start at an offset of 0
to that many bases, drawn anew for every epoch.

Packing is best-fit by length: the longest window left opens a row, then the longest that still fits joins it. Rows
depend on the lengths alone, so the order of samples stays a pure function of (seed, i).

Blending repeats a pattern of 65,536 slots: a group gets the largest-remainder number of slots, spread evenly. Realised
shares differ from those asked for by less than 1/65,536, plus a few samples. Rows of a group follow its own epochs, so
a group is passed through completely before it repeats.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import Dna, reverse_complement
from megadna.config import Config, RateChange
from megadna.data.batch import Rows, collate, row_tokens
from megadna.data.dataset import ChunkPool, Group, blend_groups
from megadna.data.masking import Masked, build_masker
from megadna.data.order import Stream, epoch_rows, mix, sample_rng, skip_ranges
from megadna.errors import UserError
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer

_BLOCK = 1024
TAIL_SHARE = 32


def windows_per_chunk(lengths: NDArray, row_bases: int) -> NDArray:
    """Number of windows of each chunk."""
    full, tail = np.divmod(lengths, row_bases)
    return np.maximum(1, full + (tail > row_bases // TAIL_SHARE))


class Windows:
    """A flat numbering 0..len-1 of windows of at most `row_bases` bases; memory: none where every chunk is one window,
    else a byte or two a chunk."""

    def __init__(self, pool: ChunkPool, ranges: list[tuple[int, int]], *, row_bases: int) -> None:
        self._pool = pool
        self._ranges = ranges
        self.row_bases = row_bases
        self._range_ends = np.cumsum([stop - start for start, stop in ranges])
        self._size = int(self._range_ends[-1])
        self._counts: NDArray | None = None
        most = int(windows_per_chunk(np.array([pool.chunk_length]), row_bases)[0])
        if most > 1:
            self._count_windows(most)

    def _count_windows(self, most: int) -> None:
        self._counts = np.full(self._size, most, dtype=np.min_scalar_type(most))
        for end, span in zip(self._range_ends, self._ranges, strict=True):
            lengths = self._pool.lengths_of(*span)
            # Nearly all chunks are full: dividing only the others is ten times faster.
            others = np.flatnonzero(lengths != self._pool.chunk_length)
            self._counts[end - len(lengths) + others] = windows_per_chunk(lengths[others], self.row_bases)
        whole = len(self._counts) // _BLOCK * _BLOCK
        sums = self._counts[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.int64)
        self._block_ends = np.cumsum(np.append(sums, self._counts[whole:].sum(dtype=np.int64)))
        self._size = int(self._block_ends[-1])

    def __len__(self) -> int:
        return self._size

    def span(self, window: int, *, seed: int, epoch: int) -> tuple[int, int, int]:
        """Chunk number in the pool, start and stop (bases within the chunk) of a window in an epoch."""
        chunk, number = self._chunk(window)
        length = len(self._pool[chunk])
        full, tail = divmod(length, self.row_bases)
        slack = tail if full and tail <= self.row_bases // TAIL_SHARE else 0
        offset = int(mix(seed, epoch, chunk) % np.uint64(slack + 1)) if slack else 0
        start = offset + number * self.row_bases
        return chunk, start, min(start + self.row_bases, length)

    def _chunk(self, window: int) -> tuple[int, int]:
        """Chunk number of a window, and which of the chunk's windows it is."""
        index, number = window, 0
        if self._counts is not None:
            block = int(np.searchsorted(self._block_ends, window, side="right"))
            before = window - (int(self._block_ends[block - 1]) if block else 0)
            ends = np.cumsum(self._counts[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.int64)
            within = int(np.searchsorted(ends, before, side="right"))
            index, number = block * _BLOCK + within, before - (int(ends[within - 1]) if within else 0)
        part = int(np.searchsorted(self._range_ends, index, side="right"))
        return index - int(self._range_ends[part]) + self._ranges[part][1], number

    def lengths(self) -> NDArray[np.int32]:
        """Bases of every window, in order; reads the lengths of all chunks."""
        lengths = np.concatenate([self._pool.lengths_of(*span) for span in self._ranges])
        if self._counts is None:
            return np.minimum(lengths, self.row_bases)
        result = np.full(len(self), self.row_bases, dtype=np.int32)
        last = np.cumsum(self._counts, dtype=np.int64) - 1
        result[last] = np.minimum(lengths - (self._counts.astype(np.int32) - 1) * self.row_bases, self.row_bases)
        return result


class PackedRows:
    """Rows of windows; memory: 16 bytes a window."""

    def __init__(self, tokens: NDArray, row_tokens: int) -> None:
        order = np.argsort(tokens, kind="stable")
        sizes = tokens[order]
        alone = int(np.searchsorted(sizes, row_tokens - int(sizes[0]), side="right"))
        packed, counts = _pack(order[:alone], sizes[:alone], row_tokens)
        self._windows = np.concatenate([np.sort(order[alone:]), np.array(packed, dtype=np.int64)])
        self._ends = np.cumsum(np.concatenate([np.ones(len(order) - alone, dtype=np.int64), counts]).astype(np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def windows(self, row: int) -> list[int]:
        """Windows of a row."""
        start = int(self._ends[row - 1]) if row else 0
        return self._windows[start : int(self._ends[row])].tolist()


def _pack(order: NDArray, sizes: NDArray, row_tokens: int) -> tuple[list[int], list[int]]:
    """Windows row by row, and the number of windows of each row; `order` sorted by `sizes`, ascending."""
    buckets: dict[int, list[int]] = {}
    for window, size in zip(order.tolist(), sizes.tolist(), strict=True):
        buckets.setdefault(size, []).append(window)
    left = sorted(buckets)
    packed: list[int] = []
    counts: list[int] = []
    while left:
        room, count = row_tokens, 0
        while (index := bisect_right(left, room)) > 0:
            size = left[index - 1]
            packed.append(buckets[size].pop())
            if not buckets[size]:
                del left[index - 1]
            room, count = room - size, count + 1
        counts.append(count)
    return packed, counts


PATTERN = 65_536


class Blend:
    """The repeating pattern of groups."""

    def __init__(self, shares: list[float]) -> None:
        exact = np.array(shares) * PATTERN
        self._counts = np.floor(exact).astype(np.int64)
        missing = PATTERN - int(self._counts.sum())
        self._counts[np.argsort(self._counts - exact, kind="stable")[:missing]] += 1
        if not self._counts.all():
            raise UserError(
                f"data.blend: a share of {min(shares):.2g} is too small (the least is 1/{PATTERN}); raise its weight"
            )
        slots = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts])
        order = np.argsort(slots, kind="stable")
        self._groups = np.repeat(np.arange(len(shares)), self._counts)[order]
        self._ranks = np.concatenate([np.arange(count) for count in self._counts])[order]

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Group and number within the group of each sample."""
        turns, slots = np.divmod(samples, PATTERN)
        groups = self._groups[slots]
        return groups, turns * self._counts[groups] + self._ranks[slots]


SHORTEST_CUT = 5
"""Least bases of a sample of variable length: DNABERT's number."""


class BaseWeights:
    """Loss weight of each token: the mean over its bases, `lower_case` for a, c, g, t and 1 for the rest."""

    def __init__(self, tokenizer: Tokenizer, *, lower_case: float) -> None:
        self._tokenizer = tokenizer
        self._table = np.ones(256, dtype=np.float32)
        self._table[ord("a") : ord("z") + 1] = lower_case
        self._all_one = lower_case == 1.0

    def __call__(self, bases: Dna, ids: NDArray) -> NDArray[np.float32] | None:
        """float32 [m] for the ids [m] of the bases [n]; None where all weigh 1."""
        if self._all_one:
            return None
        weights = self._table.take(bases)
        sums = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])
        starts, stops = self._tokenizer.spans(ids)
        return ((sums[stops] - sums[starts]) / (stops - starts)).astype(np.float32)


@dataclass(frozen=True)
class GroupRows:
    """The rows of one group: windows, or packed windows."""

    group: Group
    windows: Windows
    packed: PackedRows | None

    def __len__(self) -> int:
        return len(self.windows) if self.packed is None else len(self.packed)


class Samples:
    """Rows of samples by their position in the run; holds tables and memory maps only, so loader workers share it."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        pool: ChunkPool,
        *,
        sequence_length: int,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._config = resolve_schedule(config)
        self._tokenizer = tokenizer
        self._pool = pool
        self._sequence_length = sequence_length
        self._skipped = skipped
        self._masker = build_masker(tokenizer, config.data.masking)
        self._weights = BaseWeights(tokenizer, lower_case=config.data.lower_case_weight)
        groups = blend_groups(pool, "train", config.data.blend)
        self._blend = Blend([group.share for group in groups])
        self.groups = [self._rows_of(group) for group in groups]

    def _rows_of(self, group: Group) -> GroupRows:
        row_bases = self._tokenizer.num_bases(self._sequence_length - NUM_SPECIAL)
        windows = Windows(self._pool, group.ranges, row_bases=row_bases)
        if not self._config.data.packing:
            return GroupRows(group, windows, None)
        if self._tokenizer.kind == "sentencepiece":
            raise UserError("data.packing needs tokens of a fixed number of bases; switch it off for sentencepiece")
        sizes = np.array([row_tokens(self._tokenizer, length) for length in range(row_bases + 1)])
        return GroupRows(group, windows, PackedRows(sizes[windows.lengths()], self._sequence_length))

    def rows(self, positions: NDArray[np.int64]) -> Rows:
        """Rows of the samples at `positions` [B] of the run, the skipped ranges of samples left out."""
        indices = skip_ranges(positions, self._skipped)
        groups, numbers = self._blend.locate(indices)
        epochs, rows = np.empty_like(indices), np.empty_like(indices)
        for group in np.unique(groups):
            here = groups == group
            size = len(self.groups[group])
            epochs[here], rows[here] = epoch_rows(numbers[here], size, seed=self._config.seed, group=int(group))
        orders = zip(indices.tolist(), groups.tolist(), epochs.tolist(), rows.tolist(), strict=True)
        windows = [self._windows(*order) for order in orders]
        packed = self._config.data.packing
        return collate(windows, indices, self._tokenizer, self._sequence_length, packed=packed)

    def _windows(self, index: int, group: int, epoch: int, row: int) -> list[Masked]:
        rng = sample_rng(self._config.seed, index, Stream.SAMPLE)
        rows = self.groups[group]
        windows = [row] if rows.packed is None else rows.packed.windows(row)
        fraction = masking_fraction(self._config, index)
        return [self._masked(rows.windows, window, epoch, rng, fraction) for window in windows]

    def _masked(self, windows: Windows, window: int, epoch: int, rng: np.random.Generator, fraction: float) -> Masked:
        chunk, start, stop = windows.span(window, seed=self._config.seed, epoch=epoch)
        bases = self._cut(self._pool[chunk][start:stop], rng)
        if rng.random() < self._config.data.reverse_complement:
            bases = reverse_complement(bases)
        masked = self._masker(bases, rng, fraction).first(self._sequence_length - NUM_SPECIAL)
        return masked._replace(weights=self._weights(bases, masked.targets))

    def _cut(self, bases: Dna, rng: np.random.Generator) -> Dna:
        """The whole window, or for `variable_length` of the samples a piece of uniform length at a uniform position."""
        share = self._config.data.variable_length
        if not share or rng.random() >= share:
            return bases
        length = min(len(bases), max(int(rng.random() * len(bases)), SHORTEST_CUT, self._tokenizer.bases_per_token))
        start = int(rng.integers(0, len(bases) - length + 1))
        return bases[start : start + length]


def resolve_schedule(config: Config) -> Config:
    """The config with the first sample of each masking rate filled in from its step; filled ones are kept."""
    schedule = [
        replace(change, sample=config.train.samples_after(change.step) if change.sample is None else change.sample)
        for change in config.data.masking.schedule
    ]
    return replace(config, data=replace(config.data, masking=replace(config.data.masking, schedule=schedule)))


def masking_fraction(config: Config, sample: int) -> float:
    """Masking rate of a sample, by the resolved schedule."""
    changes: list[RateChange] = config.data.masking.schedule
    number = bisect_right([change.sample or 0 for change in changes], sample)
    return changes[number - 1].fraction if number else config.data.masking.fraction
