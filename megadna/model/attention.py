"""Which attention backend runs here: what is installed, what the device and the precision allow.

flash-attn and Transformer Engine are used where installed and never required.

Attention with dropout of its weights on a CPU, where torch's flash kernel takes none and S x S scores fill memory.

Blocks of queries against all keys, in the cache; the backward pass computes weights and dropped places again. With
W = softmax(q k^T / sqrt(d)), M the kept places over the kept share and O = (W * M) v (arXiv:2205.14135, appendix B):
dv = (W * M)^T dO, dW = (dO v^T) * M, ds = W * (dW - sum(dO * O)), dq = ds k / sqrt(d), dk = ds^T q / sqrt(d).

Shapes: B batch, N heads, G key-value heads, A = B x N, S sequence, D head dimension, Q queries of a block.

Core attention for megatron's SelfAttention: softmax(q k^T / sqrt(d)) v, bidirectional.

In:  query [S, B, N, D], key and value [S, B, G, D]; segments None (every row is one full sequence) or the cumulative
     lengths of the sequences that lie end to end in the B x S tokens. A sequence sees itself alone; padding behind a
     row is a sequence of its own. Under context parallelism S is this rank's part of the rows: keys and values of the
     other parts are gathered, and segments count the queries of the part and the keys of the whole.
Out: context [S, B, N * D].
Shapes: S sequence, B batch, N heads and G key-value heads of this tensor-parallel rank, D head dimension, T = B * S.

    eager               the formula written out, S x S in memory: the reference
    sdpa                torch: flash kernels on CPU and GPU; segments run in one kernel on a GPU in bf16, else in a loop
    flash_attn          the package flash-attn: GPU, bf16
    transformer_engine  the package Transformer Engine: GPU, bf16
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megadna.engine.cpu import widened
from megadna.errors import UserError

HALF = (torch.bfloat16, torch.float16)
MODULES = {"flash_attn": "flash_attn", "transformer_engine": "transformer_engine.pytorch"}
LARGEST_HEAD = 256
"""Head dimension beyond which the packages' kernels do not go."""


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """`wanted`, or what `auto` picks: flash_attn where it runs, else sdpa. UserError that says why it cannot run."""
    if wanted == "auto":
        return "sdpa" if _obstacle("flash_attn", device, dtype, head_size) else "flash_attn"
    if obstacle := _obstacle(wanted, device, dtype, head_size):
        raise UserError(f"model.attention {wanted} cannot run: {obstacle}; use --model.attention auto")
    return wanted


def load_backend(module: str) -> ModuleType:
    """The package of a backend; ImportError where it is not installed."""
    return importlib.import_module(module)


@functools.cache
def load_varlen_attn() -> Callable[..., Any] | None:
    """torch's variable-length kernel; None before torch 2.10. Imported on a GPU alone: it loads torch's compiler."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    if backend not in MODULES:
        return None
    if device.type != "cuda":
        return f"it needs a GPU, and this run is on {device.type}"
    if dtype not in HALF:
        return f"its kernels take bf16, and engine.precision makes it {str(dtype).removeprefix('torch.')}"
    if head_size > LARGEST_HEAD or head_size % 8:
        return f"its kernels take head dimensions up to {LARGEST_HEAD} that 8 divides, not {head_size}"
    try:
        load_backend(MODULES[backend])
    except ImportError as error:
        return f"{MODULES[backend]} cannot be imported ({error})"
    return None


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


class CoreAttention(torch.nn.Module):
    """Attention without parameters, built by megatron's layer spec."""

    def __init__(self, config: TransformerConfig, layer_number: int, backend: str = "sdpa", **_: Any) -> None:
        super().__init__()
        self.dropout = config.attention_dropout
        self.context_group = parallel_state.get_context_parallel_group()
        self.attend: Callable[..., Tensor]
        if backend == "transformer_engine":
            self.attend = TransformerEngineAttention(config, layer_number)
        else:
            self.attend = {"eager": eager, "sdpa": sdpa, "flash_attn": flash}[backend]

    def forward(
        self,
        query_SBND: Tensor,
        key_SBGD: Tensor,
        value_SBGD: Tensor,
        attention_mask: None = None,
        *,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> Tensor:
        """Context [S, B, N * D]; `packed_seq_params` are the segments."""
        assert attention_mask is None, "rows are described by segments, not by a mask"
        if self.context_group.size() > 1:
            key_SBGD = gather_from_sequence_parallel_region(key_SBGD.contiguous(), group=self.context_group)
            value_SBGD = gather_from_sequence_parallel_region(value_SBGD.contiguous(), group=self.context_group)
        inputs = (query_SBND, key_SBGD, value_SBGD, packed_seq_params)
        if self.dropout and self.training:
            with get_cuda_rng_tracker().fork():  # each tensor-parallel rank drops other heads' weights
                return self.attend(*inputs, self.dropout).flatten(2)
        return self.attend(*inputs, 0.0).flatten(2)


def sdpa(
    query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, segments: PackedSeqParams | None, dropout: float
) -> Tensor:
    """torch's scaled_dot_product_attention: context [S, B, N, D]."""
    if segments is None:
        rows = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBGD, value_SBGD))
        return _dense(rows, dropout).permute(2, 0, 1, 3)
    query_TND, key_TGD, value_TGD = (end_to_end(x) for x in (query_SBND, key_SBGD, value_SBGD))
    bounds = segment_bounds(segments)
    varlen_attn = load_varlen_attn() if query_TND.is_cuda and query_TND.dtype in HALF and not dropout else None
    if varlen_attn is not None:
        grouped = query_TND.shape[1] != key_TGD.shape[1]
        context_TND = varlen_attn(query_TND, key_TGD, value_TGD, *bounds, enable_gqa=grouped)
    else:
        queries, keys = (bound.diff().tolist() for bound in bounds[:2])
        parts = zip(query_TND.split(queries), key_TGD.split(keys), value_TGD.split(keys), strict=True)
        single = ((x_TND.transpose(0, 1)[None] for x_TND in part) for part in parts)
        context_TND = torch.cat([_dense(row, dropout)[0].transpose(0, 1) for row in single])
    return back_to_rows(context_TND, query_SBND)


def _dense(inputs: Iterable[Tensor], dropout: float) -> Tensor:
    """Context [B, N, S, D] of rows that are one sequence each: query [B, N, S, D], key and value [B, G, S, D]."""
    query, key, value = inputs
    dtype = query.dtype
    if query.is_cpu:
        if dropout:
            return dropout_attention(query, key, value, dropout)
        # The tokens of sequence-first rows lie a batch apart, which costs the kernel more than copies do.
        query, key, value = widened(query.contiguous(), key.contiguous(), value.contiguous())
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, enable_gqa=grouped).to(dtype)


def flash(
    query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, segments: PackedSeqParams | None, dropout: float
) -> Tensor:
    """flash-attn's kernels: context [S, B, N, D]."""
    package = load_backend("flash_attn")
    if segments is None:
        rows = (x.transpose(0, 1) for x in (query_SBND, key_SBGD, value_SBGD))
        return package.flash_attn_func(*rows, dropout_p=dropout).transpose(0, 1)
    tokens = (end_to_end(x) for x in (query_SBND, key_SBGD, value_SBGD))
    context_TND = package.flash_attn_varlen_func(*tokens, *segment_bounds(segments), dropout_p=dropout)
    return back_to_rows(context_TND, query_SBND)


def eager(
    query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, segments: PackedSeqParams | None, dropout: float
) -> Tensor:
    """arXiv:1706.03762, equation 1, softmax in fp32: context [S, B, N, D]; the S x S matrix is in memory."""
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBGD, value_SBGD))
    heads_per_group = query.shape[1] // key.shape[1]
    if heads_per_group > 1:
        key, value = (x.repeat_interleave(heads_per_group, dim=1) for x in (key, value))
    scores_BNSS = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
    if segments is not None:
        number_BS, key_number_BS = (
            torch.searchsorted(bound, torch.arange(int(bound[-1]), device=bound.device), right=True).view(
                len(query), -1
            )
            for bound in segment_bounds(segments)[:2]
        )
        other_BSS = number_BS[:, :, None] != key_number_BS[:, None]
        scores_BNSS = scores_BNSS.masked_fill(other_BSS[:, None], float("-inf"))
    weights_BNSS = torch.nn.functional.dropout(scores_BNSS.softmax(-1).to(value.dtype), dropout)
    return (weights_BNSS @ value).permute(2, 0, 1, 3)


class TransformerEngineAttention:
    """Transformer Engine's DotProductAttention; it picks among cuDNN's and flash-attn's kernels by itself.

    No torch module, so that the state Transformer Engine keeps never becomes a key of a checkpoint.
    """

    def __init__(self, config: TransformerConfig, layer_number: int) -> None:
        self.kernel = load_backend("transformer_engine.pytorch").DotProductAttention(
            num_attention_heads=config.num_attention_heads,
            kv_channels=config.kv_channels,
            num_gqa_groups=config.num_query_groups,
            attention_dropout=config.attention_dropout,
            attn_mask_type="no_mask",
            tp_size=config.tensor_model_parallel_size,
            layer_number=layer_number,
        )

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, segments: PackedSeqParams | None, dropout: float
    ) -> Tensor:
        """Context [S, B, N, D] of query [S, B, N, D], key and value [S, B, G, D]."""
        # Only in training does it keep what a backward pass needs; recomputation runs a first pass without gradients.
        self.kernel.train(dropout > 0 or torch.is_grad_enabled())
        if segments is None:
            return self.kernel(query, key, value, qkv_format="sbhd").unflatten(-1, query.shape[2:])
        context = self.kernel(
            *(end_to_end(x) for x in (query, key, value)),
            qkv_format="thd",
            attn_mask_type="padding",
            cu_seqlens_q=segments.cu_seqlens_q,
            cu_seqlens_kv=segments.cu_seqlens_kv,
            max_seqlen_q=segments.max_seqlen_q,
            max_seqlen_kv=segments.max_seqlen_kv,
        )
        return back_to_rows(context.unflatten(-1, query.shape[2:]), query)


def segment_bounds(segments: PackedSeqParams) -> tuple[Tensor, Tensor, int, int]:
    """What variable-length kernels take: cumulative lengths of queries and of keys, the longest of each."""
    return segments.cu_seqlens_q, segments.cu_seqlens_kv, segments.max_seqlen_q, segments.max_seqlen_kv


def end_to_end(x_SBND: Tensor) -> Tensor:
    """[T, N, D]: the rows laid end to end."""
    return x_SBND.transpose(0, 1).flatten(0, 1)


def back_to_rows(x_TND: Tensor, like_SBND: Tensor) -> Tensor:
    """[S, B, N, D] of rows laid end to end."""
    return x_TND.unflatten(0, (like_SBND.shape[1], like_SBND.shape[0])).transpose(0, 1)
