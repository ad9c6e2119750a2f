"""Masked language modelling: which tokens a sample asks for, and what the model sees in their place.

In:  the letters of one window, a tokenizer, an explicit random generator.
Out: Masked(tokens, targets, chosen): ids that the model sees, ids that were there, and where it must answer.

Vectorised numpy, no loop over tokens. A chosen token becomes [MASK], another nucleotide token, or stays (80/10/10 by
default: Devlin et al., arXiv:1810.04805, section 3.1). Special tokens, padding, [UNK] and, by default, N are never
chosen.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megadna.config import MaskingConfig
from megadna.tokenizer.alphabet import Letters
from megadna.tokenizer.base import Tokenizer

# Shapes: m tokens of a sample (no special tokens), V vocabulary.


class Masked(NamedTuple):
    """One sample after masking; arrays of m tokens, special tokens not among them."""

    tokens: NDArray
    targets: NDArray
    chosen: NDArray[np.bool_]


class TokenMasker:
    """BERT masking of single tokens."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._maskable_V = maskable_ids(tokenizer, choose_n=config.choose_n)

    def __call__(self, letters: Letters, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window; `fraction` of its maskable tokens are chosen: in expectation, or exactly (rounded)."""
        config = self._config
        targets = self._tokenizer.encode(letters)
        maskable = self._maskable_V.take(targets)
        draw: NDArray = rng.random(len(targets), dtype=np.float32)
        if config.exact:
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


def maskable_ids(tokenizer: Tokenizer, *, choose_n: bool) -> NDArray[np.bool_]:
    """Which ids [V] may be chosen: those made of A, C, G, T, and N if asked."""
    maskable_V = np.zeros(tokenizer.vocab_size, dtype=bool)
    maskable_V[tokenizer.nucleotide_ids] = True
    if choose_n and tokenizer.n_id is not None:
        maskable_V[tokenizer.n_id] = True
    return maskable_V


def _ranked(draw: NDArray, maskable: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Ranks 0, 1, 2, ... of the draws among the maskable tokens, shifted by one number in [0, 1): shares that are no
    whole number of tokens come out right on average."""
    places = np.flatnonzero(maskable)
    ranks = np.full(len(draw), np.inf)
    ranks[places[np.argsort(draw[places])]] = np.arange(len(places)) + rng.random(dtype=np.float32)
    return ranks


def other_tokens(ids: NDArray, nucleotide_ids: NDArray, rng: np.random.Generator) -> NDArray:
    """For each id a uniform draw from the nucleotide tokens other than itself."""
    ranks = np.searchsorted(nucleotide_ids, ids)
    same = nucleotide_ids.take(ranks, mode="clip") == ids
    draws = rng.integers(0, len(nucleotide_ids) - same)
    return nucleotide_ids[draws + (same & (draws >= ranks))]
