"""Windows: an epoch shows every base once, tails included."""

import numpy as np
import pytest

from megadna.data.dataset import ChunkPool, open_chunks
from megadna.data.samples import Windows


class Pool(ChunkPool):
    """Chunks of given lengths, all A."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = np.array(lengths, dtype=np.int32)
        self.chunk_length = max(lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, chunk: int) -> np.ndarray:
        return np.full(self._lengths[chunk], ord("A"), dtype=np.uint8)

    def lengths_of(self, start: int, stop: int) -> np.ndarray:
        return self._lengths[start:stop]


def coverage(pool: Pool, windows: Windows, epoch: int) -> list[np.ndarray]:
    seen = [np.zeros(len(pool[chunk]), dtype=int) for chunk in range(len(pool))]
    for window in range(len(windows)):
        chunk, start, stop = windows.span(window, seed=1, epoch=epoch)
        seen[chunk][start:stop] += 1
    return seen


@pytest.mark.parametrize("row_bases", [100, 510, 999, 1000, 3000])
def test_consecutive_windows_show_every_base_once(row_bases: int) -> None:
    pool = Pool([1000] * 40 + [1, 37, 500, 999] + [1000] * 3000)
    windows = Windows(pool, [(0, len(pool))], row_bases=row_bases)
    unseen = 0
    for seen in coverage(pool, windows, epoch=0):
        assert seen.max() <= 1
        unseen += int((seen == 0).sum())
    assert unseen == (3040 if row_bases == 999 else 0)
    spans = [windows.span(window, seed=1, epoch=0) for window in range(len(windows))]
    assert [stop - start for _, start, stop in spans] == windows.lengths().tolist()


def test_a_small_tail_moves_the_windows_from_epoch_to_epoch() -> None:
    pool = Pool([4000] * 50)
    windows = Windows(pool, [(0, 50)], row_bases=3998)
    assert len(windows) == 50
    offsets = {windows.span(chunk, seed=1, epoch=epoch)[1] for chunk in range(50) for epoch in range(5)}
    assert offsets == {0, 1, 2}
    assert windows.span(3, seed=1, epoch=2) == windows.span(3, seed=1, epoch=2)


def test_ranges_pick_their_own_chunks() -> None:
    pool = Pool([1000] * 30)
    windows = Windows(pool, [(5, 10), (20, 22)], row_bases=400)
    chunks = [windows.span(window, seed=1, epoch=0)[0] for window in range(len(windows))]
    assert chunks == [chunk for chunk in [5, 6, 7, 8, 9, 20, 21] for _ in range(3)]


def test_datasets_lie_end_to_end(two_genomes: list[str]) -> None:
    pool = open_chunks(two_genomes, "train")
    first, second = pool.datasets
    assert len(pool) == len(first) + len(second)
    assert bytes(pool[0]) == bytes(first[0]) and bytes(pool[len(first)]) == bytes(second[0])
    assert bytes(pool[len(pool) - 1]) == bytes(second[len(second) - 1])
    whole = np.concatenate([first.lengths, second.lengths])
    assert np.array_equal(pool.lengths, whole)
    assert np.array_equal(pool.lengths_of(len(first) - 2, len(first) + 3), whole[len(first) - 2 : len(first) + 3])
