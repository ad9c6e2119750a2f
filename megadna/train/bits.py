"""Masked bits per base: the number that every validation, table and log of megadna reports.

In:  logits or log-probabilities at hidden positions; every one of them was replaced by [MASK], none is N.
Out: UnitScores of what was hidden, then sums per chunk (so that errors can be taken over chunks), then one MaskedScore:
     the mean over all hidden bases of -log2 p(true base), p renormalised over A, C, G, T, and what follows from it.
The training loss under 80/10/10 is another quantity: kept tokens show their label.

k-mers, base by base: each masked token over a hidden base gives a probability to its four values: the softmax
restricted to the k-mers that agree with the token's visible bases, summed over the other hidden bases of the token. The
probabilities of the tokens over a base (up to k if they overlap) are averaged.

Tokens that do not overlap (k-mers of stride k, BPE) are scored whole: -log2 p(true token), p renormalised over the
tokens of A, C, G, T. Not comparable with scores per base: the model predicts a word, not a base between two visible
ones.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadna.alphabet import BASES
from megadna.data.evaluation import HiddenBases
from megadna.errors import UserError
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer

# Shapes: N hidden bases of a batch, U units scored as one (bases, tokens or blocks), M masked tokens, 4 the bases A C G
# T, C chunks of an evaluation (or other entries that are summed), G groups, R bootstrap replicates.

BOOTSTRAP_REPLICATES = 1000
BOOTSTRAP_SEED = 20230420
MAX_RESAMPLED = 4_000_000  # entries of one block of bootstrap weights: 32 MB

HIDDEN, BITS, CORRECT, LOSS, TOKENS = range(5)


@dataclass(frozen=True)
class ChunkSums:
    """Sums over the hidden bases of each chunk, in the order of the evaluation samples."""

    sums_CQ: NDArray[np.float64]
    """Columns: hidden bases; sum of -log2 p(true base); bases predicted correctly, a tie of n counting 1/n; sum of
    -ln p(true token) under the softmax over the whole vocabulary, and the number of these tokens (0 for baselines)."""

    def by_group(self, group_C: NDArray) -> "ChunkSums":
        """The sums of entries with the same number or name as one entry, in rising order."""
        numbers, index_C = np.unique(group_C, return_inverse=True)
        sums_GQ = np.zeros((len(numbers), 5))
        np.add.at(sums_GQ, index_C, self.sums_CQ)
        return ChunkSums(sums_GQ)

    def select(self, kept_C: NDArray[np.bool_]) -> "ChunkSums":
        """The sums of some entries; without the loss, which belongs to tokens, not bases."""
        return ChunkSums(self.sums_CQ[kept_C] * (1, 1, 1, 0, 0))

    def macro(self, group_C: NDArray) -> tuple[float, float | None]:
        """Bits per base as the plain mean over the groups that hide a base, and its standard error over chunks."""
        sums_GQ = self.by_group(group_C).sums_CQ
        sums_GQ = sums_GQ[sums_GQ[:, HIDDEN] > 0]
        error = bootstrap_standard_error(self.sums_CQ[:, BITS], self.sums_CQ[:, HIDDEN], group_C)
        return float((sums_GQ[:, BITS] / sums_GQ[:, HIDDEN]).mean()), error

    def by_case(
        self, chunk_C: NDArray[np.integer], case_C: NDArray[np.integer], group_C: NDArray | None = None
    ) -> dict[str, float | None]:
        """Bits per base of upper-case (case 0, unique) and lower-case (1, repeat) entries, errors over chunks; with
        `group_C` the means over groups too. Empty unless bases of both are hidden."""
        hides_C = self.sums_CQ[:, HIDDEN] > 0
        kept = {name: (case_C == case) & hides_C for case, name in enumerate(("unique", "repeat"))}
        found: dict[str, float | None] = {}
        for name, kept_C in kept.items() if all(kept_C.any() for kept_C in kept.values()) else ():
            _, first = np.unique(chunk_C[kept_C], return_index=True)
            sums = self.select(kept_C).by_group(chunk_C[kept_C])
            score = sums.score()
            found |= with_error(f"bits_per_base_{name}", (score.bits_per_base, score.standard_error))
            if group_C is not None:
                found |= with_error(f"bits_per_base_macro_{name}", sums.macro(group_C[kept_C][first]))
        return found

    def by_name(self, chunk_C: NDArray[np.integer], name_C: NDArray[np.str_]) -> dict[str, "MaskedScore"]:
        """The score of each group that hides a base; empty if there is one group."""
        hides_C, names = self.sums_CQ[:, HIDDEN] > 0, np.unique(name_C).tolist()
        kept = {name: (name_C == name) & hides_C for name in names if len(names) > 1}
        return {
            name: self.select(kept_C).by_group(chunk_C[kept_C]).score() for name, kept_C in kept.items() if kept_C.any()
        }

    def score(self) -> "MaskedScore":
        """Means over all hidden bases; UserError if nothing was hidden."""
        hidden, bits, correct, loss, tokens = self.sums_CQ.sum(axis=0).tolist()
        if not hidden:
            raise UserError("no hidden base to score: the evaluation samples hold no A, C, G or T that was masked")
        return MaskedScore(
            samples=len(self.sums_CQ),
            hidden_bases=int(hidden),
            bits_per_base=bits / hidden,
            standard_error=bootstrap_standard_error(self.sums_CQ[:, BITS], self.sums_CQ[:, HIDDEN]),
            perplexity=2.0 ** (bits / hidden),
            accuracy=correct / hidden,
            loss=loss / tokens if tokens else None,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedScore:
    """Means of one model or baseline."""

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
    """Share of hidden bases in units predicted correctly: single bases (0.25 = uniform), whole tokens or blocks."""
    loss: float | None = None
    """Mean over the masked tokens of -ln p(true token) over the whole vocabulary, nats; None for baselines."""
    protocol: str = "base"
    """Unit of bits and accuracy: `base`, single bases; `block6` or `block`, runs of 6 or of any number of bases. Scores
    of two protocols must not be compared."""

    def to_dict(self) -> dict[str, float | None]:
        """The numbers as in evaluation files; `loss` only if there is one."""
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
    """1 if it has the highest p, 1/n in a tie of n, else 0."""

    @staticmethod
    def of_bases(log2_p_N4: NDArray[np.float64], base_N: NDArray[np.integer]) -> "UnitScores":
        """From log2 p of the four bases and the true base (0..3) of each hidden position."""
        true_N, best_N = log2_p_N4[np.arange(len(base_N)), base_N], log2_p_N4.max(axis=1)
        # The order A C G T must not decide between equal p: uniform scores 0.25 in any composition.
        correct_N = np.where(true_N == best_N, 1.0 / (log2_p_N4 == best_N[:, None]).sum(axis=1).clip(min=1), 0.0)
        return UnitScores(bases_U=np.ones(len(base_N), np.int64), bits_U=-true_N, correct_U=correct_N)

    def joined(self, width: int) -> "UnitScores":
        """Blocks of `width` bases: bits add up, and every unit of a block must be right."""
        ends_U = np.cumsum(self.bases_U)
        first = np.flatnonzero((ends_U - self.bases_U) % width == 0)
        assert (ends_U % width == 0).sum() == len(first), "units cross the edge of a block"
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
        values_U = (np.ones(len(self.bases_U)), self.bits_U / self.bases_U, self.correct_U)
        columns = [np.bincount(key_N, np.repeat(values, self.bases_U), num_keys) for values in values_U]
        return ChunkSums(np.stack([*columns, *np.zeros((2, num_keys))], axis=1))


def with_error(key: str, mean: tuple[float, float | None]) -> dict[str, float | None]:
    """A mean and its standard error under the keys of evaluation files."""
    return {key: mean[0], f"{key}_se": mean[1]}


def bootstrap_standard_error(
    sum_C: NDArray[np.float64], weight_C: NDArray[np.number], group_C: NDArray | None = None
) -> float | None:
    """Standard error of sum/weight (its mean over groups) by a bootstrap over chunks, not positions.

    Neighbouring bases share a gene, a repeat or a composition, so positions are not independent draws. A group of which
    nothing is drawn does not count in that replicate. The seed is fixed: the same sums give the same error. None with
    fewer than two chunks of non-zero weight.
    """
    kept = np.flatnonzero(weight_C > 0)
    num_chunks = len(kept)
    if num_chunks < 2:
        return None
    group_C = np.zeros(num_chunks, np.int64) if group_C is None else group_C[kept]
    order = np.argsort(group_C, kind="stable")
    sum_C, weight_C, group_C = sum_C[kept][order], weight_C[kept][order], group_C[order]
    first_G = np.flatnonzero(np.append(True, group_C[1:] != group_C[:-1]))
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


# Shapes: B rows, S tokens of a row, L bases under them if each were a k-mer ([CLS] and [SEP] too), V vocabulary, M
# masked tokens, m those that hide the same h of their k bases, N hidden bases, 4 the bases A C G T.


def kmer_log_p_of_tokens(logits_MV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: KmerTokenizer) -> Tensor:
    """ln p [N, 4] of the hidden bases of a batch, one sequence a row, p averaged over the masked tokens over each.

    logits_MV: of the masked tokens, row by row. labels_BS: their true ids, and a negative number elsewhere. Tokens that
    hide the same of their k bases are computed together: the ids of their 4^h candidates have the same differences.
    ValueError if a masked token covers anything but A, C, G, T.
    """
    device, k, stride = logits_MV.device, tokenizer.bases_per_token, tokenizer.stride
    row_M, position_M = (labels_BS >= 0).nonzero(as_tuple=True)
    words_M = labels_BS[row_M, position_M] - tokenizer.first
    if bool((words_M < 0).any()):
        raise ValueError("a masked token covers a base that is not A, C, G or T; only these can be evaluated")
    rows, length = labels_BS.shape
    number_BL = torch.full((rows, (length - 1) * stride + k), -1, device=device)
    row_N, position_N = (torch.from_numpy(values).to(device) for values in (hidden.row_H, hidden.position_H))
    number_BL[row_N, position_N + stride] = torch.arange(len(row_N), device=device)  # [CLS] begins one stride before
    number_Mk = number_BL[row_M[:, None], position_M[:, None] * stride + torch.arange(k, device=device)]
    hidden_Mk = number_Mk >= 0
    logits_MV = logits_MV.float()
    masked_N = torch.bincount(number_Mk[hidden_Mk], minlength=len(row_N))
    log_p_Nk4 = logits_MV.new_full((len(row_N), k, 4), float("-inf"))
    pattern_M = (hidden_Mk << torch.arange(k, device=device)).sum(dim=1)
    for pattern in pattern_M.unique().tolist():
        offsets = [offset for offset in range(k) if pattern >> offset & 1]
        token_m = (pattern_M == pattern).nonzero()[:, 0]
        candidates_mC = _candidates(words_M[token_m], offsets, tokenizer)
        log_p_mC = torch.log_softmax(logits_MV[token_m[:, None], candidates_mC], dim=1)
        for axis, offset in enumerate(offsets):
            log_p_m4 = log_p_mC.view(len(token_m), 4**axis, 4, -1).logsumexp(dim=(1, 3))
            log_p_Nk4[number_Mk[token_m, offset], offset] = log_p_m4
    return log_p_Nk4.logsumexp(dim=1) - masked_N[:, None].log()


def _candidates(words_m: Tensor, offsets: list[int], tokenizer: KmerTokenizer) -> Tensor:
    """Ids [m, 4^h] of the k-mers that agree with each word except at `offsets`; there A C G T, the last one fastest."""
    order_4 = torch.tensor([tokenizer.base_order.index(base) for base in BASES], device=words_m.device)
    kept_m, distance_C = words_m, torch.zeros(1, dtype=torch.int64, device=words_m.device)
    for offset in offsets:
        unit = 4 ** (tokenizer.bases_per_token - 1 - offset)  # a step of the base at `offset` in the order of ids
        kept_m = kept_m - words_m // unit % 4 * unit
        distance_C = (distance_C[:, None] + order_4 * unit).flatten()
    return tokenizer.first + kept_m[:, None] + distance_C


def token_scores(logits_MV: Tensor, labels_M: Tensor, tokenizer: Tokenizer) -> UnitScores:
    """Scores of masked tokens that do not overlap; ValueError if one covers anything but A, C, G, T."""
    ids = torch.from_numpy(tokenizer.nucleotide_ids).to(labels_M.device)
    column_M = torch.searchsorted(ids, labels_M).clamp(max=len(ids) - 1)
    if not bool((ids[column_M] == labels_M).all()):
        raise ValueError("a masked token covers a base that is not A, C, G or T; only these can be evaluated")
    log_p_M = torch.log_softmax(logits_MV[:, ids], dim=1)
    true_M1 = log_p_M.gather(1, column_M[:, None])
    share_M = (true_M1[:, 0] == log_p_M.amax(dim=1)) / (log_p_M == true_M1).sum(dim=1)  # a tie of n counts 1/n
    starts, stops = tokenizer.spans(labels_M.cpu().numpy())
    return UnitScores(
        bases_U=stops - starts,
        bits_U=-true_M1[:, 0].double().cpu().numpy() / math.log(2.0),
        correct_U=share_M.double().cpu().numpy(),
    )
