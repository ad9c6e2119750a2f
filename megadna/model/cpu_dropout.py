"""Attention with dropout of its weights on a CPU, where torch's flash kernel takes none and S x S scores fill memory.

Blocks of queries against all keys, in the cache; the backward pass computes weights and dropped places again. With
W = softmax(q k^T / sqrt(d)), M the kept places over the kept share and O = (W * M) v (arXiv:2205.14135, appendix B):
dv = (W * M)^T dO, dW = (dO v^T) * M, ds = W * (dW - sum(dO * O)), dq = ds k / sqrt(d), dk = ds^T q / sqrt(d).

Shapes: B batch, N heads, G key-value heads, A = B x N, S sequence, D head dimension, Q queries of a block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 512
LEVELS = 1 << 16
"""A place is dropped by 16 random bits: the probability is within 1 / 131,072 of the one asked for."""


def dropout_attention(query_BNSD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, dropout: float) -> Tensor:
    """Context [B, N, S, D] in the inputs' type, computed in fp32; each of the G groups serves N / G heads."""
    heads = query_BNSD.shape[1] // key_BGSD.shape[1]
    key_BNSD, value_BNSD = (x.repeat_interleave(heads, dim=1) for x in (key_BGSD, value_BGSD))
    inputs = (x.float().flatten(0, 1) for x in (query_BNSD, key_BNSD, value_BNSD))
    return DropoutAttention.apply(*inputs, dropout).view_as(query_BNSD).to(query_BNSD.dtype)


class DropoutAttention(torch.autograd.Function):
    """Context [A, S, D] of query, key and value [A, S, D]; dropout is the probability that a weight is dropped."""

    @staticmethod
    def forward(ctx: Any, query_ASD: Tensor, key_ASD: Tensor, value_ASD: Tensor, dropout: float) -> Tensor:
        """Draws one number from torch's generator; the dropped positions follow from it."""
        ctx.dropped = min(round(dropout * LEVELS), LEVELS - 1)
        ctx.seed = int(torch.randint(1 << 62, ()))
        scaled_ASD, context_ASD = query_ASD * query_ASD.shape[-1] ** -0.5, torch.empty_like(query_ASD)
        for head, rows, weights_QS, kept_QS in _blocks(scaled_ASD, key_ASD, ctx.dropped, ctx.seed):
            context_ASD[head, rows] = weights_QS.mul_(kept_QS) @ value_ASD[head]
        context_ASD *= LEVELS / (LEVELS - ctx.dropped)
        ctx.save_for_backward(scaled_ASD, key_ASD, value_ASD, context_ASD)
        return context_ASD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of query, key and value."""
        scaled_ASD, key_ASD, value_ASD, context_ASD = ctx.saved_tensors
        sums_AS1 = (gradients[0] * context_ASD).sum(-1, keepdim=True)
        grad_ASD = gradients[0] * (LEVELS / (LEVELS - ctx.dropped))
        query_grad, key_grad, value_grad = (torch.zeros_like(x) for x in (scaled_ASD, key_ASD, value_ASD))
        for head, rows, weights_QS, kept_QS in _blocks(scaled_ASD, key_ASD, ctx.dropped, ctx.seed):
            grad_QD = grad_ASD[head, rows]
            scores_QS = (grad_QD @ value_ASD[head].T).mul_(kept_QS)
            scores_QS.sub_(sums_AS1[head, rows]).mul_(weights_QS)
            value_grad[head].addmm_(weights_QS.mul_(kept_QS).T, grad_QD)
            query_grad[head, rows] = scores_QS @ key_ASD[head]
            key_grad[head].addmm_(scores_QS.T, scaled_ASD[head, rows])
        return query_grad.mul_(query_grad.shape[-1] ** -0.5), key_grad, value_grad, None


def _blocks(
    scaled_ASD: Tensor, key_ASD: Tensor, dropped: int, seed: int
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Head, queries, their weights, and 1 where a weight is kept, else 0; the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    for head in range(len(scaled_ASD)):
        for start in range(0, scaled_ASD.shape[1], BLOCK):
            rows = slice(start, start + BLOCK)
            weights_QS = (scaled_ASD[head, rows] @ key_ASD[head].T).softmax(-1)
            count = weights_QS.numel()
            words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
            # int16 compared in place and then widened: bool masks take torch's CPU kernels five times as long.
            kept_QS = words.view(torch.int16)[:count].ge_(dropped - LEVELS // 2).view_as(weights_QS)
            yield head, rows, weights_QS, kept_QS.to(weights_QS.dtype)
