"""Weight of each token in the loss, from the letters under it."""

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import Letters
from megadna.tokenizer.base import Tokenizer


class LetterWeights:
    """Mean weight of the letters under a token: `lower_case` for a, c, g, t; 1 for the rest."""

    def __init__(self, tokenizer: Tokenizer, *, lower_case: float) -> None:
        self._tokenizer = tokenizer
        self._table = np.ones(256, dtype=np.float32)
        self._table[ord("a") : ord("z") + 1] = lower_case
        self._all_one = lower_case == 1.0

    def __call__(self, letters: Letters, ids: NDArray) -> NDArray[np.float32] | None:
        """float32 [m] for the ids [m] of the letters [n]; None where all weigh 1."""
        if self._all_one:
            return None
        weights = self._table.take(letters)
        sums = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])
        starts, stops = self._tokenizer.spans(ids)
        return ((sums[stops] - sums[starts]) / (stops - starts)).astype(np.float32)
