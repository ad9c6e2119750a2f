"""What decides instead of a random state: hashes of integers, the order of samples, random numbers of one sample.

In:  a seed, a sample index i (0, 1, 2, ... over the whole run), the number of rows in an epoch.
Out: sample i is row `permutation[i % size]` of epoch i // size: a pure function of (seed, i).

Nothing is built at start and nothing is stored: the permutation is a keyed Feistel network over the mixed radix a x b
>= size with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Random numbers
of a sample come from Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by (seed,
i), one stream per purpose.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from megadna.genome.bed import merged

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]
_ROUNDS = 8


def mix(*words: np.ndarray | int) -> np.ndarray:
    """64-bit hash of integers or integer arrays (broadcast): splitmix64 steps (Steele et al. 2014, OOPSLA)."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            number = np.asarray(word % 2**64 if isinstance(word, int) else word).astype(np.uint64)
            state = (state ^ number) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def unit(hashes: np.ndarray) -> np.ndarray:
    """Hashes as float64 in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Stream(IntEnum):
    """What random numbers are for: streams of the same key never overlap."""

    SAMPLE = 0
    EVALUATION = 1


def sample_rng(seed: int, index: int, stream: Stream) -> np.random.Generator:
    """Random numbers of one sample: the same on any rank, in any process, after any resume."""
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def permute(positions: Int64, size: int, keys: UInt64) -> Int64:
    """Positions 0..size-1 -> 0..size-1: one permutation per key. Start-up and memory do not depend on `size`.

    positions: [n] int64; keys: [n] or [1] uint64. Expected work: fewer than two walks of eight rounds.
    """
    assert positions.size == 0 or (positions.min() >= 0 and positions.max() < size)
    high_radix = math.isqrt(size - 1) + 1 if size > 1 else 1
    low_radix = -(-size // high_radix)
    keys = np.broadcast_to(keys, positions.shape)
    result = _feistel(positions.astype(np.uint64), high_radix, low_radix, keys)
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], high_radix, low_radix, keys[outside])
    return result.astype(np.int64)


def _feistel(values: UInt64, high_radix: int, low_radix: int, keys: UInt64) -> UInt64:
    high, low = np.divmod(values, np.uint64(low_radix))
    for number in range(0, _ROUNDS, 2):
        high = (high + mix(keys, number, low) % np.uint64(high_radix)) % np.uint64(high_radix)
        low = (low + mix(keys, number + 1, high) % np.uint64(low_radix)) % np.uint64(low_radix)
    return high * np.uint64(low_radix) + low


def epoch_rows(numbers: Int64, size: int, *, seed: int, group: int) -> tuple[Int64, Int64]:
    """Epoch and row of the samples 0, 1, 2, ... of a group: every row once before any is repeated, in a new order in
    each epoch."""
    epochs, positions = np.divmod(numbers, size)
    return epochs, permute(positions, size, mix(seed, group, epochs))


def skip_ranges(positions: Int64, skipped: Sequence[tuple[int, int]]) -> Int64:
    """Sample indices of the positions 0, 1, 2, ... of a run that leaves out the half-open ranges `skipped`.

    A position counts samples trained on; the sample is a function of its index.
    """
    indices = positions.copy()
    for start, stop in sorted(skipped):
        assert 0 <= start <= stop, f"bad range {start}..{stop}"
        indices[indices >= start] += stop - start
    return indices


def skip_more(skipped: Sequence[tuple[int, int]], positions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The sample ranges `skipped` and those at the half-open `positions` of the run; ascending and disjoint."""
    ranges = list(skipped)
    for first, end in positions:
        ends = skip_ranges(np.array([first, end - 1], dtype=np.int64), skipped)
        ranges.append((int(ends[0]), int(ends[1]) + 1))
    return merged(ranges)
