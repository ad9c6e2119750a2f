"""Masked bits per base of a model on fixed samples, whatever runs the model: the same numbers under any layout.

In:  EvaluationSamples, and a function that runs the model on a batch, on one rank or several.
Out: an Evaluation, the same on every rank: over all hidden bases, by group (species), for upper-case (unique) and
     lower-case (soft-masked repeat) bases separately, and the divergence of the two strands.

Bases are scored one by one ("base") if a token is one base or k-mers overlap, else by tokens ("block6", "block").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megadna.data.batch import Batch
from megadna.data.evaluation import WIDTHS, EvaluationSamples, HiddenBases
from megadna.errors import require
from megadna.progress import Progress
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import (
    LOSS,
    TOKENS,
    ChunkSums,
    MaskedScore,
    UnitScores,
    kmer_log_p_of_tokens,
    token_scores,
    with_error,
)

# Shapes: B rows of a batch, S sequence, V vocabulary, M masked tokens, N hidden bases, 4 the bases A C G T, E entries:
# the upper-case and the lower-case bases of each sample.

Forward = Callable[[Batch, Callable[[Tensor], Any]], Any]
"""forward(batch, score) runs the model and returns score(logits [B, S, V]), or None on a rank that has no logits."""
STRAND_INTERVAL = 16
"""Every N-th sample is read from both strands: an eighth of the cost of an evaluation."""
MAX_GROUPS = 20
"""metrics.jsonl has the score of each group if there are at most this many; `megadna evaluate` always has them."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation."""

    score: MaskedScore
    """Over all hidden bases."""
    more: dict[str, float | None]
    """bits_per_base_macro: the mean over groups. bits_per_base_unique, _repeat: upper- and lower-case bases, and
    bits_per_base_macro_unique, _repeat; only if bases of both are hidden. Standard errors: the key with _se.
    reverse_complement_divergence: see `strand_divergence`; only if tokens begin at every base."""
    groups: dict[str, MaskedScore]
    """By species; empty if there is one group."""

    def line(self, prefix: str) -> dict[str, Any]:
        """The numbers under the keys of metrics.jsonl; `valid_` is the prefix of the validation split."""
        numbers = {
            "bits_per_base": self.score.bits_per_base,
            "bits_per_base_se": self.score.standard_error,
            "perplexity": self.score.perplexity,
            "accuracy": self.score.accuracy,
            "loss": self.score.loss,
            **self.more,
        }
        if len(self.groups) <= MAX_GROUPS:
            numbers |= {f"bits_per_base/{name}": score.bits_per_base for name, score in self.groups.items()}
        return {prefix + key: value for key, value in numbers.items()}


def names_bases(tokenizer: Tokenizer) -> bool:
    """Whether tokens begin at every base, so that single bases can be hidden."""
    return tokenizer.kind != "sentencepiece" and tokenizer.stride == 1


def protocol_of(tokenizer: Tokenizer) -> str:
    """Protocol of validation in training: "base", or "block" with the bases of a token if their number is fixed."""
    if tokenizer.kind == "sentencepiece":
        return "block"
    return "base" if names_bases(tokenizer) else f"block{tokenizer.bases_per_token}"


def evaluate(
    forward: Forward,
    samples: EvaluationSamples,
    *,
    micro_batch_size: int,
    rank: int = 0,
    size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> Evaluation:
    """Score the samples, rank `rank` of `size` its part; `gather` returns the values of all ranks on each of them."""
    tokenizer, own = samples.tokenizer, np.arange(len(samples))[rank::size]
    protocol = samples.protocol or protocol_of(tokenizer)
    require(len(samples) > 0, f"protocol {protocol}: no sampled chunk has 48 known bases in a row; raise --samples")
    sums, strands = [], []
    both = own[own % STRAND_INTERVAL == 0] if names_bases(tokenizer) else own[:0]
    with Progress("evaluating", len(own) + 2 * len(both), "samples") as progress:
        for first in range(0, len(own), micro_batch_size):
            part = own[first : first + micro_batch_size]
            batch, hidden = samples.batch([samples[index] for index in part], part)
            labels_BS = batch.labels_BS
            score = partial(score_batch, labels_BS=labels_BS, hidden=hidden, tokenizer=tokenizer, protocol=protocol)
            scored = forward(batch, score)
            if scored is not None:
                sums.append((np.add.outer(2 * part, [0, 1]).ravel(), scored))
            progress.advance(len(part))
        for index in both:
            sample = samples[index]
            batch, hidden = samples.batch([sample, sample.other_strand(tokenizer)], np.array([index, index]))
            divergence = partial(strand_divergence, labels_BS=batch.labels_BS, hidden=hidden, tokenizer=tokenizer)
            scored = forward(batch, divergence)
            if scored is not None:
                strands.append((int(index), *scored))
            progress.advance(2)
    return _evaluation(gather((sums, strands)), samples, protocol)


def score_batch(
    logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: Tokenizer, protocol: str
) -> ChunkSums:
    """Sums [2 B] of a batch: of the upper-case and of the lower-case bases of each row; padding columns are ignored.

    `labels_BS` holds the true id of every masked token and a negative number elsewhere.
    """
    logits_BSV, labels_BS = logits_BSV[..., : tokenizer.vocab_size], labels_BS.to(logits_BSV.device)
    row_M, position_M = (labels_BS >= 0).nonzero(as_tuple=True)
    logits_MV, labels_M = logits_BSV[row_M, position_M].float(), labels_BS[row_M, position_M]
    if protocol == "base" or names_bases(tokenizer):
        log_p_N4 = base_log_p(logits_BSV, labels_BS, hidden, tokenizer)
        units = UnitScores.of_bases(log_p_N4.double().cpu().numpy() / math.log(2.0), hidden.base_H)
    else:
        units = token_scores(logits_MV, labels_M, tokenizer)
    if protocol == "block6":
        units = units.joined(WIDTHS[protocol])
    loss_M = torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")
    sums = units.sums(2 * hidden.row_H + hidden.lower_H, 2 * len(labels_BS))
    np.add.at(sums.sums_CQ[:, LOSS], 2 * row_M.cpu().numpy(), loss_M.cpu().numpy())
    np.add.at(sums.sums_CQ[:, TOKENS], 2 * row_M.cpu().numpy(), 1)
    return sums


def base_log_p(logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: Tokenizer) -> Tensor:
    """ln p [N, 4] of the hidden bases of a batch, renormalised over A, C, G, T."""
    if isinstance(tokenizer, KmerTokenizer):
        return kmer_log_p_of_tokens(logits_BSV[labels_BS >= 0], labels_BS, hidden, tokenizer)
    logits_NV = logits_BSV[torch.from_numpy(hidden.row_H), torch.from_numpy(hidden.position_H) + 1].float()
    return torch.log_softmax(logits_NV[:, torch.from_numpy(tokenizer.base_ids)], dim=1)


def strand_divergence(
    logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: Tokenizer
) -> tuple[float, int]:
    """Sum over the hidden bases of a window of the divergence of p and q, and the number of bases.

    Rows are the window (it gives p) and its reverse complement with the same bases hidden (q, mapped to the forward
    strand). The Jensen-Shannon divergence in bits is H((p + q) / 2) - (H(p) + H(q)) / 2 with H the entropy: 0 if both
    strands agree, 1 if they exclude each other.
    """
    logits_BSV, labels_BS = logits_BSV[..., : tokenizer.vocab_size], labels_BS.to(logits_BSV.device)
    p_N4 = base_log_p(logits_BSV, labels_BS, hidden, tokenizer).double().exp()
    count = len(p_N4) // 2
    p_N4, q_N4 = p_N4[:count], p_N4[count:].flip(0, 1)  # A C G T reversed are their complements
    entropy, first, second = (torch.special.entr(x_N4).sum() for x_N4 in ((p_N4 + q_N4) / 2, p_N4, q_N4))
    return float(entropy - (first + second) / 2) / math.log(2.0), count


def _evaluation(everyone: Sequence[Any], samples: EvaluationSamples, protocol: str) -> Evaluation:
    """Combine (sums, strands) of all ranks."""
    parts = [part for sums, _ in everyone for part in sums]
    key_E = np.concatenate([keys for keys, _ in parts])
    sums_E = ChunkSums(np.concatenate([sums.sums_CQ for _, sums in parts])).by_group(key_E)
    key_E = np.sort(key_E)
    chunk_E, name_E = samples.chunks[key_E >> 1], np.array(samples.groups())[key_E >> 1]
    sums_C = sums_E.by_group(chunk_E)
    _, first = np.unique(chunk_E, return_index=True)
    more = with_error("bits_per_base_macro", sums_C.macro(name_E[first]))
    more |= sums_E.by_case(chunk_E, key_E % 2, name_E)
    strands = sorted(part for _, strands in everyone for part in strands)
    if hidden := sum(count for *_, count in strands):
        more["reverse_complement_divergence"] = sum(bits for _, bits, _ in strands) / hidden
    score = replace(sums_C.score(), protocol=protocol)
    return Evaluation(score=score, more=more, groups=sums_E.by_name(chunk_E, name_E))
