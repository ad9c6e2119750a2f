"""Blending and packing: proportions, whole passes, rows that fill up, nothing lost."""

import numpy as np
import pytest

from megadna.data.samples import Blend, PackedRows
from megadna.errors import UserError


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [0.9123, 0.0877 - 1e-4, 1e-4], [0.01] * 100])
def test_realised_shares_are_those_asked_for(shares: list[float]) -> None:
    groups, _ = Blend(shares).locate(np.arange(100_000))
    realised = np.bincount(groups, minlength=len(shares)) / 100_000
    assert np.abs(realised - shares).max() < 1e-4
    early = np.bincount(groups[:1000], minlength=len(shares)) / 1000
    assert np.abs(early - shares).max() < 0.005


def test_numbers_within_a_group_count_up_without_gaps() -> None:
    groups, numbers = Blend([0.7, 0.2, 0.1]).locate(np.arange(200_000))
    for group in range(3):
        own = numbers[groups == group]
        assert np.array_equal(own, np.arange(len(own)))


def test_a_share_too_small_to_keep_is_refused() -> None:
    with pytest.raises(UserError, match="too small"):
        Blend([1 - 1e-7, 1e-7])


@pytest.mark.parametrize("seed", range(5))
def test_packed_rows_hold_every_window_once_and_fit(seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(3, 513, size=2000)
    tokens[::3] = 512
    packed = PackedRows(tokens, 512)
    rows = [packed.windows(row) for row in range(len(packed))]
    assert sorted(window for row in rows for window in row) == list(range(2000))
    totals = [int(tokens[row].sum()) for row in rows]
    assert max(totals) <= 512
    assert sum(totals) / (512 * len(rows)) > 0.98


def test_full_windows_stand_alone() -> None:
    packed = PackedRows(np.full(10, 512), 512)
    assert [packed.windows(row) for row in range(len(packed))] == [[number] for number in range(10)]
