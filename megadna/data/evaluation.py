"""Fixed samples for masked bits per base: the same chunks, crops and hidden bases at every validation.

In:  a split of a dataset, a seed.
Out: samples as base codes and a hidden mask (what baselines read), and the same as batches (what the model reads).

Samples are the windows that fit the context (one a chunk, or several where chunks are longer: EvaluationWindows),
spread evenly over the split, read on the forward strand. 15 % of the tokens, chosen by a generator of (seed, sample
number) alone, are hidden by [MASK], all of them: none kept, none random, never N.
Where tokens overlap, spans that hide a base are chosen so that 15 % of the tokens are masked; hidden is a base that
no visible token shows.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megadna.config import MaskingConfig
from megadna.data.batch import Batch, Segment, collate
from megadna.data.chunks import ChunkPool
from megadna.data.dataset import ChunkDataset
from megadna.data.masking import Masked, maskable_ids
from megadna.data.order import Stream, sample_rng
from megadna.data.spans import build_masker
from megadna.tokenizer.alphabet import OTHER, Letters, base_codes
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer

HIDDEN_SHARE = 0.15
_HIDE_ALL = MaskingConfig(fraction=HIDDEN_SHARE, mask_share=1.0, random_share=0.0, exact=True)


class Chunks(Protocol):
    """Chunks by number: EvaluationWindows, a ChunkDataset or a ChunkPool."""

    def __len__(self) -> int: ...

    def __getitem__(self, chunk: int, /) -> Letters: ...


class EvaluationWindows:
    """The consecutive windows of a split that fit a row, as chunks: `windows[w]` is what sample w shows.

    A chunk shorter than a row is one window; of a longer one the tail that fills no row is left out.
    """

    def __init__(self, dataset: ChunkDataset | ChunkPool, tokenizer: Tokenizer, sequence_length: int) -> None:
        self._dataset = dataset
        self._row_bases = tokenizer.num_bases(sequence_length - NUM_SPECIAL)
        self._ends = np.cumsum(np.maximum(1, dataset.lengths // self._row_bases), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, window: int, /) -> Letters:
        chunk = int(self.chunks(window))
        first = int(self._ends[chunk - 1]) if chunk else 0
        start = (window - first) * self._row_bases
        return self._dataset[chunk][start : start + self._row_bases]

    def chunks(self, windows: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Chunk number of each window: errors are taken over chunks, not over windows of one."""
        return np.searchsorted(self._ends, windows, side="right")


def evaluation_chunks(num_chunks: int, samples: int) -> NDArray[np.int64]:
    """Chunk numbers of `samples` samples spread evenly over a split, ascending; all chunks if there are fewer."""
    samples = min(samples, num_chunks)
    return (2 * np.arange(samples) + 1) * num_chunks // (2 * samples)


def evaluation_sample(
    dataset: Chunks, chunk: int, tokenizer: Tokenizer, *, sequence_length: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """What the model sees of a chunk: base codes uint8 [n] (0..3 = A, C, G, T; 4 = other), and bool [n]: hidden."""
    letters, masked = _masked(dataset, chunk, tokenizer, sequence_length, seed)
    codes = base_codes(letters)
    # A k-mer over an N is [UNK]: it shows none of its bases, and is never chosen.
    shows = maskable_ids(tokenizer, choose_n=False)[masked.targets] & ~masked.chosen
    spans = tokenizer.spans(masked.targets)
    hidden = _under(masked.chosen, spans, len(codes)) & ~_under(shows, spans, len(codes)) & (codes != OTHER)
    return codes, hidden


def _under(tokens: NDArray[np.bool_], spans: tuple[NDArray, NDArray], num_bases: int) -> NDArray[np.bool_]:
    """Bases under any of the flagged tokens."""
    steps = np.zeros(num_bases + 1, dtype=np.int64)
    starts, stops = spans
    np.add.at(steps, starts[tokens], 1)
    np.add.at(steps, stops[tokens], -1)
    return np.cumsum(steps)[:-1] > 0


def evaluation_batches(
    dataset: Chunks,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    samples: int,
    seed: int,
    micro_batch_size: int,
    rank: int,
    size: int,
) -> Iterator[Batch]:
    """Rank `rank` of `size`'s part of the fixed samples; the last batch may have fewer rows, a rank may get none."""
    chunks = evaluation_chunks(len(dataset), samples)[rank::size]
    for start in range(0, len(chunks), micro_batch_size):
        part = chunks[start : start + micro_batch_size]
        masked = [_masked(dataset, int(chunk), tokenizer, sequence_length, seed)[1] for chunk in part]
        rows = [[Segment(*row, weights=None)] for row in masked]
        yield collate(rows, part, tokenizer, sequence_length).batch()


def _masked(
    dataset: Chunks, chunk: int, tokenizer: Tokenizer, sequence_length: int, seed: int
) -> tuple[Letters, Masked]:
    """Letters that fit a row, and their tokens with the fixed mask."""
    room = sequence_length - NUM_SPECIAL
    letters = dataset[chunk][: tokenizer.num_bases(room)]
    rng = sample_rng(seed, chunk, Stream.EVALUATION)
    masked = build_masker(tokenizer, _HIDE_ALL)(letters, rng, HIDDEN_SHARE)
    return letters, Masked(*(values[:room] for values in masked))
