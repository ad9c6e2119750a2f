"""A micro-batch: rows of [CLS] tokens [SEP], padded where they are short.

Loader processes build Rows: small numpy arrays (about 2.5 bytes a token), quick to send. The training process turns
them into a Batch of tensors. Batches without padding carry no lengths, so that attention runs without a mask.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer

# Shapes: B rows of the micro-batch, S tokens of a row, m tokens of a segment (no special tokens), A answers of a batch.

IGNORE_INDEX = -100


class Segment(NamedTuple):
    """One window after masking; arrays of m tokens, special tokens not among them."""

    tokens: NDArray
    targets: NDArray
    chosen: NDArray[np.bool_]
    weights: NDArray[np.float32] | None
    """None: all 1."""


@dataclass
class Batch:
    """Tensors of one micro-batch on the host, pinned if asked for."""

    tokens_BS: Tensor
    """int64: what the model sees."""
    labels_BS: Tensor
    """int64: what was there; -100 where nothing is asked."""
    weights_BS: Tensor
    """float32: weight of each answer in the loss; 0 where nothing is asked."""
    lengths_B: Tensor | None
    """int32: tokens of each row that are not padding; None where every row is full."""
    samples_B: Tensor
    """int64: sample indices (training) or chunk numbers (evaluation)."""
    positions_BS: Tensor | None = None
    """int64, packed batches only: position of each token in its own segment."""
    cumulative_lengths: Tensor | None = None
    """int32, packed batches only: where segments begin in the B x S tokens laid end to end, and B x S. The padding
    behind a row is a segment of its own."""


@dataclass
class Rows:
    """The same as numpy arrays, for the way from a loader process to the training process."""

    tokens_BS: NDArray
    places_A: NDArray[np.int32]
    """Where in the B x S tokens laid end to end an answer is asked for."""
    targets_A: NDArray
    weights_A: NDArray[np.float32]
    lengths_B: NDArray[np.int32]
    samples_B: NDArray[np.int64]
    segment_starts: NDArray[np.int32] | None

    def attended_pairs(self) -> int:
        """Pairs of tokens of the same sequence, padding left out: what attention must at least compute."""
        lengths_B = self.lengths_B.astype(np.int64)
        if self.segment_starts is None:
            return int((lengths_B**2).sum())
        segments = np.diff(np.append(self.segment_starts, self.tokens_BS.size)).astype(np.int64)
        padding_B = self.tokens_BS.shape[1] - lengths_B  # one segment behind a row
        return int((segments**2).sum() - (padding_B**2).sum())

    def batch(self, *, pin: bool = False) -> Batch:
        """Tensors, in page-locked memory if `pin`."""
        shape = self.tokens_BS.shape
        tokens_BS = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
        labels_BS = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
        weights_BS = torch.empty(shape, dtype=torch.float32, pin_memory=pin)
        tokens_BS.numpy()[:] = self.tokens_BS
        labels_BS.fill_(IGNORE_INDEX).numpy().reshape(-1)[self.places_A] = self.targets_A
        weights_BS.zero_().numpy().reshape(-1)[self.places_A] = self.weights_A
        full = bool((self.lengths_B == shape[1]).all())
        batch = Batch(
            tokens_BS=tokens_BS,
            labels_BS=labels_BS,
            weights_BS=weights_BS,
            lengths_B=None if full else torch.from_numpy(self.lengths_B),
            samples_B=torch.from_numpy(self.samples_B),
        )
        if self.segment_starts is not None:
            lengths = np.diff(self.segment_starts, append=tokens_BS.numel())
            places = np.arange(tokens_BS.numel()) - np.repeat(self.segment_starts, lengths)
            batch.positions_BS = torch.from_numpy(places.reshape(shape))
            batch.cumulative_lengths = torch.from_numpy(
                np.append(self.segment_starts, tokens_BS.numel()).astype(np.int32)
            )
        return batch


def collate(
    rows: list[list[Segment]], numbers: NDArray, tokenizer: Tokenizer, sequence_length: int, *, packed: bool = False
) -> Rows:
    """Rows of `sequence_length` tokens, [CLS] and [SEP] around each segment; `numbers` [B] names the rows."""
    shape = (len(rows), sequence_length)
    tokens_BS = np.full(shape, tokenizer.pad_id, dtype=np.min_scalar_type(tokenizer.vocab_size))
    lengths_B = np.zeros(len(rows), dtype=np.int32)
    segment_starts, places, targets, weights = [], [], [], []
    for number, segments in enumerate(rows):
        at = 0
        for segment in segments:
            end = at + 1 + len(segment.tokens)
            assert end < sequence_length, f"row {numbers[number]}: {end + 1} tokens do not fit {sequence_length}"
            tokens_BS[number, at] = tokenizer.cls_id
            tokens_BS[number, at + 1 : end] = segment.tokens
            tokens_BS[number, end] = tokenizer.sep_id
            chosen = np.flatnonzero(segment.chosen)
            places.append(chosen + (number * sequence_length + at + 1))
            targets.append(segment.targets[chosen])
            weights.append(np.ones(len(chosen)) if segment.weights is None else segment.weights[chosen])
            segment_starts.append(number * sequence_length + at)
            at = end + 1
        lengths_B[number] = at
        if at < sequence_length:
            segment_starts.append(number * sequence_length + at)
    return Rows(
        tokens_BS=tokens_BS,
        places_A=np.concatenate(places).astype(np.int32),
        targets_A=np.concatenate(targets),
        weights_A=np.concatenate(weights).astype(np.float32),
        lengths_B=lengths_B,
        samples_B=np.array(numbers, dtype=np.int64),
        segment_starts=np.array(segment_starts, dtype=np.int32) if packed else None,
    )


def row_tokens(tokenizer: Tokenizer, num_bases: int) -> int:
    """Tokens that a window of `num_bases` takes in a row, [CLS] and [SEP] included."""
    return tokenizer.num_tokens(num_bases) + NUM_SPECIAL
