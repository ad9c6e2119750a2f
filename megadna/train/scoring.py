"""Masked bits per base of a model on fixed samples, whatever runs the model: the same numbers under any layout.

In:  a function that runs the model on a batch, EvaluationSamples.
Out: an Evaluation: over all hidden bases, by group (species), for upper-case (unique) and lower-case (soft-masked
     repeat) bases apart, and how far the two strands disagree.

Bases are scored one by one ("base") where a token is one base or k-mers overlap, else by tokens ("block6", "block").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadna.data.batch import Batch
from megadna.data.evaluation import WIDTHS, EvaluationSamples, HiddenBases
from megadna.errors import require
from megadna.progress import Progress
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import HIDDEN, LOSS, TOKENS, ChunkSums, MaskedScore, UnitScores, kmer_log_p, token_scores

# Shapes: B rows of a batch, S sequence, V vocabulary, M masked tokens, N hidden bases, 4 the bases A C G T, E entries:
# the upper-case and the lower-case bases of each sample.

Forward = Callable[[Batch, Callable[[Tensor], Any]], Any]
"""forward(batch, score) runs the model and returns score(logits [B, S, V]), or None on a rank that does not speak."""
STRAND_INTERVAL = 16
"""One sample in so many is read from both strands: this costs an eighth of the evaluation."""
MAX_GROUPS = 20
"""metrics.jsonl names each group where there are no more; `megadna evaluate` names them always."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    score: MaskedScore
    """Over all hidden bases."""
    more: dict[str, float | None]
    """bits_per_base_macro: the mean over groups. bits_per_base_unique, _repeat: upper- and lower-case bases, their
    means over groups with _macro before; only where both are hidden. Standard errors with _se behind.
    reverse_complement_divergence: see `strand_divergence`; only where tokens begin at every base."""
    groups: dict[str, MaskedScore]
    """By species; empty where there is one group."""

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
    """How training validates models with this tokenizer: "base", or "block" and the bases of a token where fixed."""
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
    """Score the samples, rank `rank` of `size` each its part; `gather` gives what all ranks hold, on each of them."""
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
            pair = [samples[index], samples[index].other_strand(tokenizer)]
            batch, hidden = samples.batch(pair, np.array([index, index]))
            divergence = partial(strand_divergence, labels_BS=batch.labels_BS, hidden=hidden, tokenizer=tokenizer)
            scored = forward(batch, divergence)
            if scored is not None:
                strands.append((int(index), *scored))
            progress.advance(2)
    return _evaluation(gather((sums, strands)), samples, protocol)


def score_batch(
    logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: Tokenizer, protocol: str
) -> ChunkSums:
    """Sums [2 B] of a batch: of the upper-case and of the lower-case bases of each row; padding columns are not read.

    `labels_BS` holds the true id of every masked token and a negative number elsewhere.
    """
    logits_BSV, labels_BS = logits_BSV[..., : tokenizer.vocab_size], labels_BS.to(logits_BSV.device)
    row_M, place_M = (labels_BS >= 0).nonzero(as_tuple=True)
    logits_MV, labels_M = logits_BSV[row_M, place_M].float(), labels_BS[row_M, place_M]
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
        return kmer_log_p(logits_BSV, labels_BS, hidden, tokenizer)
    logits_NV = logits_BSV[torch.from_numpy(hidden.row_H), torch.from_numpy(hidden.position_H) + 1].float()
    return torch.log_softmax(logits_NV[:, torch.from_numpy(tokenizer.base_ids)], dim=1)


def strand_divergence(
    logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: Tokenizer
) -> tuple[float, int]:
    """Sum over the hidden bases of a window of how far p and q disagree, and their number.

    Rows are the window (it gives p) and its reverse complement with the same bases hidden (q, read back on the forward
    strand). The distance is Jensen and Shannon's divergence in bits, H((p + q) / 2) - (H(p) + H(q)) / 2 with H the
    entropy: 0 where both strands say the same, 1 where they exclude each other.
    """
    logits_BSV, labels_BS = logits_BSV[..., : tokenizer.vocab_size], labels_BS.to(logits_BSV.device)
    p_N4 = base_log_p(logits_BSV, labels_BS, hidden, tokenizer).double().exp()
    count = len(p_N4) // 2
    p_N4, q_N4 = p_N4[:count], p_N4[count:].flip(0, 1)  # A C G T backwards are their complements
    entropy, first, second = (torch.special.entr(x_N4).sum() for x_N4 in ((p_N4 + q_N4) / 2, p_N4, q_N4))
    return float(entropy - (first + second) / 2) / math.log(2.0), count


def _evaluation(everyone: Sequence[Any], samples: EvaluationSamples, protocol: str) -> Evaluation:
    """From (sums, strands) of all ranks."""
    parts = [part for sums, _ in everyone for part in sums]
    key_E = np.concatenate([keys for keys, _ in parts])
    sums_E = ChunkSums(np.concatenate([sums.sums_CQ for _, sums in parts])).by_group(key_E)
    key_E = np.sort(key_E)
    names, number = np.unique(samples.groups(), return_inverse=True)
    chunk_E, group_E = samples.chunks[key_E >> 1], number[key_E >> 1]
    score, macro = _means(sums_E, chunk_E, group_E)
    more = _pair("bits_per_base_macro", macro)
    hides_E = sums_E.sums_CQ[:, HIDDEN] > 0
    cases = {f"_{name}": (key_E % 2 == case) & hides_E for case, name in enumerate(("unique", "repeat"))}
    for suffix, kept_E in cases.items() if all(kept_E.any() for kept_E in cases.values()) else ():
        mean, macro = _means(sums_E.select(kept_E), chunk_E[kept_E], group_E[kept_E])
        more |= _pair(f"bits_per_base{suffix}", (mean.bits_per_base, mean.standard_error))
        more |= _pair(f"bits_per_base_macro{suffix}", macro)
    strands = sorted(part for _, strands in everyone for part in strands)
    if hidden := sum(count for *_, count in strands):
        more["reverse_complement_divergence"] = sum(bits for _, bits, _ in strands) / hidden
    groups = {}
    for group, name in enumerate(names.tolist() if len(names) > 1 else ()):
        kept_E = (group_E == group) & hides_E
        if kept_E.any():
            groups[name] = _means(sums_E.select(kept_E), chunk_E[kept_E], group_E[kept_E])[0]
    return Evaluation(score=replace(score, protocol=protocol), more=more, groups=groups)


def _means(
    sums_E: ChunkSums, chunk_E: NDArray[np.int64], group_E: NDArray[np.int64]
) -> tuple[MaskedScore, tuple[float, float | None]]:
    """The score over all chunks, and the mean over groups with its standard error."""
    _, first = np.unique(chunk_E, return_index=True)
    sums_C = sums_E.by_group(chunk_E)
    return sums_C.score(), sums_C.macro(group_E[first])


def _pair(key: str, mean: tuple[float, float | None]) -> dict[str, float | None]:
    return {key: mean[0], f"{key}_se": mean[1]}
