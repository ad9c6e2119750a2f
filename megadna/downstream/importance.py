"""Importance of every base for the number that explained.py defines, by three methods.

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

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megadna.alphabet import BASES, OTHER, base_codes, dna_of
from megadna.downstream.explained import Explained
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.stated import one_line
from megadna.errors import UserError, require

# Shapes: B sequences, S tokens, N heads, L bases, H hidden, P changed bases, 4 the bases A C G T.

_MAX_BASES = 1 << 17  # of the substituted sequences that are tokenized at once
_MAX_WEIGHTS = 1 << 27  # attention weights of all layers that are in memory at once


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
