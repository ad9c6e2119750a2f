"""64-bit hashes of integers: what splits, orders and sketches draw from instead of a random state."""

import numpy as np


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
