"""What attributions explain, one differentiable number of a sequence, and the importance of every base for it.

In:  sequences of upper-case DNA that fit the context; a fine-tuned head or a masked language model.
Out: the score [B] of each; importances, contributions.

The score. A class: its log odds ln p / (1 - p) (of several labels at once: its logit, which is the same). A number:
itself. A model of nucleotides: the mean of this over the bases of `target` (all bases, if empty). A masked language
model: the mean of ln p of the true bases, p renormalised over A, C, G, T. Without a target nothing is hidden and all
bases count (those that no token of A, C, G, T alone covers do not); the bases of a target are hidden together, as
masked_bases.py hides them.

attention (DNABERT, Ji et al. 2021): in the last layer, the attention from the first token ([CLS]) to a token, summed
over heads; the mean over the tokens that cover a base; divided by the L2 norm over the sequence. It depends on no
output and has no sign: a view, not an explanation.
gradient (integrated gradients, Sundararajan et al. 2017, by captum): along the straight line from a sequence of [MASK]
to the sequence, in the vectors that enter the first layer; summed over their numbers, the importance of a token is
spread evenly over its bases. The importances of all tokens add up to score - baseline score: the delta is what is
missing.
mutagenesis (the reference): the score minus the mean of the scores of the three substitutions. Without a target, of a
masked language model: ln p of the base, which is hidden alone, minus the mean of ln p over the four bases. NaN at N.
Its contributions of all four bases are what the importance would be if another stood there ("hypothetical").
The bases of a hidden target have importance 0 by gradients and mutagenesis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megadna.alphabet import BASES, OTHER, base_codes, dna_of
from megadna.data.batch import IGNORE_INDEX
from megadna.data.evaluation import HiddenBases
from megadna.downstream.encoder import SequenceTokenizer, Tokens, batches_by_length, padded
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.stated import Head, one_line
from megadna.errors import UserError, require
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.evaluation import base_log_p

# Shapes: B sequences, S tokens, C labels, V vocabulary, L bases, N bases of all sequences, M tokens over them,
# H numbers of a vector, P changed bases, 4 the bases A C G T.

_MAX_BASES = 1 << 17  # of the substituted sequences that are tokenized at once
_MAX_WEIGHTS = 1 << 27  # attention weights of all layers that are in memory at once


@dataclass(frozen=True)
class Row:
    """One sequence as the model reads it."""

    bases: str
    tokens: Tokens
    """The target is hidden in their ids."""
    labels: np.ndarray
    """Ids [S] of the tokens that are hidden, IGNORE_INDEX elsewhere."""


class Explained:
    """A model and the number that is explained."""

    def __init__(
        self,
        model: Any,
        tokenizer: SequenceTokenizer,
        target: Sequence[int],
        *,
        device: torch.device,
        batch_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.target, self.device = model, tokenizer, tuple(target), device
        self.batch_tokens = batch_tokens

    what = "ln p of the true bases"
    """What the score is, for captions."""
    unit = "nats"
    hides_target = False
    """Whether the model sees [MASK] at the target."""

    def rows(self, windows: Sequence[str], shift: int = 0) -> list[Row]:
        """Tokenize; base `shift` of a window is number 0 of the target."""
        found = []
        for bases, tokens in zip(windows, self.tokenizer(list(windows)), strict=True):
            ids, labels = np.array(tokens.ids), np.full(len(tokens.ids), IGNORE_INDEX)
            if self.hides_target and self.target:
                at = np.array(self.target) + shift
                first, end = tokens.starts[:, None], (tokens.starts + tokens.lengths)[:, None]
                chosen = self.tokenizer.prefix + np.flatnonzero(((first <= at) & (at < end)).any(axis=1))
                labels[chosen], ids[chosen] = ids[chosen], self.mask_id
            found.append(Row(bases, Tokens(ids.tolist(), tokens.starts, tokens.lengths), labels))
        return found

    @property
    def mask_id(self) -> int:
        """Of [MASK]; UserError if the tokenizer has none."""
        found = self.tokenizer.tokenizer.mask_token_id
        require(
            found is not None,
            "the tokenizer has no mask token, which gradients start from; choose another of --methods",
        )
        return int(found)

    def batch(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) [B, S], padded."""
        ids_BS, mask_BS = padded([row.tokens.ids for row in rows], self.tokenizer.pad_id)
        return ids_BS.to(self.device), mask_BS.to(self.device)

    def logits(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """As the model gives them, fp32."""
        return self.model(input_ids=ids_BS, attention_mask=mask_BS).logits.float()

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """The explained number [B] of each row."""
        raise NotImplementedError

    @torch.inference_mode()
    def values(self, windows: Sequence[str], shift: int = 0) -> np.ndarray:
        """The explained number of each sequence, fp64 [B], in batches of similar length."""
        rows = self.rows(windows, shift)
        found = np.empty(len(rows))
        for batch in batches_by_length([len(row.tokens.ids) for row in rows], self.batch_tokens):
            chosen = [rows[i] for i in batch]
            found[batch] = self.scores(self.logits(*self.batch(chosen)), chosen, shift).double().cpu().numpy()
        return found

    def positions(self, row: Row, shift: int) -> np.ndarray:
        """The bases of the target (all, if there is none), in the row."""
        return np.array(self.target, np.int64) + shift if self.target else np.arange(len(row.bases))


class ExplainedHead(Explained):
    """One class or number of a fine-tuned model."""

    def __init__(self, head: Head, label: str, *parts: Any, **more: Any) -> None:
        """label: one of the head's names, or "", the first."""
        super().__init__(*parts, **more)
        self._head, self._column = head, head.names.index(label) if label else 0
        name = head.names[self._column]
        is_number = head.problem == "regression"
        self.what, self.unit = (name, name) if is_number else (f"ln p/(1-p) of {name}", "nats")

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """Log odds of the class, or the number."""
        if not self._head.per_base:
            return self._odds(logits)
        row_M, token_M, number_M, counts = self._cover(rows, shift)
        index_M = torch.from_numpy(number_M).to(logits.device)
        flat_MC = logits[row_M, token_M]
        total_NC = flat_MC.new_zeros(sum(counts), flat_MC.shape[1]).index_add(0, index_M, flat_MC)
        odds_N = self._odds(total_NC / torch.bincount(index_M, minlength=sum(counts)).clamp_min(1)[:, None])
        return torch.stack([part.mean() for part in odds_N.split(counts)])

    def _odds(self, logits_NC: Tensor) -> Tensor:
        one_N = logits_NC[:, self._column]
        if self._head.problem != "single_label_classification" or logits_NC.shape[1] == 1:
            return one_N
        others = [number for number in range(logits_NC.shape[1]) if number != self._column]
        return one_N - logits_NC[:, others].logsumexp(-1)

    def _cover(self, rows: Sequence[Row], shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """(row, token, number of the target's base) [M] of each token over a base of the target; bases of each row."""
        parts: list[tuple[np.ndarray, ...]] = []
        counts: list[int] = []
        for number, row in enumerate(rows):
            at, starts = self.positions(row, shift), row.tokens.starts
            covers = (starts[:, None] <= at) & (at < (starts + row.tokens.lengths)[:, None])
            token_M, base_M = np.nonzero(covers)
            parts.append((np.full(len(token_M), number), token_M + self.tokenizer.prefix, base_M + sum(counts)))
            counts.append(len(at))
        row_M, token_M, number_M = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return row_M, token_M, number_M, counts


class ExplainedBases(Explained):
    """A masked language model."""

    hides_target = True

    def __init__(self, bases: Tokenizer, *parts: Any, **more: Any) -> None:
        """bases: the tokenizer as `megadna evaluate` reads it."""
        super().__init__(*parts, **more)
        self._bases = bases

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """Mean ln p of the true bases; NaN if there is none."""
        ids_BS = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row.labels) if self.target else torch.tensor(row.tokens.ids) for row in rows],
            batch_first=True, padding_value=IGNORE_INDEX,
        )  # fmt: skip
        if isinstance(self._bases, KmerTokenizer):
            ids_BS = ids_BS.masked_fill(ids_BS < self._bases.first, IGNORE_INDEX)
        total_B, count_B = logits.new_zeros(len(rows)), logits.new_zeros(len(rows))
        phases = 1 if self.target else self._bases.bases_per_token  # no token covers two bases of a phase
        for phase in range(phases):
            where = self._where(rows, shift, phase, phases)
            log_p_N4 = base_log_p(logits, ids_BS.to(logits.device), where, self._bases)
            true_N = log_p_N4[torch.arange(len(log_p_N4)), torch.from_numpy(where.base_H.astype(np.int64))]
            known = ~true_N.isnan()
            row_N = torch.from_numpy(where.row_H).to(logits.device)[known]
            total_B = total_B.index_add(0, row_N, true_N[known])
            count_B = count_B.index_add(0, row_N, torch.ones_like(true_N[known]))
        return total_B / count_B

    def _where(self, rows: Sequence[Row], shift: int, phase: int, phases: int) -> HiddenBases:
        """The bases that count, every one of `phases` from `phase` on."""
        found = []
        for row in rows:
            at = self.positions(row, shift)[phase::phases]
            codes = base_codes(dna_of(row.bases))[at]
            found.append((at[codes != OTHER], codes[codes != OTHER]))
        row_N = np.repeat(np.arange(len(rows)), [len(at) for at, _ in found])
        at_N, code_N = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return HiddenBases(row_N, at_N, code_N, np.zeros(len(row_N), bool))


def cls_attention(model: Any, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Sum over the heads of the last layer of the attention from the first token to each, [B, S, 1]; `model` must be
    one that `use_eager_attention` has prepared. UserError if it gives no weights."""
    config, size = model.config, ids_BS.shape[1]
    layers, heads = (getattr(config, key, None) or 1 for key in ("num_hidden_layers", "num_attention_heads"))
    rows = max(1, _MAX_WEIGHTS // (layers * heads * size * size))
    found = []
    for ids, mask in zip(ids_BS.split(rows), mask_BS.split(rows), strict=True):
        try:
            weights = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
        except (TypeError, AttributeError):  # an architecture without attention, which others wrote
            weights = None
        if not weights or weights[-1] is None:
            raise UserError("the model gives no attention weights; choose --methods gradient or mutagenesis")
        found.append(weights[-1][:, :, 0].float().sum(1))
    return torch.cat(found)[:, :, None]


def use_eager_attention(model: Any) -> Any:
    """The encoder of a model, with the implementation of attention that returns its weights."""
    encoder = model.base_model
    if hasattr(encoder, "set_attn_implementation"):
        encoder.set_attn_implementation("eager")
    return encoder


def normalised(attention_L: np.ndarray) -> np.ndarray:
    """Divided by its L2 norm; NaN (a base that no token covers) counts as 0 there."""
    return attention_L / (np.sqrt(np.nansum(attention_L.astype(np.float64) ** 2)) or 1.0)


class Gradients(NamedTuple):
    """Integrated gradients of one sequence."""

    importance: np.ndarray
    """fp64 [L]; NaN where no token covers a base."""
    score: float
    """Of the sequence."""
    baseline: float
    """Of the sequence of [MASK]."""
    delta: float
    """Sum of the importances of all tokens, special ones included, minus (score - baseline)."""


def integrated_gradients(explained: Explained, bases: str, *, steps: int, shift: int = 0) -> Gradients:
    """Of one sequence, at `steps` points by Gauss-Legendre quadrature."""
    from captum.attr import LayerIntegratedGradients

    row = explained.rows([bases], shift)[0]
    ids_1S, mask_1S = explained.batch([row])
    baseline_1S = ids_1S.clone()
    baseline_1S[:, explained.tokenizer.prefix : ids_1S.shape[1] - explained.tokenizer.suffix] = explained.mask_id

    def score(ids_BS: Tensor) -> Tensor:
        logits = explained.logits(ids_BS, mask_1S.expand(len(ids_BS), -1))
        return explained.scores(logits, [row] * len(ids_BS), shift)

    with torch.no_grad():
        first, last = (float(score(ids)) for ids in (baseline_1S, ids_1S))
    with one_line("gradients: the model does not show what turns tokens into vectors"):
        layer = _embedding(explained.model)
    method = LayerIntegratedGradients(score, layer)
    size = max(1, explained.batch_tokens // ids_1S.shape[1])
    vectors_1SH = method.attribute(ids_1S, baseline_1S, n_steps=steps, internal_batch_size=size)
    tokens_S = vectors_1SH.detach().double().sum(-1)[0].cpu().numpy()
    inner = tokens_S[explained.tokenizer.prefix : len(tokens_S) - explained.tokenizer.suffix]
    importance_L = _spread(inner, row.tokens.starts, row.tokens.lengths, len(bases))
    return Gradients(importance_L, last, first, float(tokens_S.sum()) - (last - first))


def _embedding(model: Any) -> Any:
    """What turns ids into the vectors of the first layer: the encoder's `embeddings` if these contain the table of
    tokens (BERT, megadna: positions, norm and context tables too), else that table."""
    encoder = model.base_model
    words, whole = encoder.get_input_embeddings(), getattr(encoder, "embeddings", None)
    contains = isinstance(whole, torch.nn.Module) and any(part is words for part in whole.modules())
    return whole if contains else words


def _spread(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """fp64 [L]: each token's importance in equal shares on its bases, so that the sum stays."""
    total_L, covered_L = np.zeros(size), np.zeros(size, bool)
    for offset in range(int(lengths.max(initial=0))):
        inside = lengths > offset
        np.add.at(total_L, starts[inside] + offset, tokens[inside] / lengths[inside])
        covered_L[starts[inside] + offset] = True
    return np.where(covered_L, total_L, np.nan)


def mutagenesis(explained: Explained, bases: str, own: range, *, shift: int = 0) -> tuple[np.ndarray, float]:
    """(contributions fp64 [L, 4], score): at each base of `own` the score with A, C, G or T there minus the mean of the
    other three; NaN elsewhere and where the base is not A, C, G or T, 0 where it is hidden."""
    hidden = {number + shift for number in explained.target} if explained.hides_target else set()
    found_L4 = np.full((len(bases), 4), np.nan)
    found_L4[[at for at in own if at in hidden]] = 0.0
    score = float(explained.values([bases], shift)[0])
    changed = [at for at in own if at not in hidden and bases[at] in BASES]
    size = max(1, _MAX_BASES // (3 * len(bases)))
    for first in range(0, len(changed), size):
        part = changed[first : first + size]
        texts = [bases[:at] + base + bases[at + 1 :] for at in part for base in BASES if base != bases[at]]
        scores_P4 = np.full((len(part), 4), score)
        scores_P4[[[base != bases[at] for base in BASES] for at in part]] = explained.values(texts, shift)
        found_L4[part] = (4 * scores_P4 - scores_P4.sum(axis=1, keepdims=True)) / 3
    return found_L4, score


def masked_log_odds(model: MaskedBases, bases: str, own: range) -> np.ndarray:
    """Contributions fp64 [L, 4]: at each base of `own`, hidden alone, ln p of A, C, G and T minus their mean; NaN
    elsewhere and where the base is not A, C, G or T."""
    at = [position for position in own if bases[position] in BASES]
    found_L4 = np.full((len(bases), 4), np.nan)
    if at:
        log_p_L4 = np.concatenate(model.hidden([bases] * len(at), [[position] for position in at])).astype(float)
        found_L4[at] = log_p_L4 - log_p_L4.mean(axis=1, keepdims=True)
    return found_L4


def of_true_bases(contributions_L4: np.ndarray, bases: str) -> np.ndarray:
    """The contribution [L] of the base that is there; NaN if it is not A, C, G or T."""
    codes_L = base_codes(dna_of(bases))
    found_L = contributions_L4[np.arange(len(bases)), codes_L % OTHER]
    return np.where(codes_L == OTHER, np.nan, found_L)


def require_first_token(prefix: int) -> None:
    """UserError if the tokenizer puts no special token before the bases."""
    require(prefix > 0, "the tokenizer puts no [CLS] before the bases; choose --methods gradient or mutagenesis")
