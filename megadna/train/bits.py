"""Masked bits per base: the number every validation, table and log of megadna reports.

In:  log-probabilities at hidden positions; every one of them was replaced by [MASK], none is N.
Out: UnitScores of what was hidden, then sums per chunk (so that errors can be taken over chunks), then one MaskedScore:
     the mean over all hidden bases of -log2 p(true base), p renormalised over A, C, G, T, and what follows from it.
The training loss under 80/10/10 is another quantity: kept tokens show their answer.
Tokens of several bases are scored in kmer_bits.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

# Shapes: N hidden bases of a batch, U units scored as one (bases, tokens or blocks), M masked tokens, 4 the bases A C G
# T, C chunks of an evaluation (or what else sums are taken over), G groups, R bootstrap replicates.

BOOTSTRAP_REPLICATES = 1000
BOOTSTRAP_SEED = 20230420
MAX_RESAMPLED = 4_000_000  # entries of one block of bootstrap weights: 32 MB


@dataclass(frozen=True, kw_only=True)
class ChunkSums:
    """Sums over the hidden bases of each chunk, in the order of the evaluation samples."""

    hidden_C: NDArray[np.int64]
    """Hidden bases."""
    bits_C: NDArray[np.float64]
    """Sum of -log2 p(true base)."""
    correct_C: NDArray[np.float64]
    """Hidden bases named right; a tie of n counts 1/n."""
    loss_C: NDArray[np.float64] | None = None
    """Sum of -ln p(true token) under the softmax over the whole vocabulary; None for what has no vocabulary."""
    tokens_C: NDArray[np.int64] | None = None
    """Masked tokens, over which loss_C is a sum."""

    @staticmethod
    def concatenate(parts: Sequence["ChunkSums"]) -> "ChunkSums":
        """The chunks of several batches as one evaluation, in the order given."""
        losses = [part.loss_C for part in parts if part.loss_C is not None]
        tokens = [part.tokens_C for part in parts if part.tokens_C is not None]
        assert len(losses) == len(tokens) in (0, len(parts)), "sums with and without a loss cannot be joined"
        return ChunkSums(
            hidden_C=np.concatenate([part.hidden_C for part in parts]),
            bits_C=np.concatenate([part.bits_C for part in parts]),
            correct_C=np.concatenate([part.correct_C for part in parts]),
            loss_C=np.concatenate(losses) if losses else None,
            tokens_C=np.concatenate(tokens) if tokens else None,
        )

    def by_group(self, group_C: NDArray[np.int64]) -> "ChunkSums":
        """The sums of entries with the same number as one entry, in rising order of the numbers."""
        numbers, place_C = np.unique(group_C, return_inverse=True)

        total = partial(_totals, place_C, num_keys=len(numbers))
        return ChunkSums(
            hidden_C=total(self.hidden_C).astype(np.int64),
            bits_C=total(self.bits_C),
            correct_C=total(self.correct_C),
            loss_C=None if self.loss_C is None else total(self.loss_C),
            tokens_C=None if self.tokens_C is None else total(self.tokens_C).astype(np.int64),
        )

    def with_loss(self, loss_M: NDArray[np.floating], chunk_M: NDArray[np.integer]) -> "ChunkSums":
        """The same with the full-softmax loss of the masked tokens, which are not one for each hidden base."""
        num_chunks = len(self.hidden_C)
        return replace(
            self,
            loss_C=_totals(chunk_M, loss_M, num_chunks),
            tokens_C=np.bincount(chunk_M, minlength=num_chunks),
        )

    def select(self, kept_C: NDArray[np.bool_]) -> "ChunkSums":
        """The sums of some entries; without the loss, which is not one of single bases."""
        return ChunkSums(hidden_C=self.hidden_C[kept_C], bits_C=self.bits_C[kept_C], correct_C=self.correct_C[kept_C])

    def macro(self, group_C: NDArray[np.integer]) -> tuple[float, float | None]:
        """Bits per base as the plain mean over the groups that hide a base, and its standard error over chunks."""
        hidden_G = np.bincount(group_C, weights=self.hidden_C)
        bits_G = np.bincount(group_C, weights=self.bits_C)
        mean = float((bits_G[hidden_G > 0] / hidden_G[hidden_G > 0]).mean())
        return mean, bootstrap_standard_error(self.bits_C, self.hidden_C, group_C)

    def score(self) -> "MaskedScore":
        """Means over all hidden bases; ValueError where nothing was hidden."""
        num_hidden = int(self.hidden_C.sum())
        if num_hidden == 0:
            raise ValueError("no hidden base to score: the evaluation samples hold no A, C, G or T that was masked")
        bits = float(self.bits_C.sum() / num_hidden)
        return MaskedScore(
            samples=len(self.hidden_C),
            hidden_bases=num_hidden,
            bits_per_base=bits,
            standard_error=bootstrap_standard_error(self.bits_C, self.hidden_C),
            perplexity=2.0**bits,
            accuracy=float(self.correct_C.sum() / num_hidden),
            loss=None
            if self.loss_C is None or self.tokens_C is None
            else float(self.loss_C.sum() / self.tokens_C.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class MaskedScore:
    """What an evaluation reports."""

    samples: int
    """Chunks evaluated."""
    hidden_bases: int
    """Bases hidden in them."""
    bits_per_base: float
    """Mean of -log2 p(true base), p renormalised over A, C, G, T; 2 = uniform."""
    standard_error: float | None
    """Of bits_per_base, by bootstrap over chunks; None with fewer than two chunks."""
    perplexity: float
    """2 to the bits per base; 4 = uniform."""
    accuracy: float
    """Share of hidden bases in units named right: single bases (0.25 = uniform), tokens or blocks as a whole."""
    loss: float | None = None
    """Mean over the masked tokens of -ln p(true token) over the whole vocabulary, nats; None for baselines."""
    protocol: str = "base"
    """What bits and accuracy are of: `base`, single bases; `block6` or `block`, runs of 6 or of any number of bases.
    Scores of two protocols never stand in one table."""

    def to_dict(self) -> dict[str, float | None]:
        """The numbers as they stand in evaluation files; `loss` only where there is one."""
        numbers = {
            "bits_per_base": self.bits_per_base,
            "standard_error": self.standard_error,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
        }
        return numbers if self.loss is None else {**numbers, "loss": self.loss}


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """Scores of what was hidden, in the order of the bases: single bases, tokens, or blocks."""

    bases_U: NDArray[np.int64]
    """Bases of each unit."""
    bits_U: NDArray[np.float64]
    """-log2 p of the whole unit."""
    correct_U: NDArray[np.float64]
    """1 where it has the highest p, 1/n in a tie of n, else 0."""

    @staticmethod
    def of_bases(log2_p_N4: NDArray[np.float64], base_N: NDArray[np.integer]) -> "UnitScores":
        """From log2 p of the four bases and the true base (0..3) of each hidden position."""
        true_N, best_N = log2_p_N4[np.arange(len(base_N)), base_N], log2_p_N4.max(axis=1)
        # Two equal p must not be told apart by the order A C G T: uniform scores 0.25 in any composition.
        correct_N = np.where(true_N == best_N, 1.0 / (log2_p_N4 == best_N[:, None]).sum(axis=1).clip(min=1), 0.0)
        return UnitScores(bases_U=np.ones(len(base_N), np.int64), bits_U=-true_N, correct_U=correct_N)

    def joined(self, width: int) -> "UnitScores":
        """Blocks of `width` bases: bits add up, and every unit of a block must be right."""
        ends_U = np.cumsum(self.bases_U)
        first = np.flatnonzero((ends_U - self.bases_U) % width == 0)
        assert (ends_U % width == 0).sum() == len(first), "units reach over the edge of a block"
        if not len(first):
            return self
        return UnitScores(
            bases_U=np.add.reduceat(self.bases_U, first),
            bits_U=np.add.reduceat(self.bits_U, first),
            correct_U=np.multiply.reduceat(self.correct_U, first),
        )

    def sums(self, key_N: NDArray[np.integer], num_keys: int) -> ChunkSums:
        """Sums by the key of each hidden base (its row, say); the bits of a unit are spread evenly over its bases."""
        assert self.bases_U.sum() == len(key_N), (self.bases_U.sum(), len(key_N))
        bits_N = np.repeat(self.bits_U / self.bases_U, self.bases_U)
        return ChunkSums(
            hidden_C=np.bincount(key_N, minlength=num_keys),
            bits_C=_totals(key_N, bits_N, num_keys),
            correct_C=_totals(key_N, np.repeat(self.correct_U, self.bases_U), num_keys),
        )


def _totals(key_N: NDArray[np.integer], values_N: NDArray, num_keys: int) -> NDArray[np.float64]:
    return np.bincount(key_N, weights=values_N, minlength=num_keys).astype(np.float64)


def bootstrap_standard_error(
    sum_C: NDArray[np.float64], weight_C: NDArray[np.int64], group_C: NDArray[np.integer] | None = None
) -> float | None:
    """Standard error of sum/weight (its mean over groups) when chunks, not positions, are drawn again with replacement.

    Neighbouring bases share a gene, a repeat or a composition, so positions are no independent draws. A group of which
    nothing is drawn is left out of that draw. The seed is fixed: the same sums give the same error. None with fewer
    than two chunks that weigh anything.
    """
    kept = np.flatnonzero(weight_C > 0)
    num_chunks = len(kept)
    if num_chunks < 2:
        return None
    group_C = np.zeros(num_chunks, np.int64) if group_C is None else group_C[kept]
    order = np.argsort(group_C, kind="stable")
    sum_C, weight_C, group_C = sum_C[kept][order], weight_C[kept][order].astype(np.float64), group_C[order]
    first_G = np.flatnonzero(np.append(True, np.diff(group_C) > 0))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    share_C = np.full(num_chunks, 1.0 / num_chunks)
    block = max(1, MAX_RESAMPLED // num_chunks)
    means: list[NDArray[np.float64]] = []
    for first in range(0, BOOTSTRAP_REPLICATES, block):
        draws_RC = rng.multinomial(num_chunks, share_C, size=min(block, BOOTSTRAP_REPLICATES - first))
        weight_RG = np.add.reduceat(draws_RC * weight_C, first_G, axis=1)
        mean_RG = np.add.reduceat(draws_RC * sum_C, first_G, axis=1) / np.where(weight_RG, weight_RG, np.nan)
        means.append(np.nanmean(mean_RG, axis=1))
    return float(np.std(np.concatenate(means), ddof=1))
