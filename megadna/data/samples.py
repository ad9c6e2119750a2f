"""Sample i of a training run: a pure function of (seed, i).

In:  the config, a tokenizer, the chunks of the training split.
Out: rows for any i: which windows, where they are cut, which strand, which tokens are asked for.

Order of a sample: group (blend), row of the group's epoch, window or packed windows, crop, length, strand, mask,
tokens.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megadna.config import Config, RateChange
from megadna.data.batch import Rows, Segment, collate, row_tokens
from megadna.data.blend import Blend
from megadna.data.chunks import ChunkPool, Group, blend_groups
from megadna.data.order import Stream, epoch_rows, sample_rng, skip_ranges
from megadna.data.packing import PackedRows
from megadna.data.spans import build_masker
from megadna.data.windows import Windows
from megadna.errors import UserError
from megadna.tokenizer.alphabet import Letters, reverse_complement
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer
from megadna.tokenizer.weights import LetterWeights

SHORTEST_CUT = 5
"""Bases that a sample of variable length has at least: DNABERT's number."""


@dataclass(frozen=True)
class GroupRows:
    """The rows of one group: windows, or packed windows."""

    group: Group
    windows: Windows
    packed: PackedRows | None

    def __len__(self) -> int:
        return len(self.windows) if self.packed is None else len(self.packed)


class Samples:
    """Rows of samples by their position in the run; holds tables and memory maps only, so loader workers share it."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        pool: ChunkPool,
        *,
        sequence_length: int,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._config = resolve_schedule(config)
        self._tokenizer = tokenizer
        self._pool = pool
        self._sequence_length = sequence_length
        self._skipped = skipped
        self._masker = build_masker(tokenizer, config.data.masking)
        # An N that is never chosen needs no weight.
        n_weight = config.data.n_weight if config.data.masking.choose_n else 1.0
        self._weights = LetterWeights(tokenizer, lower_case=config.data.lower_case_weight, n=n_weight)
        groups = blend_groups(pool, "train", config.data.blend)
        self._blend = Blend([group.share for group in groups])
        self.groups = [self._rows_of(group) for group in groups]

    def _rows_of(self, group: Group) -> GroupRows:
        row_bases = self._tokenizer.num_bases(self._sequence_length - NUM_SPECIAL)
        random_crop = self._config.data.crop == "random"
        windows = Windows(self._pool, group.ranges, row_bases=row_bases, random_crop=random_crop)
        if not self._config.data.packing:
            return GroupRows(group, windows, None)
        if self._tokenizer.kind == "sentencepiece":
            raise UserError("data.packing needs tokens of a fixed number of bases; switch it off for sentencepiece")
        sizes = np.array([row_tokens(self._tokenizer, length) for length in range(row_bases + 1)])
        return GroupRows(group, windows, PackedRows(sizes[windows.lengths()], self._sequence_length))

    def rows(self, positions: NDArray[np.int64]) -> Rows:
        """Rows of the samples at `positions` [B] of the run, the skipped ranges of samples left out."""
        indices = skip_ranges(positions, self._skipped)
        groups, numbers = self._blend.locate(indices)
        epochs, rows = np.empty_like(indices), np.empty_like(indices)
        for group in np.unique(groups):
            here = groups == group
            size = len(self.groups[group])
            epochs[here], rows[here] = epoch_rows(numbers[here], size, seed=self._config.seed, group=int(group))
        places = zip(indices.tolist(), groups.tolist(), epochs.tolist(), rows.tolist(), strict=True)
        segments = [self._segments(*place) for place in places]
        packed = self._config.data.packing
        return collate(segments, indices, self._tokenizer, self._sequence_length, packed=packed)

    def _segments(self, index: int, group: int, epoch: int, row: int) -> list[Segment]:
        rng = sample_rng(self._config.seed, index, Stream.SAMPLE)
        rows = self.groups[group]
        windows = [row] if rows.packed is None else rows.packed.windows(row)
        fraction = masking_fraction(self._config, index)
        return [self._segment(rows.windows, window, epoch, rng, fraction) for window in windows]

    def _segment(self, windows: Windows, window: int, epoch: int, rng: np.random.Generator, fraction: float) -> Segment:
        chunk, start, stop = windows.span(window, seed=self._config.seed, epoch=epoch)
        letters = self._cut(self._pool[chunk][start:stop], rng)
        if rng.random() < self._config.data.reverse_complement:
            letters = reverse_complement(letters)
        masked = self._masker(letters, rng, fraction)
        room = self._sequence_length - NUM_SPECIAL
        tokens, targets, chosen = (values[:room] for values in masked)
        return Segment(tokens, targets, chosen, self._weights(letters, targets))

    def _cut(self, letters: Letters, rng: np.random.Generator) -> Letters:
        """The whole window, or for `variable_length` of the samples a piece of uniform length at a uniform position."""
        share = self._config.data.variable_length
        if not share or rng.random() >= share:
            return letters
        length = min(len(letters), max(int(rng.random() * len(letters)), SHORTEST_CUT, self._tokenizer.bases_per_token))
        start = int(rng.integers(0, len(letters) - length + 1))
        return letters[start : start + length]


def resolve_schedule(config: Config) -> Config:
    """The config with the first sample of each masking rate filled in from its step; filled ones are kept."""
    schedule = [
        replace(change, sample=config.train.samples_after(change.step) if change.sample is None else change.sample)
        for change in config.data.masking.schedule
    ]
    return replace(config, data=replace(config.data, masking=replace(config.data.masking, schedule=schedule)))


def masking_fraction(config: Config, sample: int) -> float:
    """Masking rate of a sample, by the resolved schedule."""
    changes: list[RateChange] = config.data.masking.schedule
    number = bisect_right([change.sample or 0 for change in changes], sample)
    return changes[number - 1].fraction if number else config.data.masking.fraction
