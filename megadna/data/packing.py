"""Several short windows in one row.

In:  tokens that each window takes (special tokens included), tokens of a row.
Out: rows; row r holds the windows `packed.windows(r)`. Windows that fill a row stand alone.

Best-fit by length: the longest window left opens a row, then the longest that still fits joins it. Rows depend on the
lengths alone, so the order of samples stays a pure function of (seed, i).
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray


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
    """Windows row by row, and how many each row holds; `order` sorted by `sizes`, ascending."""
    buckets: dict[int, list[int]] = {}
    for window, size in zip(order.tolist(), sizes.tolist(), strict=True):
        buckets.setdefault(size, []).append(window)
    left = sorted(buckets)
    packed: list[int] = []
    counts: list[int] = []
    while left:
        room, count = row_tokens, 0
        while (place := bisect_right(left, room)) > 0:
            size = left[place - 1]
            packed.append(buckets[size].pop())
            if not buckets[size]:
                del left[place - 1]
            room, count = room - size, count + 1
        counts.append(count)
    return packed, counts
