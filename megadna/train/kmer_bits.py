"""Probabilities of hidden bases under tokens that are longer than one base.

k-mers, base by base: each masked token over a hidden base gives a probability to its four values: the softmax
restricted to the k-mers that agree with the token's visible bases, summed over the other hidden bases of the token. The
probabilities of the tokens over a base (up to k where they overlap) are averaged.

Tokens that do not overlap as wholes, that is k-mers of stride k and BPE: -log2 p(true token), p renormalised over the
tokens of A, C, G, T alone. Not comparable with scores per base: the model names a word, not a base between two visible
ones.
"""

import math

import torch
from torch import Tensor

from megadna.data.evaluation import HiddenBases
from megadna.tokenizer.alphabet import BASES
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import UnitScores

# Shapes: B rows, S tokens of a row, L bases under them if each were a k-mer ([CLS] and [SEP] too), V vocabulary, M
# masked tokens, m those that hide the same h of their k places, N hidden bases, 4 the bases A C G T.


def kmer_log_p(logits_BSV: Tensor, labels_BS: Tensor, hidden: HiddenBases, tokenizer: KmerTokenizer) -> Tensor:
    """ln p [N, 4] of the hidden bases of a batch, one sequence a row, p averaged over the masked tokens over each.

    `labels_BS` holds the true id of every masked token and a negative number elsewhere. Tokens that hide the same
    places are taken together: their 4^h candidates stand at the same distances. ValueError where a masked token
    touches anything but A, C, G, T.
    """
    device, k, stride = logits_BSV.device, tokenizer.bases_per_token, tokenizer.stride
    row_M, place_M = (labels_BS >= 0).nonzero(as_tuple=True)
    words_M = labels_BS[row_M, place_M] - tokenizer.first
    if bool((words_M < 0).any()):
        raise ValueError("a masked token touches a base that is not A, C, G or T; only these may be evaluated")
    rows, length = labels_BS.shape
    number_BL = torch.full((rows, (length - 1) * stride + k), -1, device=device)
    row_N, place_N = (torch.from_numpy(values).to(device) for values in (hidden.row_H, hidden.place_H))
    number_BL[row_N, place_N + stride] = torch.arange(len(row_N), device=device)  # [CLS] begins one stride before
    number_Mk = number_BL[row_M[:, None], place_M[:, None] * stride + torch.arange(k, device=device)]
    hidden_Mk = number_Mk >= 0
    logits_MV = logits_BSV[row_M, place_M].float()
    masked_N = torch.bincount(number_Mk[hidden_Mk], minlength=len(row_N))
    log_p_Nk4 = logits_MV.new_full((len(row_N), k, 4), float("-inf"))
    pattern_M = (hidden_Mk << torch.arange(k, device=device)).sum(dim=1)
    for pattern in pattern_M.unique().tolist():
        places = [place for place in range(k) if pattern >> place & 1]
        token_m = (pattern_M == pattern).nonzero()[:, 0]
        candidates_mC = _candidates(words_M[token_m], places, tokenizer)
        log_p_mC = torch.log_softmax(logits_MV[token_m[:, None], candidates_mC], dim=1)
        for axis, place in enumerate(places):
            log_p_m4 = log_p_mC.view(len(token_m), 4**axis, 4, -1).logsumexp(dim=(1, 3))
            log_p_Nk4[number_Mk[token_m, place], place] = log_p_m4
    return log_p_Nk4.logsumexp(dim=1) - masked_N[:, None].log()


def _unit(place: int, tokenizer: KmerTokenizer) -> int:
    """What one step of the base at `place` adds to an id."""
    return 4 ** (tokenizer.bases_per_token - 1 - place)


def _candidates(words_m: Tensor, places: list[int], tokenizer: KmerTokenizer) -> Tensor:
    """Ids [m, 4^h] of the k-mers that agree with each word outside `places`; there A C G T, the last place fastest."""
    order_4 = torch.tensor([tokenizer.base_order.index(base) for base in BASES], device=words_m.device)
    kept_m, distance_C = words_m, torch.zeros(1, dtype=torch.int64, device=words_m.device)
    for place in places:
        unit = _unit(place, tokenizer)
        kept_m = kept_m - words_m // unit % 4 * unit
        distance_C = (distance_C[:, None] + order_4 * unit).flatten()
    return tokenizer.first + kept_m[:, None] + distance_C


def token_scores(logits_MV: Tensor, labels_M: Tensor, tokenizer: Tokenizer) -> UnitScores:
    """Scores of masked tokens that do not overlap; ValueError where one touches anything but A, C, G, T."""
    ids = torch.from_numpy(tokenizer.nucleotide_ids).to(labels_M.device)
    column_M = torch.searchsorted(ids, labels_M).clamp(max=len(ids) - 1)
    if not bool((ids[column_M] == labels_M).all()):
        raise ValueError("a masked token touches a base that is not A, C, G or T; only these may be evaluated")
    log_p_M = torch.log_softmax(logits_MV[:, ids], dim=1)
    true_M1 = log_p_M.gather(1, column_M[:, None])
    share_M = (true_M1[:, 0] == log_p_M.amax(dim=1)) / (log_p_M == true_M1).sum(dim=1)  # a tie of n counts 1/n
    starts, stops = tokenizer.spans(labels_M.cpu().numpy())
    return UnitScores(
        bases_U=stops - starts,
        bits_U=-true_M1[:, 0].double().cpu().numpy() / math.log(2.0),
        correct_U=share_M.double().cpu().numpy(),
    )
