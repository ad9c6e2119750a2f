"""Fixed samples for masked bits per base: the same chunks, windows and hidden bases at every evaluation.

In:  a split of a dataset, a tokenizer, a seed, a protocol.
Out: samples as DNA, tokens and hidden bases (which baselines read), and as batches (which the model reads).

As training validates (protocol ""): the windows that fit a row (one a chunk, or several where chunks are longer),
spread evenly over the split. 15 % of the tokens, chosen by a generator of (seed, window) alone, are hidden by [MASK].
Where tokens overlap, spans that hide a base are chosen so that 15 % of the tokens are masked; a base is hidden where no
visible token shows it. A tail that fills no row is left out.

The same bases for every tokenizer (protocols "base" and "block6"): whole chunks, spread evenly over the split, are
divided into cells of 48 bases. In each, one base or one of its eight blocks of six is hidden, chosen by a generator of
(seed, chunk) alone, by masking every token that touches it. A cell with anything but A, C, G, T hides nothing; the tail
after the last whole cell is not read. Windows are as many whole cells as fit a row. BPE pieces end at the edges of
blocks.

Always the forward strand; all that is chosen is masked: none kept, none random, never N.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import OTHER, Dna, base_codes, reverse_complement
from megadna.config import MaskingConfig
from megadna.data.batch import Batch, collate
from megadna.data.dataset import ChunkPool
from megadna.data.masking import Masked, build_masker, maskable_ids
from megadna.data.order import Stream, sample_rng
from megadna.errors import UserError, require
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer

# Shapes: n bases of a window, H hidden bases of a batch, row by row.

HIDDEN_SHARE = 0.15
CELL = 48
"""Bases of a cell: any k up to 8 but 5 and 7 divides it, and so does a block."""
WIDTHS = {"base": 1, "block6": 6}
"""Bases that a cell hides, by protocol."""
_HIDE_ALL = MaskingConfig(fraction=HIDDEN_SHARE, mask_share=1.0, random_share=0.0)


def evaluation_chunks(num_chunks: int, samples: int) -> NDArray[np.int64]:
    """Chunk numbers of `samples` samples spread evenly over a split, ascending; all chunks if there are fewer."""
    samples = min(samples, num_chunks)
    return (2 * np.arange(samples) + 1) * num_chunks // (2 * samples)


def hide_in_cells(bases: Dna, rng: np.random.Generator, width: int) -> NDArray[np.bool_]:
    """Which bases [n] of a chunk are hidden: `width` together in each whole cell of A, C, G, T, at a multiple of it."""
    cells = len(bases) // CELL
    starts = CELL * np.arange(cells) + width * rng.integers(CELL // width, size=cells)
    known = (base_codes(bases[: cells * CELL]) != OTHER).reshape(cells, CELL).all(axis=1)
    hidden = np.zeros(len(bases), dtype=np.bool_)
    hidden[(starts[known, None] + np.arange(width)).ravel()] = True
    return hidden


@dataclass(frozen=True)
class Sample:
    """One window after masking."""

    bases: Dna
    """The true bases."""
    masked: Masked
    hidden: NDArray[np.bool_]
    """Bases [n] that the model must predict."""

    def other_strand(self, tokenizer: Tokenizer) -> "Sample":
        """The reverse complement with the same bases hidden; only for tokens that begin at every base."""
        bases = reverse_complement(self.bases)
        targets, chosen = tokenizer.encode(bases), self.masked.chosen[::-1]
        assert len(targets) == len(chosen)
        return Sample(bases, _hide_all(targets, chosen, tokenizer), self.hidden[::-1])


@dataclass(frozen=True)
class HiddenBases:
    """The hidden bases of a batch, row by row; arrays [H]."""

    row_H: NDArray[np.int64]
    position_H: NDArray[np.int64]
    """Of each base in its window."""
    base_H: NDArray[np.uint8]
    """True base: 0..3 = A, C, G, T."""
    lower_H: NDArray[np.bool_]
    """Whether it is soft-masked."""


@dataclass(frozen=True)
class EvaluationSamples:
    """The samples of one split for one tokenizer: `samples[i]` is a Sample, a pure function of the settings and i.

    UserError where the protocol does not fit the tokenizer.
    """

    dataset: ChunkPool
    tokenizer: Tokenizer
    sequence_length: int
    """Tokens of a row, [CLS] and [SEP] included."""
    samples: int
    """Windows asked for; chunks under a protocol."""
    seed: int
    protocol: str = ""

    def __post_init__(self) -> None:
        if self.protocol:
            _check_protocol(self.protocol, self.tokenizer, self.sequence_length)

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def chunks(self) -> NDArray[np.int64]:
        """Chunk number of each sample: errors are taken over chunks, not over windows of one."""
        return self._windows[:, 1]

    @property
    def hides(self) -> str:
        """What is hidden, in words: scores compare only where this is equal."""
        if self.protocol:
            return f"one {'base' if self.protocol == 'base' else 'block of six'} in {CELL}"
        return f"{HIDDEN_SHARE:.0%} of the tokens"

    @cached_property
    def _windows(self) -> NDArray[np.int64]:
        """[samples, 4]: number that seeds the mask, chunk, first base, end."""
        if self.protocol:
            chunks = evaluation_chunks(len(self.dataset), self.samples).tolist()
            windows = [(chunk, chunk, *span) for chunk in chunks for span in self._cell_windows(chunk)]
            return np.array(windows, dtype=np.int64).reshape(-1, 4)
        row_bases = self.tokenizer.num_bases(self.sequence_length - NUM_SPECIAL)
        ends = np.cumsum(np.maximum(1, self.dataset.lengths // row_bases), dtype=np.int64)
        numbers = evaluation_chunks(int(ends[-1]), self.samples)
        chunks = np.searchsorted(ends, numbers, side="right")
        starts = (numbers - np.append(0, ends)[chunks]) * row_bases
        return np.stack([numbers, chunks, starts, starts + row_bases], axis=1)

    def __getitem__(self, index: int) -> Sample:
        number, chunk, start, stop = self._windows[index].tolist()
        bases = self.dataset[chunk][start:stop]
        if self.protocol:
            hidden = self._hidden_cells(chunk)[start:stop]
            return Sample(bases, self._mask(bases, hidden), hidden)
        rng = sample_rng(self.seed, number, Stream.EVALUATION)
        masker = build_masker(self.tokenizer, _HIDE_ALL, exact=True)
        masked = masker(bases, rng, HIDDEN_SHARE).first(self.sequence_length - NUM_SPECIAL)
        # A k-mer over an N is [UNK]: it shows none of its bases, and is never chosen.
        shows = maskable_ids(self.tokenizer)[masked.targets] & ~masked.chosen
        spans, codes = self.tokenizer.spans(masked.targets), base_codes(bases)
        hidden = _under(masked.chosen, spans, len(codes)) & ~_under(shows, spans, len(codes)) & (codes != OTHER)
        return Sample(bases, masked, hidden)

    def for_baselines(self) -> tuple[Iterator[tuple[Dna, NDArray[np.bool_]]], NDArray[np.int64]]:
        """(bases, hidden) of each sample, and its chunk; under a protocol of whole chunks, whatever the model."""
        if not self.protocol:
            samples = (self[index] for index in range(len(self)))
            return ((sample.bases, sample.hidden) for sample in samples), self.chunks
        chunks = np.unique(self.chunks)
        return ((self.dataset[c], self._hidden_cells(c)) for c in chunks.tolist()), chunks

    def batch(self, samples: Sequence[Sample], numbers: NDArray[np.int64]) -> tuple[Batch, HiddenBases]:
        """What the model reads, one sample a row, and what it must predict."""
        positions = [np.flatnonzero(sample.hidden) for sample in samples]
        bases_H = np.concatenate([sample.bases[sample.hidden] for sample in samples])
        hidden = HiddenBases(
            row_H=np.repeat(np.arange(len(samples)), list(map(len, positions))),
            position_H=np.concatenate(positions),
            base_H=base_codes(bases_H),
            lower_H=bases_H >= ord("a"),
        )
        rows = collate([[sample.masked] for sample in samples], numbers, self.tokenizer, self.sequence_length)
        return rows.batch(), hidden

    def groups(self) -> list[str]:
        """The group of each sample: its species, or the name of its source where no species is stated."""
        spans = sorted(
            (offset + source.ranges[dataset.split][0], source.species or source.name)
            for dataset, offset in zip(self.dataset.datasets, self.dataset.offsets, strict=False)
            for source in dataset.manifest.sources
            if source.ranges[dataset.split][0] < source.ranges[dataset.split][1]
        )
        indices = np.searchsorted([start for start, _ in spans], self.chunks, side="right") - 1
        return [spans[index][1] for index in indices.tolist()]

    def _hidden_cells(self, chunk: int) -> NDArray[np.bool_]:
        rng = sample_rng(self.seed, chunk, Stream.EVALUATION)
        return hide_in_cells(self.dataset[chunk], rng, WIDTHS[self.protocol])

    def _cell_windows(self, chunk: int) -> Iterator[tuple[int, int]]:
        """(first base, end) of the windows of a chunk: as many whole cells as fit a row, none without a hidden base."""
        bases, hidden = self.dataset[chunk], self._hidden_cells(chunk)
        room, start = self.sequence_length - NUM_SPECIAL, 0
        end = len(bases) // CELL * CELL
        while start < end:
            cells = min(self.tokenizer.num_bases(room), end - start) // CELL
            while len(self._mask(bases[start : start + cells * CELL], hidden[start:]).tokens) > room:
                cells -= 1  # BPE: the bases of a row are an estimate; one cell always fits
            stop = start + cells * CELL
            if hidden[start:stop].any():
                yield start, stop
            start = stop

    def _mask(self, bases: Dna, hidden: NDArray[np.bool_]) -> Masked:
        """The tokens of a window, [MASK] on each that touches a hidden base."""
        if self.tokenizer.kind != "sentencepiece":
            targets = self.tokenizer.encode(bases)
            starts, stops = self.tokenizer.spans(targets)
            before = np.append(0, np.cumsum(hidden[: len(bases)]))
            chosen = (before[stops] > before[starts]) & maskable_ids(self.tokenizer)[targets]
            return _hide_all(targets, chosen, self.tokenizer)
        begins = np.append(True, hidden[1 : len(bases)] != hidden[: len(bases) - 1])
        begins[::CELL] |= hidden[: len(bases) : CELL]  # two adjacent blocks are two
        starts = np.flatnonzero(begins)
        parts = [self.tokenizer.encode(part) for part in np.split(bases, starts[1:])]
        return _hide_all(np.concatenate(parts), np.repeat(hidden[starts], list(map(len, parts))), self.tokenizer)


def _check_protocol(protocol: str, tokenizer: Tokenizer, sequence_length: int) -> None:
    require(protocol in WIDTHS, f"no protocol {protocol!r}; one of {', '.join(WIDTHS)}")
    unit = WIDTHS["block6"] if protocol == "block6" else CELL
    if tokenizer.kind == "sentencepiece" and protocol == "base":
        raise UserError("protocol base hides single bases, which BPE pieces cannot predict; use block6")
    require(
        tokenizer.kind == "sentencepiece" or unit % tokenizer.stride == 0,
        f"protocol {protocol} needs tokens that tile {unit} bases; those of this model begin every {tokenizer.stride}",
    )
    room = sequence_length - NUM_SPECIAL
    require(
        (room if tokenizer.kind == "sentencepiece" else tokenizer.num_bases(room)) >= CELL,
        f"protocol {protocol} reads cells of {CELL} bases; rows of {sequence_length} tokens are too short",
    )


def _hide_all(targets: NDArray, chosen: NDArray[np.bool_], tokenizer: Tokenizer) -> Masked:
    return Masked(np.where(chosen, tokenizer.mask_id, targets).astype(targets.dtype), targets, chosen)


def _under(tokens: NDArray[np.bool_], spans: tuple[NDArray, NDArray], num_bases: int) -> NDArray[np.bool_]:
    """Bases under any of the flagged tokens."""
    steps = np.zeros(num_bases + 1, dtype=np.int64)
    starts, stops = spans
    np.add.at(steps, starts[tokens], 1)
    np.add.at(steps, stops[tokens], -1)
    return np.cumsum(steps)[:-1] > 0
