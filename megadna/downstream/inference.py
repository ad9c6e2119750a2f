"""Pieces of DNA (stretches) -> windows -> batches of similar length -> a model -> rows of a table.

In:  the input that InputOptions name, a model with its tokenizer; a subclass of Inference says what its outputs are.
Out: a DataFrame, or the files that --output names, written in parts (megadna/downstream/outputs.py).
Bases are cut into windows and tokenized some hundred thousand at a time: memory does not grow with the input.

A stretch that fits the context is one window. A longer one is cut into windows that overlap by a quarter; the border
between two neighbours is the middle of their overlap, and a token counts in the window on whose side its middle base
is: every output comes from the window in which it has the most context on its poorer side.
mean and max run over these tokens (context bases and special tokens left out); cls and the outputs of sequence heads
are averaged over windows; per nucleotide, a base gets the mean of the tokens that cover it, NaN if none does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from megadna.downstream.encoder import (
    SequenceTokenizer,
    Tokens,
    batch_limit,
    batches_by_length,
    load_tokenizer,
    padded,
    pick_device,
)
from megadna.downstream.inputs import read_input
from megadna.downstream.outputs import Work, base_columns, grouped, sequence_columns
from megadna.errors import UserError
from megadna.genome.records import Stretch, divided, window_grid

# Shapes: B batch, S sequence (tokens), T tokens of a window, F features, L bases, N rows.
Reduce = Literal["mean", "max", "window", "nucleotide"]
Forward = Callable[[Tensor, Tensor], Tensor]
"""ids [B, S], attention mask [B, S] -> features [B, S, F]; [B, F] for the reduction `window`."""
MAX_GROUP_BASES = 1 << 17
"""Bases of the windows that are tokenized and sorted by length at once: a token takes up to 200 bytes meanwhile."""
MAX_BLOCK_BYTES = 1 << 23  # of outputs per nucleotide that wait to be written; the table exists up to five times
MAX_BLOCK_BASES = 1 << 19  # of a saved part: 10 to 60 s of a small model on a CPU
MAX_STRETCHES = 4096  # in a saved part


@dataclass(frozen=True, slots=True)
class Window:
    """Bases `start` to `start + size` of stretch number `owner`; its outputs are used for own_start to own_end."""

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
        self.report: Callable[[float], None] = lambda bases: None
        """Called with the bases done since the last call."""

    def __call__(self, stretches: Sequence[Stretch]) -> list[np.ndarray]:
        """fp32 [F] of each stretch; per nucleotide [L, F], context left out, in the order of its bases."""
        merged = [_Merged(stretch, self.reduce) for stretch in stretches]
        for group in self._groups(stretches):
            tokens = self.tokenizer([stretches[w.owner].bases[w.start : w.start + w.size] for w in group])
            for window, found in zip(group, tokens, strict=True):
                if not len(found.starts):
                    raise UserError(f"{stretches[window.owner].name}: {window.size} bases give no token; leave it out")
            for batch in batches_by_length([len(one.ids) for one in tokens], self._batch_tokens):
                owned = [_owned(group[i], tokens[i]) for i in batch]
                for i, mask, features in zip(batch, owned, self._run([tokens[i] for i in batch], owned), strict=True):
                    merged[group[i].owner].add(group[i], tokens[i], mask, features)
                self.report(sum(group[i].own_end - group[i].own_start for i in batch))
        return [each.result() for each in merged]

    def strands(self, stretches: list[Stretch], strand: str) -> list[np.ndarray]:
        """Outputs in the order of the stretches' bases, for the chosen strand or the mean of both."""
        flip = slice(None, None, -1) if self.reduce == "nucleotide" else slice(None)
        forward = self(stretches) if strand != "reverse" else []
        backward = [array[flip] for array in self([s.reversed() for s in stretches])] if strand != "forward" else []
        if strand == "both":
            return [(one + other) / 2 for one, other in zip(forward, backward, strict=True)]
        return forward or backward

    def _groups(self, stretches: Sequence[Stretch]) -> Iterator[list[Window]]:
        """The windows of all stretches, at most MAX_GROUP_BASES and one window at a time."""
        windows = (
            window
            for number, stretch in enumerate(stretches)
            for window in cut_windows(
                number, stretch, stretch.window or self.tokenizer.max_bases(stretch.bases), self.tokenizer.stride
            )
        )
        return grouped(windows, (lambda window: window.size, MAX_GROUP_BASES))

    @torch.inference_mode()
    def _run(self, batch: list[Tokens], owned: list[np.ndarray]) -> list[np.ndarray]:
        """Features of each window: [F] if they can be reduced on the device, else one row per token."""
        ids_BS, mask_BS = padded([tokens.ids for tokens in batch], self.tokenizer.pad_id)
        own, first = torch.zeros(ids_BS.shape, dtype=torch.bool), self.tokenizer.prefix
        for row, keep in enumerate(owned):
            own[row, first : first + len(keep)] = torch.from_numpy(keep)
        ids_BS, mask_BS, own_BS = (values.to(self._device) for values in (ids_BS, mask_BS, own))
        features = self._forward(ids_BS, mask_BS).float()
        if self.reduce == "mean":
            features = (features * own_BS[:, :, None]).sum(1)
        elif self.reduce == "max":
            features = features.masked_fill(~own_BS[:, :, None], -torch.inf).amax(1)
        rows = features.cpu().numpy()
        if self.reduce == "nucleotide":
            return [row[first : first + len(keep)] for row, keep in zip(rows, owned, strict=True)]
        return list(rows)


def _owned(window: Window, tokens: Tokens) -> np.ndarray:
    """Which tokens have their middle base in the window's own part."""
    middle = window.start + tokens.starts + np.maximum(tokens.lengths - 1, 0) // 2
    return (middle >= window.own_start) & (middle < window.own_end)


class _Merged:
    """The outputs of one stretch's windows so far."""

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
        num_features = features_TF.shape[1]
        total_LF, count_L = np.zeros((window.size, num_features), np.float32), np.zeros(window.size, np.float32)
        for offset in range(int(tokens.lengths.max(initial=0))):
            inside = tokens.lengths > offset
            total_LF[tokens.starts[inside] + offset] += features_TF[inside]
            count_L[tokens.starts[inside] + offset] += 1
        if self._total is None:
            self._total = np.full((self._size, num_features), np.nan, np.float32)
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


class Inference(Work):
    """A model, its tokenizer and the options. Subclasses define the model's outputs (`forward`) and their columns
    (`values`)."""

    def __init__(self, options: Any, model: Any, reduce: Reduce, numbers_per_base: int) -> None:
        """numbers_per_base: fp32 numbers, or as many bytes / 4, that a base's row takes; for `nucleotide` only."""
        super().__init__(options)
        self.per_base = reduce == "nucleotide"
        self.tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
        device = pick_device()
        bf16 = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
        self.model = model.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
        tokens = batch_limit(options.batch_tokens, device)
        self.runner = Runner(self.tokenizer, self.forward, reduce, device=device, batch_tokens=tokens)
        passes = 2 if options.strand in ("both", "apart") else 1  # both strands of a base count as one base
        self.runner.report = lambda done: self.progress.advance(done / passes)
        self.block_size = max(1, MAX_BLOCK_BYTES // (4 * numbers_per_base)) if self.per_base else MAX_BLOCK_BASES
        """Bases of a saved part, approximately."""
        self.longest = self.block_size if self.per_base else 0
        """Bases above which a stretch is divided, as its outputs would not fit memory; 0: never."""

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """See Forward."""
        raise NotImplementedError

    def values(self, features_NF: np.ndarray) -> dict[str, Any]:
        """The columns of outputs, by name."""
        raise NotImplementedError

    def stretches(self) -> Iterator[Stretch]:
        """The whole input."""
        options, tokenizer = self.options, self.tokenizer
        context = tokenizer.max_bases() // 8 if options.bed is None else 0
        found = read_input(options, context=context)
        return divided(found, longest=self.longest, window=tokenizer.window_bases, stride=tokenizer.stride)

    def blocks(self) -> Iterator[list[Stretch]]:
        """The input in lists of at most MAX_STRETCHES stretches and about `block_size` bases."""
        return grouped(
            self.stretches(), (lambda stretch: len(stretch.bases), self.block_size), (lambda _: 1, MAX_STRETCHES)
        )

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The rows of some stretches."""
        return self.rows(stretches, self.options.strand)

    def rows(self, stretches: list[Stretch], strand: str) -> pa.Table:
        """The rows of some stretches, for one strand or the mean of both."""
        arrays = self.runner.strands(stretches, strand)
        features_NF = np.concatenate(arrays) if self.per_base else np.stack(arrays)
        columns = base_columns(stretches) if self.per_base else sequence_columns(stretches)
        return pa.table({**columns, **self.values(features_NF)})

    def settings(self) -> dict[str, Any]:
        """The options, and the size of a part."""
        return super().settings() | {"block": self.block_size}
