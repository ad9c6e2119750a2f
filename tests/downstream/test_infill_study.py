"""The arithmetic of tools/infill_study.py, beside all gaps counted one by one."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from infill_study import ORDER, Chain, steps_of

RNG = np.random.default_rng(4)


def test_the_chain_knows_both_flanks():
    chain = Chain([RNG.integers(0, 4, 30_000, dtype=np.uint8) // np.uint8(1 + number) for number in range(2)])
    codes_L, first, last = RNG.integers(0, 4, 20, dtype=np.uint8), 8, 11

    def joint(codes: np.ndarray) -> float:
        p = 1.0
        for at in range(first, last + ORDER):
            p *= chain.p_C4[int("".join(map(str, codes[at - ORDER : at])), 4), codes[at]]
        return p

    found, total = {}, 0.0
    for gap in product(range(4), repeat=3):
        other_L = codes_L.copy()
        other_L[first:last] = gap
        found[gap] = joint(other_L)
        total += found[gap]
        p = np.prod([p_4[base] for p_4, base in zip(chain.gap_p(other_L, first, last), gap, strict=True)])
        found[gap] = (found[gap], p)
    for expected, p in found.values():
        assert p == pytest.approx(expected / total)
    drawn = [tuple(chain.draw(codes_L, first, last, RNG).tolist()) for _ in range(2000)]
    most = max(found, key=lambda gap: found[gap][1])
    p = found[most][1]
    assert drawn.count(most) / 2000 == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 2000))


def test_both_strands_are_counted():
    codes_L = RNG.integers(0, 4, 5000, dtype=np.uint8)
    np.testing.assert_allclose(Chain([codes_L]).p_C4, Chain([(3 - codes_L)[::-1]]).p_C4)


def test_a_base_is_written_given_the_flanks_and_what_is_written():
    shown_GL, at_G = steps_of(np.array([0, 1, 2, 3, 0]), 1, np.array([2, 0, 1]))
    assert at_G.tolist() == [3, 1, 2]
    assert shown_GL.tolist() == [[0, 4, 4, 4, 0], [0, 4, 4, 3, 0], [0, 1, 4, 3, 0]]
