"""Masked language modelling: which tokens of a window the model must predict, and what it sees instead.

In:  the DNA of one window, a tokenizer, an explicit random generator.
Out: Masked: ids that the model sees, true ids, and which of them it must predict.

Vectorised numpy, no loop over tokens. A chosen token becomes [MASK], another nucleotide token, or stays (80/10/10 by
default: Devlin et al., arXiv:1810.04805, section 3.1). Special tokens, padding, [UNK] and N are never chosen.

TokenMasker treats tokens one by one. Overlapping k-mers need more: hiding one base means masking every token over it.
SpanMasker corrupts bases and then tokenizes, so that all k tokens over a base agree and nothing leaks. Each position,
up to the edges, begins a span with the same probability, which makes the share of chosen tokens exact in expectation. A
masked span wins over a random one, a random one over a kept one. Where two masked spans are close, the bases between
them are hidden as well. DnabertMasker is DNABERT's own algorithm (Ji et al., Bioinformatics 2021; run_pretrain.py), for
comparison: the tokens of one span are corrupted one by one, so a kept token shows its neighbours' target.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import OTHER, Dna, base_codes, code_dna
from megadna.config import MaskingConfig
from megadna.errors import UserError
from megadna.tokenizer.base import Tokenizer

# Shapes: n bases of a window, m tokens (special tokens not among them), V vocabulary.


class Masked(NamedTuple):
    """One window after masking; arrays of m tokens, special tokens not among them."""

    tokens: NDArray
    """What the model sees."""
    targets: NDArray
    """The true ids."""
    chosen: NDArray[np.bool_]
    """Which ones the model must predict."""
    weights: NDArray[np.float32] | None = None
    """In the loss; None: all 1."""

    def first(self, num_tokens: int) -> "Masked":
        """At most `num_tokens` tokens, not weighted yet: a sentencepiece model may give more than fit a row."""
        return Masked(self.tokens[:num_tokens], self.targets[:num_tokens], self.chosen[:num_tokens])


class TokenMasker:
    """BERT masking of single tokens."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig, *, exact: bool = False) -> None:
        """exact: choose the rounded share of each window exactly, instead of each token with that probability."""
        self._config = config
        self._exact = exact
        self._tokenizer = tokenizer
        self._maskable_V = maskable_ids(tokenizer)

    def __call__(self, bases: Dna, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window; `fraction` of its maskable tokens are chosen: in expectation, or exactly (rounded)."""
        config = self._config
        targets = self._tokenizer.encode(bases)
        maskable = self._maskable_V.take(targets)
        draw: NDArray = rng.random(len(targets), dtype=np.float32)
        if self._exact:
            draw, fraction = _ranked(draw, maskable, rng), round(fraction * int(maskable.sum()))
        chosen = (draw < fraction) & maskable
        # Given that a token is chosen, draw / fraction is uniform again: one number decides both questions.
        masked_below = fraction * config.mask_share
        random_below = masked_below + fraction * config.random_share
        tokens = targets.copy()
        tokens[chosen & (draw < masked_below)] = self._tokenizer.mask_id
        replaced = np.flatnonzero(chosen & (draw >= masked_below) & (draw < random_below))
        tokens[replaced] = other_tokens(targets[replaced], self._tokenizer.nucleotide_ids, rng)
        return Masked(tokens, targets, chosen)


def maskable_ids(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which ids [V] may be chosen: those made of A, C, G, T."""
    maskable_V = np.zeros(tokenizer.vocab_size, dtype=bool)
    maskable_V[tokenizer.nucleotide_ids] = True
    return maskable_V


def _ranked(draw: NDArray, maskable: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Ranks 0, 1, 2, ... of the draws among the maskable tokens, shifted by one number in [0, 1): shares that are not a
    whole number of tokens are right on average."""
    positions = np.flatnonzero(maskable)
    ranks = np.full(len(draw), np.inf)
    ranks[positions[np.argsort(draw[positions])]] = np.arange(len(positions)) + rng.random(dtype=np.float32)
    return ranks


def other_tokens(ids: NDArray, nucleotide_ids: NDArray, rng: np.random.Generator) -> NDArray:
    """For each id a uniform draw from the nucleotide tokens other than itself."""
    ranks = np.searchsorted(nucleotide_ids, ids)
    same = nucleotide_ids.take(ranks, mode="clip") == ids
    draws = rng.integers(0, len(nucleotide_ids) - same)
    return nucleotide_ids[draws + (same & (draws >= ranks))]


class SpanMasker:
    """Hides spans of `hidden_bases` bases: [MASK] on every token over them, other bases, or the same."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._width = config.hidden_bases + tokenizer.bases_per_token - 1
        self._maskable_V = maskable_ids(tokenizer)

    def __call__(self, bases: Dna, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window; every token over A, C, G, T alone is chosen with probability `fraction`."""
        config = self._config
        # A token is chosen if any of `width` positions begins a span over it.
        start_rate = 1 - (1 - fraction) ** (1 / self._width)
        # Spans may begin before the window: position 0 of the draws is base 1 - hidden_bases.
        draw = rng.random(len(bases) + config.hidden_bases - 1)
        below = start_rate * np.cumsum([config.mask_share, config.random_share])
        hidden_n, masked_n, random_n = (
            _any_in_window(starts, config.hidden_bases)
            for starts in (draw < start_rate, draw < below[0], (draw >= below[0]) & (draw < below[1]))
        )
        targets = self._tokenizer.encode(bases)
        tokens = self._tokenizer.encode(_corrupt(bases, random_n, rng))
        k = self._tokenizer.bases_per_token
        maskable = self._maskable_V.take(targets)
        chosen = _any_in_window(hidden_n, k) & maskable
        tokens[_any_in_window(masked_n, k) & maskable] = self._tokenizer.mask_id
        return Masked(tokens, targets, chosen)


def _any_in_window(flags: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """For each run of `width` flags [n]: is any set? bool [n - width + 1]."""
    count = max(0, len(flags) - width + 1)
    result = flags[:count].copy()
    for shift in range(1, width):
        result |= flags[shift : shift + count]
    return result


def _corrupt(bases: Dna, random_n: NDArray[np.bool_], rng: np.random.Generator) -> Dna:
    """The window with another base at each flagged A, C, G, T."""
    codes = base_codes(bases)
    positions = np.flatnonzero(random_n & (codes < OTHER))
    shift = rng.integers(1, 4, size=len(positions), dtype=np.uint8)
    corrupted = bases.copy()
    corrupted[positions] = code_dna((codes[positions] + shift) % 4)
    return corrupted


# Tokens masked with a centre: DNABERT's table.
_DNABERT_OFFSETS = {3: (-1, 0, 1), 4: (-1, 0, 1, 2), 5: (-2, -1, 0, 1, 2), 6: (-2, -1, 0, 1, 2, 3)}
DNABERT_K = tuple(_DNABERT_OFFSETS)


class DnabertMasker:
    """DNABERT's spans of k tokens around Bernoulli centres, cut at the edges, merged; 80/10/10 token by token."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._offsets = _DNABERT_OFFSETS[tokenizer.bases_per_token]

    def __call__(self, bases: Dna, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window with centres of probability `fraction` / k; unknown tokens may be chosen, as in DNABERT."""
        config = self._config
        targets = self._tokenizer.encode(bases)
        count = len(targets)
        centres = np.flatnonzero(rng.random(count) < fraction / self._tokenizer.bases_per_token)
        positions = np.add.outer(centres, self._offsets).ravel()
        chosen = np.zeros(count, dtype=bool)
        chosen[positions[(positions >= 0) & (positions < count)]] = True
        tokens = targets.copy()
        action = rng.random(count)
        tokens[chosen & (action < config.mask_share)] = self._tokenizer.mask_id
        random = np.flatnonzero(
            chosen & (action >= config.mask_share) & (action < config.mask_share + config.random_share)
        )
        # From the whole vocabulary, special tokens and the token itself included: DNABERT's way.
        tokens[random] = rng.integers(0, self._tokenizer.vocab_size, size=len(random))
        return Masked(tokens, targets, chosen)


def build_masker(
    tokenizer: Tokenizer, config: MaskingConfig, *, exact: bool = False
) -> TokenMasker | SpanMasker | DnabertMasker:
    """The masker of `config.mode`, `exact` (TokenMasker) for evaluation; UserError where the tokenizer does not fit."""
    k, overlapping = tokenizer.bases_per_token, tokenizer.kind != "sentencepiece" and tokenizer.stride == 1
    mode = config.mode
    if mode == "auto":
        mode = "span" if overlapping and k > 1 else "token"
    if mode == "span" and not overlapping:
        raise UserError(f"data.masking.mode span needs overlapping tokens, not {tokenizer.kind}; use token")
    if mode == "dnabert" and (tokenizer.kind != "kmer" or not overlapping or k not in _DNABERT_OFFSETS):
        raise UserError(f"data.masking.mode dnabert needs overlapping k-mers with k of {DNABERT_K}; use auto")
    if mode == "token":
        return TokenMasker(tokenizer, config, exact=exact)
    return (SpanMasker if mode == "span" else DnabertMasker)(tokenizer, config)
