"""Windows of chunks: what one sample shows.

In:  a pool of chunks, ranges of chunk numbers, the number of bases that fit a row.
Out: a flat numbering 0..len-1 of windows, and for each its chunk, its start and its stop.

A chunk that fits is one window. A longer chunk gives consecutive windows, so that an epoch shows every base once; the
last one is shorter. A tail under 1/32 of a window gets no row of its own: the windows then start at an offset of 0 to
that many bases, drawn anew for every epoch. With `random_crop` a chunk gives one window, at an offset drawn anew for
every epoch.
"""

import numpy as np
from numpy.typing import NDArray

from megadna.data.chunks import ChunkPool
from megadna.data.hashing import mix

_BLOCK = 1024
TAIL_SHARE = 32


def windows_per_chunk(lengths: NDArray, row_bases: int) -> NDArray:
    """Number of windows of each chunk."""
    full, tail = np.divmod(lengths, row_bases)
    return np.maximum(1, full + (tail > row_bases // TAIL_SHARE))


class Windows:
    """Windows of at most `row_bases` bases; memory: none where every chunk is one window, else a byte or two a
    chunk."""

    def __init__(
        self, pool: ChunkPool, ranges: list[tuple[int, int]], *, row_bases: int, random_crop: bool = False
    ) -> None:
        self._pool = pool
        self._ranges = ranges
        self.row_bases = row_bases
        self._random_crop = random_crop
        self._range_ends = np.cumsum([stop - start for start, stop in ranges])
        self._size = int(self._range_ends[-1])
        self._counts: NDArray | None = None
        most = int(windows_per_chunk(np.array([pool.chunk_length]), row_bases)[0])
        if most > 1 and not random_crop:
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
        slack = max(0, length - self.row_bases) if self._random_crop else 0
        if not self._random_crop and full and tail <= self.row_bases // TAIL_SHARE:
            slack = tail
        offset = int(mix(seed, epoch, chunk) % np.uint64(slack + 1)) if slack else 0
        start = offset + number * self.row_bases
        return chunk, start, min(start + self.row_bases, length)

    def _chunk(self, window: int) -> tuple[int, int]:
        """Chunk number of a window, and which of the chunk's windows it is."""
        place, number = window, 0
        if self._counts is not None:
            block = int(np.searchsorted(self._block_ends, window, side="right"))
            before = window - (int(self._block_ends[block - 1]) if block else 0)
            ends = np.cumsum(self._counts[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.int64)
            within = int(np.searchsorted(ends, before, side="right"))
            place, number = block * _BLOCK + within, before - (int(ends[within - 1]) if within else 0)
        part = int(np.searchsorted(self._range_ends, place, side="right"))
        return place - int(self._range_ends[part]) + self._ranges[part][1], number

    def lengths(self) -> NDArray[np.int32]:
        """Bases of every window, in order; reads the lengths of all chunks."""
        lengths = np.concatenate([self._pool.lengths_of(*span) for span in self._ranges])
        if self._counts is None:
            return np.minimum(lengths, self.row_bases)
        result = np.full(len(self), self.row_bases, dtype=np.int32)
        last = np.cumsum(self._counts, dtype=np.int64) - 1
        result[last] = np.minimum(lengths - (self._counts.astype(np.int32) - 1) * self.row_bases, self.row_bases)
        return result
