"""Masked bits per base of models whose tokens are longer than one base.

Overlapping k-mers (protocol "base"): a hidden base is one under masked tokens that no visible k-mer shows. Each masked
token over it gives a probability to its four values: the softmax restricted to the k-mers that agree with the token's
visible bases, summed over the other hidden bases of the token. The probabilities of the up to k tokens are averaged;
bits and accuracy are those of the average.

Blocks, that is k-mers of stride k and BPE (protocol "block6", "block"): a masked token hides all its bases at once, so
its bits are divided by the bases it covers. Not comparable with scores per base: the model names a word, not a base
between two visible ones.
"""

import math

import torch
from torch import Tensor

from megadna.tokenizer.alphabet import BASES
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import ChunkSums, sum_by_chunk, total_by_chunk

# Shapes: B rows, S tokens of a row, L = S + k - 1 bases under them if each were a k-mer ([CLS] and [SEP] too), V
# vocabulary, N masked tokens, n those that hide the same h of their k places, M hidden bases, 4 the bases A C G T.


def score_kmers(logits_BSV: Tensor, labels_BS: Tensor, tokens_BS: Tensor, tokenizer: KmerTokenizer) -> ChunkSums:
    """Sums per row of one batch of overlapping k-mers, one sequence a row; the loss is one of masked tokens.

    `labels_BS` holds the true id of every masked token and a negative number elsewhere, `tokens_BS` what the model saw.
    ValueError where a masked token touches anything but A, C, G, T.
    """
    device, k = logits_BSV.device, tokenizer.bases_per_token
    labels_BS, tokens_BS = labels_BS.to(device), tokens_BS.to(device)
    asked_BS = labels_BS >= 0
    row_N, place_N = asked_BS.nonzero(as_tuple=True)
    words_N = labels_BS[asked_BS] - tokenizer.first
    if bool((words_N < 0).any()):
        raise ValueError("a masked token touches a base that is not A, C, G or T; only these may be evaluated")
    hidden_BL = _covered(asked_BS, k) & ~_covered(tokens_BS >= tokenizer.first, k)
    number_BL = hidden_BL.flatten().cumsum(0).view_as(hidden_BL) - 1
    bases_Nk = row_N[:, None], place_N[:, None] + torch.arange(k, device=device)
    hidden_Nk, number_Nk = hidden_BL[bases_Nk], number_BL[bases_Nk]
    logits_NV = logits_BSV[asked_BS][:, : tokenizer.vocab_size].float()
    log_p_M4 = _average(logits_NV, words_N, hidden_Nk, number_Nk, tokenizer)
    base_M = torch.zeros(len(log_p_M4), dtype=torch.int64, device=device)
    base_M[number_Nk[hidden_Nk]] = _bases(words_N, tokenizer)[hidden_Nk]
    loss_N = torch.nn.functional.cross_entropy(logits_NV, labels_BS[asked_BS], reduction="none")
    return sum_by_chunk(
        log_p_M4.double().cpu().numpy() / math.log(2.0),
        base_M.cpu().numpy(),
        hidden_BL.nonzero()[:, 0].cpu().numpy(),
        num_chunks=len(labels_BS),
    ).with_loss(loss_N.cpu().numpy(), row_N.cpu().numpy())


def _covered(tokens_BS: Tensor, k: int) -> Tensor:
    """Bases [B, L] under any of the flagged tokens."""
    rows, length = tokens_BS.shape
    bases_BL = torch.zeros(rows, length + k - 1, dtype=torch.bool, device=tokens_BS.device)
    for place in range(k):
        bases_BL[:, place : place + length] |= tokens_BS
    return bases_BL


def _bases(words_N: Tensor, tokenizer: KmerTokenizer) -> Tensor:
    """Codes [N, k] (A C G T = 0..3) of the bases of words, which are ids less the first."""
    units_k = torch.tensor([_unit(place, tokenizer) for place in range(tokenizer.bases_per_token)])
    code_4 = torch.tensor([BASES.index(base) for base in tokenizer.base_order])
    return code_4.to(words_N.device)[words_N[:, None] // units_k.to(words_N.device) % 4]


def _unit(place: int, tokenizer: KmerTokenizer) -> int:
    """What one step of the base at `place` adds to an id."""
    return 4 ** (tokenizer.bases_per_token - 1 - place)


def _average(
    logits_NV: Tensor, words_N: Tensor, hidden_Nk: Tensor, number_Nk: Tensor, tokenizer: KmerTokenizer
) -> Tensor:
    """ln p [M, 4] of the hidden bases, p averaged over the masked tokens over each.

    Tokens that hide the same places are taken together: their 4^h candidates stand at the same distances.
    """
    k, device = tokenizer.bases_per_token, logits_NV.device
    masked_M = torch.bincount(number_Nk[hidden_Nk])
    log_p_Mk4 = logits_NV.new_full((len(masked_M), k, 4), float("-inf"))
    pattern_N = (hidden_Nk << torch.arange(k, device=device)).sum(dim=1)
    for pattern in pattern_N.unique().tolist():
        places = [place for place in range(k) if pattern >> place & 1]
        token_n = (pattern_N == pattern).nonzero()[:, 0]
        candidates_nC = _candidates(words_N[token_n], places, tokenizer)
        log_p_nC = torch.log_softmax(logits_NV[token_n[:, None], candidates_nC], dim=1)
        for axis, place in enumerate(places):
            log_p_n4 = log_p_nC.view(len(token_n), 4**axis, 4, -1).logsumexp(dim=(1, 3))
            log_p_Mk4[number_Nk[token_n, place], place] = log_p_n4
    return log_p_Mk4.logsumexp(dim=1) - masked_M[:, None].log()


def _candidates(words_n: Tensor, places: list[int], tokenizer: KmerTokenizer) -> Tensor:
    """Ids [n, 4^h] of the k-mers that agree with each word outside `places`; there A C G T, the last place fastest."""
    order_4 = torch.tensor([tokenizer.base_order.index(base) for base in BASES], device=words_n.device)
    kept_n, distance_C = words_n, torch.zeros(1, dtype=torch.int64, device=words_n.device)
    for place in places:
        unit = _unit(place, tokenizer)
        kept_n = kept_n - words_n // unit % 4 * unit
        distance_C = (distance_C[:, None] + order_4 * unit).flatten()
    return tokenizer.first + kept_n[:, None] + distance_C


def score_blocks(logits_BSV: Tensor, labels_BS: Tensor, tokenizer: Tokenizer) -> ChunkSums:
    """Sums per row of one batch of tokens that do not overlap, each weighing as many bases as it covers.

    bits: -log2 p(true token), p renormalised over the tokens of A, C, G, T alone; correct: bases of tokens that are
    right as a whole. ValueError where a masked token touches anything but A, C, G, T.
    """
    asked_BS = labels_BS >= 0
    labels_N, row_N = labels_BS[asked_BS], asked_BS.nonzero()[:, 0].cpu().numpy()
    logits_NV = logits_BSV[asked_BS][:, : tokenizer.vocab_size].float()
    ids = torch.from_numpy(tokenizer.nucleotide_ids).to(labels_N.device)
    column_N = torch.searchsorted(ids, labels_N).clamp(max=len(ids) - 1)
    if not bool((ids[column_N] == labels_N).all()):
        raise ValueError("a masked token touches a base that is not A, C, G or T; only these may be evaluated")
    log_p_N = torch.log_softmax(logits_NV[:, ids], dim=1)
    true_N1 = log_p_N.gather(1, column_N[:, None])
    share_N = (true_N1[:, 0] == log_p_N.amax(dim=1)) / (log_p_N == true_N1).sum(dim=1)  # a tie of n counts 1/n
    loss_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    starts, stops = tokenizer.spans(labels_N.cpu().numpy())
    rows, bases_N = len(labels_BS), stops - starts
    return ChunkSums(
        hidden_C=total_by_chunk(bases_N, row_N, rows).astype(int),
        bits_C=total_by_chunk(-true_N1[:, 0].double().cpu().numpy() / math.log(2.0), row_N, rows),
        correct_C=total_by_chunk(bases_N * share_N.double().cpu().numpy(), row_N, rows),
    ).with_loss(loss_N.cpu().numpy(), row_N)
