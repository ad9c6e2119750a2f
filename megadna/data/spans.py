"""Masking of overlapping k-mers: hiding one base means masking every token over it.

In:  letters of one window, a k-mer tokenizer of stride 1 (k = 1 works too), a random generator.
Out: Masked(tokens, targets, chosen).

SpanMasker leaks nothing: bases are corrupted, then tokenized, so that all k tokens over a base tell the same story.
Each place, up to the edges, begins a span with the same probability, which makes the share of chosen tokens exact in
expectation. A span that is masked wins over one that is random, that one over one that is kept. Where two masked
spans come close, the bases between them are hidden as well.

DnabertMasker is DNABERT's own algorithm (Ji et al., Bioinformatics 2021; run_pretrain.py), for comparison: tokens of
one span are corrupted one by one, so that a kept token shows its neighbours' answer.
"""

import numpy as np
from numpy.typing import NDArray

from megadna.config import MaskingConfig
from megadna.data.masking import Masked, TokenMasker, maskable_ids
from megadna.errors import UserError
from megadna.tokenizer.alphabet import OTHER, Letters, base_codes, code_letters
from megadna.tokenizer.base import Tokenizer

# Shapes: n bases of a window, m = n - k + 1 tokens.

# Tokens masked with a centre: DNABERT's table.
_DNABERT_OFFSETS = {3: (-1, 0, 1), 4: (-1, 0, 1, 2), 5: (-2, -1, 0, 1, 2), 6: (-2, -1, 0, 1, 2, 3)}
DNABERT_K = tuple(_DNABERT_OFFSETS)


class SpanMasker:
    """Hides spans of `hidden_bases` bases: [MASK] on every token over them, other bases, or the same."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._width = config.hidden_bases + tokenizer.bases_per_token - 1
        self._maskable_V = maskable_ids(tokenizer, choose_n=False)

    def __call__(self, letters: Letters, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window; every token over A, C, G, T alone is chosen with probability `fraction`."""
        config = self._config
        # A token is chosen if any of `width` places begins a span over it.
        start_rate = 1 - (1 - fraction) ** (1 / self._width)
        draw = rng.random(len(letters) + config.hidden_bases - 1)
        below = start_rate * np.cumsum([config.mask_share, config.random_share])
        hidden_n, masked_n, random_n = (
            _covered(starts, config.hidden_bases)
            for starts in (draw < start_rate, draw < below[0], (draw >= below[0]) & (draw < below[1]))
        )
        targets = self._tokenizer.encode(letters)
        tokens = self._tokenizer.encode(_corrupt(letters, random_n, rng))
        k = self._tokenizer.bases_per_token
        maskable = self._maskable_V.take(targets)
        chosen = _covering(hidden_n, k) & maskable
        tokens[_covering(masked_n, k) & maskable] = self._tokenizer.mask_id
        return Masked(tokens, targets, chosen)


def _covered(starts: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Bases [n] under spans that start at places -(width - 1)..n-1, given as bool [n + width - 1]."""
    return _covering(starts, width)


def _covering(flags: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """For each run of `width` flags [n]: is any set? bool [n - width + 1]."""
    count = max(0, len(flags) - width + 1)
    result = flags[:count].copy()
    for shift in range(1, width):
        result |= flags[shift : shift + count]
    return result


def _corrupt(letters: Letters, random_n: NDArray[np.bool_], rng: np.random.Generator) -> Letters:
    """Letters with another base at each flagged A, C, G, T."""
    codes = base_codes(letters)
    places = np.flatnonzero(random_n & (codes < OTHER))
    shift = rng.integers(1, 4, size=len(places), dtype=np.uint8)
    corrupted = letters.copy()
    corrupted[places] = code_letters((codes[places] + shift) % 4)
    return corrupted


class DnabertMasker:
    """DNABERT's spans of k tokens around Bernoulli centres, cut at the edges, merged; 80/10/10 token by token."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._offsets = _DNABERT_OFFSETS[tokenizer.bases_per_token]

    def __call__(self, letters: Letters, rng: np.random.Generator, fraction: float) -> Masked:
        """Mask a window with centres of probability `fraction` / k; unknown tokens may be chosen, as in DNABERT."""
        config = self._config
        targets = self._tokenizer.encode(letters)
        count = len(targets)
        centres = np.flatnonzero(rng.random(count) < fraction / self._tokenizer.bases_per_token)
        places = np.add.outer(centres, self._offsets).ravel()
        chosen = np.zeros(count, dtype=bool)
        chosen[places[(places >= 0) & (places < count)]] = True
        tokens = targets.copy()
        action = rng.random(count)
        tokens[chosen & (action < config.mask_share)] = self._tokenizer.mask_id
        random = np.flatnonzero(
            chosen & (action >= config.mask_share) & (action < config.mask_share + config.random_share)
        )
        # The whole vocabulary, special tokens and the token itself included: DNABERT's way.
        tokens[random] = rng.integers(0, self._tokenizer.vocab_size, size=len(random))
        return Masked(tokens, targets, chosen)


def build_masker(tokenizer: Tokenizer, config: MaskingConfig) -> TokenMasker | SpanMasker | DnabertMasker:
    """The masker of `config.mode`; UserError where the tokenizer does not fit it."""
    k, overlapping = tokenizer.bases_per_token, tokenizer.kind != "sentencepiece" and tokenizer.stride == 1
    mode = config.mode
    if mode == "auto":
        mode = "span" if overlapping and k > 1 else "token"
    if mode == "span" and not overlapping:
        raise UserError(f"data.masking.mode span needs overlapping tokens, not {tokenizer.kind}; use token")
    if mode == "dnabert" and (tokenizer.kind != "kmer" or not overlapping or k not in _DNABERT_OFFSETS):
        raise UserError(f"data.masking.mode dnabert needs overlapping k-mers with k of {DNABERT_K}; use auto")
    maskers: dict[str, type[TokenMasker | SpanMasker | DnabertMasker]] = {
        "token": TokenMasker,
        "span": SpanMasker,
        "dnabert": DnabertMasker,
    }
    return maskers[mode](tokenizer, config)
