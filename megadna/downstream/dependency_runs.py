"""Off-diagonal blocks of a dependency map: runs of high values along anti-diagonals (stems: i + j constant, as arms of
a hairpin pair) and along diagonals (repeats: j - i constant).

In:  a map [L, L]; NaN where there is no value.
Out: Run for each that is stronger than chance, the best first.

Values are symmetrised, (e(i, j) + e(j, i)) / 2, and compared by their square roots, as few are large and most near 0.
Dependencies decay with distance, so each root is compared with those of about its distance: z = (root - median) /
(1.4826 x their median absolute deviation). A cell scores min(z, 6) - 1, a run the sum of its cells (the segment of a
line with the largest sum). Chance: values are shuffled among cells of about
the same distance, which keeps the decay and destroys runs; p is the share of shuffled maps, this map counted among
them, whose best run of the kind scores as high. Runs with p <= 0.05 are reported; cells within 2 of one are not used
for the next.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Shapes: L bases, P pairs of bases i < j at least `min_distance` apart, D lines, T cells of a line.

Kind = Literal["stem", "repeat"]
MAX_Z = 6.0
Z_OFFSET = 1.0
MAX_P = 0.05
MOST_RUNS = 50
"""Of each kind."""
_NONE = -1e9


@dataclass(frozen=True)
class Run:
    """One run; i < j are indices of bases."""

    kind: Kind
    i_start: int
    i_end: int
    """Half-open."""
    j_start: int
    j_end: int
    mean: float
    """Of the symmetrised map over the run."""
    background: float
    """Median of the map at these distances."""
    score: float
    p: float

    def __len__(self) -> int:
        return self.i_end - self.i_start

    def pairs(self) -> list[tuple[int, int]]:
        """(i, j) of each cell."""
        others = range(self.j_start, self.j_end)
        firsts = range(self.i_start, self.i_end)
        return list(zip(firsts, reversed(others) if self.kind == "stem" else others, strict=True))


def find_runs(map_LL: np.ndarray, *, min_distance: int, shuffles: int, seed: int) -> list[Run]:
    """The runs of a map, stems first; [] if it has no pair of bases `min_distance` apart with a value."""
    even_LL = (map_LL + map_LL.T) / 2
    i_P, j_P = np.triu_indices(len(map_LL), min_distance)
    known = np.isfinite(even_LL[i_P, j_P])
    i_P, j_P = i_P[known], j_P[known]
    if not len(i_P):
        return []
    values_P = even_LL[i_P, j_P]
    classes = _classes(j_P - i_P, len(map_LL))
    median_P, score_P = np.empty_like(values_P), np.empty_like(values_P)
    for cells in classes:
        median_P[cells] = np.median(values_P[cells])
        roots = np.sqrt(np.maximum(values_P[cells], 0.0))
        from_median = roots - np.median(roots)
        spread = 1.4826 * np.median(np.abs(from_median))
        z = from_median / spread if spread > 0 else np.zeros(len(cells))
        score_P[cells] = np.minimum(z, MAX_Z) - Z_OFFSET
    scores_LL, median_LL = np.full(map_LL.shape, _NONE), np.full(map_LL.shape, np.nan)
    scores_LL[i_P, j_P], median_LL[i_P, j_P] = score_P, median_P
    rng = np.random.default_rng(seed)
    found: list[Run] = []
    lines = {kind: _lines(len(map_LL), kind) for kind in ("stem", "repeat")}
    chance: dict[str, list[float]] = {kind: [] for kind in lines}
    for _ in range(shuffles):
        shuffled_LL = np.full(map_LL.shape, _NONE)
        for cells in classes:
            shuffled_LL[i_P[cells], j_P[cells]] = score_P[rng.permutation(cells)]
        for kind, line in lines.items():
            chance[kind].append(_best(shuffled_LL, *line)[0])
    for kind, line in lines.items():
        found += _runs(kind, scores_LL.copy(), line, np.array(chance[kind]), even_LL, median_LL)  # type: ignore[arg-type]
    return found


def _classes(distance_P: np.ndarray, length: int) -> list[np.ndarray]:
    """Cells of about the same distance: neighbouring distances together, until they are 64 and two a base."""
    order = np.argsort(distance_P, kind="stable")
    edges = np.flatnonzero(np.diff(distance_P[order])) + 1
    groups: list[np.ndarray] = []
    for part in np.split(order, edges):
        if groups and len(groups[-1]) < max(64, 2 * length):
            groups[-1] = np.concatenate([groups[-1], part])
        else:
            groups.append(part)
    if len(groups) > 1 and len(groups[-1]) < 64:
        last = groups.pop()
        groups[-1] = np.concatenate([groups[-1], last])
    return groups


def _lines(length: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(i [D, T], j [D, T]) of the cells of each line in order; cells outside the map are (0, 0), which never counts."""
    if kind == "stem":  # from the middle outwards
        sums_D1, steps_T = np.arange(2 * length - 1)[:, None], np.arange((length + 1) // 2)
        i_DT = (sums_D1 - 1) // 2 - steps_T
        j_DT = sums_D1 - i_DT
    else:
        i_DT = np.broadcast_to(np.arange(length), (length, length))
        j_DT = i_DT + np.arange(length)[:, None]
    outside = (i_DT < 0) | (j_DT >= length)
    return np.where(outside, 0, i_DT), np.where(outside, 0, j_DT)


def _best(scores_LL: np.ndarray, i_DT: np.ndarray, j_DT: np.ndarray) -> tuple[float, int, int, int]:
    """(score, line, first cell, cell after the last) of the segment with the largest sum of all lines (Kadane)."""
    scores_TD = scores_LL[i_DT, j_DT].T
    running_D, first_D = np.zeros(scores_TD.shape[1]), np.zeros(scores_TD.shape[1], np.int64)
    best = (0.0, 0, 0, 0)
    for at, score_D in enumerate(scores_TD):
        fresh_D = running_D <= 0
        first_D[fresh_D] = at
        running_D = np.where(fresh_D, score_D, running_D + score_D)
        line = int(running_D.argmax())
        if running_D[line] > best[0]:
            best = float(running_D[line]), line, int(first_D[line]), at + 1
    return best


def _runs(
    kind: Kind,
    scores_LL: np.ndarray,
    line: tuple[np.ndarray, np.ndarray],
    chance_S: np.ndarray,
    even_LL: np.ndarray,
    median_LL: np.ndarray,
) -> list[Run]:
    """The runs of one kind, the best first; consumes `scores_LL`."""
    found: list[Run] = []
    while len(found) < MOST_RUNS:
        score, number, first, last = _best(scores_LL, *line)
        p = (1 + int(np.count_nonzero(chance_S >= score))) / (1 + len(chance_S))
        if not score or p > MAX_P:
            break
        i_T, j_T = (cells_DT[number, first:last] for cells_DT in line)
        ends = int(i_T.min()), int(i_T.max()) + 1, int(j_T.min()), int(j_T.max()) + 1
        mean, background = float(even_LL[i_T, j_T].mean()), float(np.median(median_LL[i_T, j_T]))
        found.append(Run(kind, *ends, mean, background, score, p))
        for i, j in zip(i_T.tolist(), j_T.tolist(), strict=True):
            scores_LL[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3] = _NONE
    return found
