"""Order of samples: permutations without an index, uniform, new every epoch, with ranges left out."""

import numpy as np
import pytest

from megadna.data.order import Stream, epoch_rows, mix, permute, sample_rng, skip_ranges


def chi_square(counts: np.ndarray, expected: float) -> float:
    """Standard deviations that the chi-square statistic of the counts lies above its mean."""
    degrees = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 100, 101, 1023, 1024, 1025, 99_991])
def test_every_place_comes_once(size: int) -> None:
    for key in range(3):
        result = permute(np.arange(size), size, mix(key))
        assert np.array_equal(np.sort(result), np.arange(size))


def test_44_million_places_need_no_start_up() -> None:
    size = 44_000_000
    places = np.arange(0, size, 44_017)
    result = permute(places, size, mix(1))
    assert len(np.unique(result)) == len(places) and result.min() >= 0 and result.max() < size
    assert np.array_equal(permute(places[5:6], size, mix(1)), result[5:6])


def test_places_are_uniform_over_keys() -> None:
    size, keys = 10, 20_000
    for place in (0, 3, 9):
        images = permute(np.full(keys, place), size, mix(7, np.arange(keys)))
        assert chi_square(np.bincount(images, minlength=size), keys / size) < 4


def test_neighbours_are_independent() -> None:
    size = 1_000_000
    images = permute(np.arange(200_000), size, mix(3)) // (size // 10)
    pairs = np.bincount(images[:-1] * 10 + images[1:], minlength=100)
    assert chi_square(pairs, len(images) / 100) < 4


def test_epochs_differ_and_each_holds_every_row() -> None:
    epochs, rows = epoch_rows(np.arange(3 * 1000), 1000, seed=5, group=0)
    assert epochs.tolist() == [0] * 1000 + [1] * 1000 + [2] * 1000
    rows = rows.reshape(3, 1000)
    assert (np.sort(rows) == np.arange(1000)).all()
    assert (rows[0] != rows[1]).mean() > 0.99
    assert (epoch_rows(np.arange(1000), 1000, seed=6, group=0)[1] != rows[0]).mean() > 0.99


def test_skipped_ranges_leave_the_other_samples_as_they_are() -> None:
    assert skip_ranges(np.arange(6), [(2, 4), (6, 7)]).tolist() == [0, 1, 4, 5, 7, 8]
    assert skip_ranges(np.arange(3), [(0, 2), (2, 5)]).tolist() == [5, 6, 7]
    assert skip_ranges(np.arange(3), []).tolist() == [0, 1, 2]


def test_random_numbers_depend_on_seed_sample_and_stream_alone() -> None:
    def draw(seed: int, index: int, stream: Stream) -> list[float]:
        return sample_rng(seed, index, stream).random(4).tolist()

    first = draw(1, 2, Stream.SAMPLE)
    assert first == draw(1, 2, Stream.SAMPLE)
    assert len({tuple(draw(*key)) for key in [(1, 2, s) for s in Stream] + [(2, 1, Stream.SAMPLE)]}) == 3
    draws = np.concatenate([sample_rng(9, i, Stream.SAMPLE).random(100) for i in range(1000)])
    assert chi_square(np.bincount((draws * 50).astype(int), minlength=50), 2000) < 4
