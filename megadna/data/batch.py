"""A micro-batch: rows of [CLS] tokens [SEP], padded where they are short.

In:  masked windows (megadna.data.masking), one a row or several where rows are packed.
Out: Rows, which loader processes build: small numpy arrays (about 2.5 bytes a token), cheap to send; and Batch, the
     tensors that the training process makes of them. Batches without padding carry no lengths, so that attention runs
     without a mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadna.data.masking import Masked
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer

# Shapes: B rows of the micro-batch, S tokens of a row, M masked positions of a batch.

IGNORE_INDEX = -100


@dataclass
class Batch:
    """Tensors of one micro-batch on the host, pinned if asked for."""

    tokens_BS: Tensor
    """int64: what the model sees."""
    labels_BS: Tensor
    """int64: true ids at masked positions, -100 elsewhere."""
    weights_BS: Tensor
    """float32: weight of each masked position in the loss, 0 elsewhere."""
    lengths_B: Tensor | None
    """int32: tokens of each row that are not padding; None where every row is full."""
    samples_B: Tensor
    """int64: sample indices (training) or chunk numbers (evaluation)."""
    positions_BS: Tensor | None = None
    """int64, packed batches only: position of each token in its own window."""
    cumulative_lengths: Tensor | None = None
    """int32, packed batches only: starts of the windows in the flattened B x S tokens, and B x S. The padding after a
    row counts as a window."""


@dataclass
class Rows:
    """The same as numpy arrays, to be sent from a loader process to the training process."""

    tokens_BS: NDArray
    positions_M: NDArray[np.int32]
    """Index of each masked position in the flattened B x S tokens."""
    targets_M: NDArray
    weights_M: NDArray[np.float32]
    lengths_B: NDArray[np.int32]
    samples_B: NDArray[np.int64]
    window_starts: NDArray[np.int32] | None

    def attended_pairs(self) -> int:
        """Pairs of tokens of the same window, padding left out: what attention must at least compute."""
        lengths_B = self.lengths_B.astype(np.int64)
        if self.window_starts is None:
            return int((lengths_B**2).sum())
        windows = np.diff(np.append(self.window_starts, self.tokens_BS.size)).astype(np.int64)
        padding_B = self.tokens_BS.shape[1] - lengths_B
        return int((windows**2).sum() - (padding_B**2).sum())

    def batch(self, *, pin: bool = False) -> Batch:
        """Tensors, in page-locked memory if `pin`."""
        shape = self.tokens_BS.shape
        tokens_BS = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
        labels_BS = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
        weights_BS = torch.empty(shape, dtype=torch.float32, pin_memory=pin)
        tokens_BS.numpy()[:] = self.tokens_BS
        labels_BS.fill_(IGNORE_INDEX).numpy().reshape(-1)[self.positions_M] = self.targets_M
        weights_BS.zero_().numpy().reshape(-1)[self.positions_M] = self.weights_M
        full = bool((self.lengths_B == shape[1]).all())
        batch = Batch(
            tokens_BS=tokens_BS,
            labels_BS=labels_BS,
            weights_BS=weights_BS,
            lengths_B=None if full else torch.from_numpy(self.lengths_B),
            samples_B=torch.from_numpy(self.samples_B),
        )
        if self.window_starts is not None:
            edges = np.append(self.window_starts, tokens_BS.numel()).astype(np.int32)
            positions = np.arange(tokens_BS.numel()) - np.repeat(self.window_starts, np.diff(edges))
            batch.positions_BS = torch.from_numpy(positions.reshape(shape))
            batch.cumulative_lengths = torch.from_numpy(edges)
        return batch


def collate(
    rows: list[list[Masked]], numbers: NDArray, tokenizer: Tokenizer, sequence_length: int, *, packed: bool = False
) -> Rows:
    """Rows of `sequence_length` tokens, [CLS] and [SEP] around each window; `numbers` [B] names the rows."""
    shape = (len(rows), sequence_length)
    tokens_BS = np.full(shape, tokenizer.pad_id, dtype=np.min_scalar_type(tokenizer.vocab_size))
    lengths_B = np.zeros(len(rows), dtype=np.int32)
    window_starts, positions, targets, weights = [], [], [], []
    for number, windows in enumerate(rows):
        at = 0
        for window in windows:
            end = at + 1 + len(window.tokens)
            assert end < sequence_length, f"row {numbers[number]}: {end + 1} tokens do not fit {sequence_length}"
            tokens_BS[number, at] = tokenizer.cls_id
            tokens_BS[number, at + 1 : end] = window.tokens
            tokens_BS[number, end] = tokenizer.sep_id
            chosen = np.flatnonzero(window.chosen)
            positions.append(chosen + (number * sequence_length + at + 1))
            targets.append(window.targets[chosen])
            weights.append(np.ones(len(chosen)) if window.weights is None else window.weights[chosen])
            window_starts.append(number * sequence_length + at)
            at = end + 1
        lengths_B[number] = at
        if at < sequence_length:
            window_starts.append(number * sequence_length + at)
    return Rows(
        tokens_BS=tokens_BS,
        positions_M=np.concatenate(positions).astype(np.int32),
        targets_M=np.concatenate(targets),
        weights_M=np.concatenate(weights).astype(np.float32),
        lengths_B=lengths_B,
        samples_B=np.array(numbers, dtype=np.int64),
        window_starts=np.array(window_starts, dtype=np.int32) if packed else None,
    )


def row_tokens(tokenizer: Tokenizer, num_bases: int) -> int:
    """Tokens that a window of `num_bases` takes in a row, [CLS] and [SEP] included."""
    return tokenizer.num_tokens(num_bases) + NUM_SPECIAL
