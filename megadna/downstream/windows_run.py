"""Stretches of DNA through a model: windows, length-sorted batches, and the windows' outputs merged again.

Windows are cut and tokenized some hundred thousand bases at a time: memory does not grow with the stretches.

A stretch that fits the context is one window. A longer one is cut into windows that overlap by a quarter; the border
between two neighbours is the middle of their overlap, and a token counts in the window on whose side its middle base
lies: every output comes from the window in which it has the most context on its poorer side.
mean and max run over these tokens (context letters and special tokens left out); cls and the outputs of sequence heads
are averaged over windows; per nucleotide, a base gets the mean of the tokens that cover it, NaN where none does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megadna.downstream.encoder import SequenceTokenizer, Tokens
from megadna.errors import UserError
from megadna.genome.records import Stretch, window_grid

# Shapes: B batch, S sequence (tokens), F features, L bases.
Reduce = Literal["mean", "max", "window", "nucleotide"]
Forward = Callable[[Tensor, Tensor], Tensor]
"""ids [B, S], attention mask [B, S] -> features [B, S, F]; [B, F] where the reduction is `window`."""
MAX_GROUP_BASES = 1 << 17
"""Bases of the windows that are tokenized and sorted by length at once: a token takes up to 200 bytes meanwhile."""


@dataclass(frozen=True, slots=True)
class Window:
    """Letters `start` to `start + size` of stretch number `owner`; it answers for its letters own_start to own_end."""

    owner: int
    start: int
    size: int
    own_start: int
    own_end: int


def cut_windows(owner: int, stretch: Stretch, size: int, stride: int) -> Iterator[Window]:
    """Windows of at most `size` bases, on the grid of the record that the stretch is part of."""
    held = len(stretch.bases)
    if held <= size and not (stretch.far_before or stretch.far_after):
        yield Window(owner, 0, held, stretch.before, held - stretch.after)
        return
    starts, borders = window_grid(stretch.far_before + held + stretch.far_after, size, stride)
    first, last = stretch.before, held - stretch.after
    edges = [first, *(borders - stretch.far_before).clip(first, last).tolist(), last]
    starts -= stretch.far_before
    for i in np.flatnonzero(np.diff(edges) > 0).tolist():
        yield Window(owner, int(starts[i]), min(size, held - int(starts[i])), edges[i], edges[i + 1])


class Runner:
    """One model, ready for any number of stretches."""

    def __init__(
        self, tokenizer: SequenceTokenizer, forward: Forward, reduce: Reduce, *, device: torch.device, batch_tokens: int
    ) -> None:
        self.tokenizer, self.reduce = tokenizer, reduce
        self._forward, self._device, self._batch_tokens = forward, device, batch_tokens
        self.report: Callable[[int], None] = lambda bases: None
        """Called with the bases that are done since the last call."""

    def __call__(self, stretches: Sequence[Stretch]) -> list[np.ndarray]:
        """fp32 [F] of each stretch; per nucleotide [L, F], context left out, in the order of its letters."""
        merged = [_Merged(stretch, self.reduce) for stretch in stretches]
        for group in self._groups(stretches):
            texts = [stretches[w.owner].bases[w.start : w.start + w.size] for w in group]
            tokens = self.tokenizer(texts)
            for window, found in zip(group, tokens, strict=True):
                if not len(found.starts):
                    raise UserError(f"{stretches[window.owner].name}: {window.size} bases give no token; leave it out")
            for batch in self._batches(tokens):
                owned = [_owned(group[i], tokens[i]) for i in batch]
                for i, mask, features in zip(batch, owned, self._run([tokens[i] for i in batch], owned), strict=True):
                    merged[group[i].owner].add(group[i], tokens[i], mask, features)
                self.report(sum(group[i].own_end - group[i].own_start for i in batch))
        return [each.result() for each in merged]

    def _groups(self, stretches: Sequence[Stretch]) -> Iterator[list[Window]]:
        """The windows of all stretches, MAX_GROUP_BASES and a window at most at a time."""
        group: list[Window] = []
        bases = 0
        for number, stretch in enumerate(stretches):
            size = stretch.window or self.tokenizer.max_bases(stretch.bases)
            for window in cut_windows(number, stretch, size, self.tokenizer.stride):
                group.append(window)
                bases += window.size
                if bases >= MAX_GROUP_BASES:
                    yield group
                    group, bases = [], 0
        if group:
            yield group

    def _batches(self, tokens: list[Tokens]) -> Iterator[list[int]]:
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i].ids))
        while order:
            count = max(1, self._batch_tokens // len(tokens[order[0]].ids))
            yield order[:count]
            order = order[count:]

    @torch.inference_mode()
    def _run(self, batch: list[Tokens], owned: list[np.ndarray]) -> list[np.ndarray]:
        """Features of each window: reduced [F] where that can be done on the device, else one row a token."""
        longest = max(len(tokens.ids) for tokens in batch)
        ids = np.full((len(batch), longest), self.tokenizer.pad_id)
        mask, own = np.zeros((len(batch), longest), bool), np.zeros((len(batch), longest), bool)
        for row, (tokens, keep) in enumerate(zip(batch, owned, strict=True)):
            ids[row, : len(tokens.ids)], mask[row, : len(tokens.ids)] = tokens.ids, True
            own[row, self.tokenizer.prefix : self.tokenizer.prefix + len(keep)] = keep
        ids_BS, mask_BS, own_BS = (torch.from_numpy(array).to(self._device) for array in (ids, mask, own))
        features = self._forward(ids_BS, mask_BS.long()).float()
        if self.reduce == "mean":
            features = (features * own_BS[:, :, None]).sum(1)
        elif self.reduce == "max":
            features = features.masked_fill(~own_BS[:, :, None], -torch.inf).amax(1)
        elif self.reduce == "nucleotide":
            place = self.tokenizer.prefix
            return [row[place : place + len(keep)] for row, keep in zip(features.cpu().numpy(), owned, strict=True)]
        return list(features.cpu().numpy())


def _owned(window: Window, tokens: Tokens) -> np.ndarray:
    """Which tokens have their middle base in the bases that the window answers for."""
    middle = window.start + tokens.starts + np.maximum(tokens.lengths - 1, 0) // 2
    return (middle >= window.own_start) & (middle < window.own_end)


class _Merged:
    """What the windows of one stretch gave so far."""

    def __init__(self, stretch: Stretch, reduce: Reduce) -> None:
        self._reduce, self._before, self._size = reduce, stretch.before, stretch.end - stretch.start
        self._total: np.ndarray | None = None  # sums in fp64: a chromosome is the sum of many thousand windows
        self._count = 0

    def add(self, window: Window, tokens: Tokens, owned: np.ndarray, features: np.ndarray) -> None:
        if self._reduce == "nucleotide":
            self._add_bases(window, tokens, features)
            return
        self._count += int(owned.sum()) if self._reduce == "mean" else 1
        if self._total is None:
            self._total = features.astype(np.float32 if self._reduce == "max" else np.float64)
        elif self._reduce == "max":
            np.maximum(self._total, features, out=self._total)
        else:
            self._total += features

    def _add_bases(self, window: Window, tokens: Tokens, features_TF: np.ndarray) -> None:
        num_bases = window.size
        total_LF, count_L = np.zeros((num_bases, features_TF.shape[1]), np.float32), np.zeros(num_bases, np.float32)
        for place in range(int(tokens.lengths.max(initial=0))):
            inside = tokens.lengths > place
            total_LF[tokens.starts[inside] + place] += features_TF[inside]
            count_L[tokens.starts[inside] + place] += 1
        if self._total is None:
            self._total = np.full((self._size, features_TF.shape[1]), np.nan, np.float32)
        own = slice(window.own_start - window.start, window.own_end - window.start)
        with np.errstate(invalid="ignore"):
            mean_LF = total_LF[own] / count_L[own, None]
        self._total[window.own_start - self._before : window.own_end - self._before] = mean_LF

    def result(self) -> np.ndarray:
        assert self._total is not None
        if self._reduce in ("nucleotide", "max"):
            return self._total
        with np.errstate(invalid="ignore"):
            return (self._total / self._count).astype(np.float32)
