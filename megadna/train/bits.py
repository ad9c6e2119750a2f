"""Masked bits per base: the number every validation, table and log of megadna reports.

In:  logits and labels at hidden positions; every one of them was replaced by [MASK], none is N.
Out: sums per chunk (so that errors can be taken over chunks), then one MaskedScore: the mean over all hidden bases of
     -log2 p(true base), with p renormalised over A, C, G, T, and what follows from it.
The training loss under 80/10/10 is another quantity: kept tokens show their answer.
Tokens of several bases are scored in kmer_bits.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Shapes: B chunks of a batch, S sequence, V vocabulary, N hidden bases of the batch, 4 the bases A C G T,
# C chunks of an evaluation, R bootstrap replicates.

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
    """Hidden bases whose true base has the highest p; a tie of n counts 1/n."""
    loss_C: NDArray[np.float64] | None = None
    """Sum of -ln p(true token) under the softmax over the whole vocabulary; None for what has no vocabulary."""
    tokens_C: NDArray[np.int64] | None = None
    """Masked tokens, over which loss_C is a sum; None: as many as hidden bases."""

    @staticmethod
    def concatenate(parts: Sequence["ChunkSums"]) -> "ChunkSums":
        """The chunks of several batches as one evaluation, in the order given."""
        losses = [part.loss_C for part in parts if part.loss_C is not None]
        tokens = [part.tokens_C for part in parts if part.tokens_C is not None]
        assert len(losses) in (0, len(parts)), "sums with and without a full-softmax loss cannot be joined"
        assert len(tokens) in (0, len(parts)), "sums of one protocol only"
        return ChunkSums(
            hidden_C=np.concatenate([part.hidden_C for part in parts]),
            bits_C=np.concatenate([part.bits_C for part in parts]),
            correct_C=np.concatenate([part.correct_C for part in parts]),
            loss_C=np.concatenate(losses) if losses else None,
            tokens_C=np.concatenate(tokens) if tokens else None,
        )

    def by_group(self, group_C: NDArray[np.int64]) -> "ChunkSums":
        """The sums of entries with the same number as one entry, in rising order of the numbers."""
        _, place_C = np.unique(group_C, return_inverse=True)

        def total(values_C: NDArray) -> NDArray[np.float64]:
            return np.bincount(place_C, weights=values_C).astype(np.float64)

        return ChunkSums(
            hidden_C=total(self.hidden_C).astype(np.int64),
            bits_C=total(self.bits_C),
            correct_C=total(self.correct_C),
            loss_C=None if self.loss_C is None else total(self.loss_C),
            tokens_C=None if self.tokens_C is None else total(self.tokens_C).astype(np.int64),
        )

    def with_loss(self, loss_N: NDArray[np.floating], chunk_N: NDArray[np.integer]) -> "ChunkSums":
        """The same with the full-softmax loss of the masked tokens, which are not one for each hidden base."""
        num_chunks = len(self.hidden_C)
        tokens_C = np.bincount(chunk_N, minlength=num_chunks).astype(np.int64)
        return replace(self, loss_C=total_by_chunk(loss_N, chunk_N, num_chunks), tokens_C=tokens_C)

    def score(self) -> "MaskedScore":
        """Means over all hidden bases; ValueError where nothing was hidden."""
        num_hidden = int(self.hidden_C.sum())
        if num_hidden == 0:
            raise ValueError("no hidden base to score: the evaluation samples hold no A, C, G or T that was masked")
        bits = float(self.bits_C.sum() / num_hidden)
        num_tokens = num_hidden if self.tokens_C is None else int(self.tokens_C.sum())
        return MaskedScore(
            samples=len(self.hidden_C),
            hidden_bases=num_hidden,
            bits_per_base=bits,
            standard_error=bootstrap_standard_error(self.bits_C, self.hidden_C),
            perplexity=2.0**bits,
            accuracy=float(self.correct_C.sum() / num_hidden),
            loss=None if self.loss_C is None else float(self.loss_C.sum() / num_tokens),
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
    """Share of hidden bases whose true base has the highest p; 0.25 = uniform."""
    loss: float | None = None
    """Mean over the masked tokens of -ln p(true token) over the whole vocabulary, nats; None for baselines."""
    protocol: str = "base"
    """What bits and accuracy are of: `base`, single bases; `block6` or `block`, tokens of 6 or of any number of bases.
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


def score_logits(logits_BSV: Tensor, labels_BS: Tensor, base_ids: Tensor | Sequence[int]) -> ChunkSums:
    """Sums per chunk of one batch.

    `labels_BS` holds the true token id where a base is hidden and a negative number elsewhere; `base_ids` the token
    ids of A, C, G, T. ValueError where a hidden token is not one of the four. Only hidden positions leave the device.
    """
    base_ids_4 = torch.as_tensor(base_ids, device=logits_BSV.device)
    hidden_BS = labels_BS >= 0
    logits_NV = logits_BSV[hidden_BS].float()
    labels_N = labels_BS[hidden_BS]
    is_base_N4 = labels_N[:, None] == base_ids_4
    if not bool(is_base_N4.any(dim=1).all()):
        raise ValueError("a hidden position holds a token that is not A, C, G or T; only these may be evaluated")
    log_p_N4 = torch.log_softmax(logits_NV[:, base_ids_4], dim=-1)
    loss_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    return sum_by_chunk(
        log_p_N4.cpu().numpy().astype(np.float64) / math.log(2.0),
        is_base_N4.int().argmax(dim=1).cpu().numpy(),
        hidden_BS.nonzero()[:, 0].cpu().numpy(),
        num_chunks=len(labels_BS),
        loss_N=loss_N.cpu().numpy(),
    )


def sum_by_chunk(
    log2_p_N4: NDArray[np.float64],
    base_N: NDArray[np.integer],
    chunk_N: NDArray[np.integer],
    *,
    num_chunks: int,
    loss_N: NDArray[np.floating] | None = None,
) -> ChunkSums:
    """Sums per chunk from log2 p of the four bases, the true base (0..3) and the chunk of each hidden position."""
    true_N = log2_p_N4[np.arange(len(base_N)), base_N]
    best_N = log2_p_N4.max(axis=1)
    # Two equal p must not be told apart by the order A C G T: uniform scores 0.25 in any composition.
    correct_N = np.where(true_N == best_N, 1.0 / (log2_p_N4 == best_N[:, None]).sum(axis=1).clip(min=1), 0.0)
    return ChunkSums(
        hidden_C=np.bincount(chunk_N, minlength=num_chunks).astype(np.int64),
        bits_C=-total_by_chunk(true_N, chunk_N, num_chunks),
        correct_C=total_by_chunk(correct_N, chunk_N, num_chunks),
        loss_C=None if loss_N is None else total_by_chunk(loss_N, chunk_N, num_chunks),
    )


def total_by_chunk(values_N: NDArray, chunk_N: NDArray[np.integer], num_chunks: int) -> NDArray[np.float64]:
    """Sum of the values of each chunk."""
    return np.bincount(chunk_N, weights=values_N, minlength=num_chunks).astype(np.float64)


def bootstrap_standard_error(sum_C: NDArray[np.float64], weight_C: NDArray[np.int64]) -> float | None:
    """Standard error of sum/weight when chunks, not positions, are drawn again with replacement.

    Neighbouring bases share a gene, a repeat or a composition, so positions are no independent draws. The seed is
    fixed: the same sums give the same error. None with fewer than two chunks that weigh anything.
    """
    kept_C = weight_C > 0
    num_chunks = int(kept_C.sum())
    if num_chunks < 2:
        return None
    sums_C2 = np.stack([sum_C[kept_C], weight_C[kept_C].astype(np.float64)], axis=1)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    share_C = np.full(num_chunks, 1.0 / num_chunks)
    block = max(1, MAX_RESAMPLED // num_chunks)
    means: list[NDArray[np.float64]] = []
    for first in range(0, BOOTSTRAP_REPLICATES, block):
        draws_RC = rng.multinomial(num_chunks, share_C, size=min(block, BOOTSTRAP_REPLICATES - first))
        totals_R2 = draws_RC @ sums_C2
        means.append(totals_R2[:, 0] / totals_R2[:, 1])
    return float(np.std(np.concatenate(means), ddof=1))
