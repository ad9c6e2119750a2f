"""Core attention for megatron's SelfAttention, bidirectional: softmax(q k^T / sqrt(d)) v; which backend runs where.

In:  query [S, B, N, D], key and value [S, B, G, D]; segments None (every row is one full sequence) or the cumulative
     lengths of the sequences laid end to end in the B x S tokens. A sequence sees only itself; padding after a row is a
     sequence of its own. Under context parallelism S is this rank's part of the rows: keys and values of the other
     parts are gathered, and segments count the queries of the part and the keys of the whole.
Out: context [S, B, N * D].
Shapes: S sequence, B batch, N heads and G key-value heads of this tensor-parallel rank, D head dimension, T = B * S.

    eager               the formula written out, S x S in memory: the reference
    sdpa                torch: flash kernels on CPU and GPU (on a CPU with dropout: S x S in memory); segments run in
                        one kernel on a GPU in bf16, else in a loop
    flash_attn          the package flash-attn: GPU, bf16 and fp16
    transformer_engine  the package Transformer Engine: GPU, bf16 and fp16

The packages are used if they are installed and never required.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable
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
"""Largest head dimension of the packages' kernels."""


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """`wanted`, or what `auto` picks: flash_attn if it runs, else sdpa. UserError that says why it cannot run."""
    if wanted == "auto":
        return "sdpa" if _obstacle("flash_attn", device, dtype, head_size) else "flash_attn"
    if obstacle := _obstacle(wanted, device, dtype, head_size):
        raise UserError(f"model.attention {wanted} cannot run: {obstacle}; use --model.attention auto")
    return wanted


@functools.cache
def load_varlen_attn() -> Callable[..., Any] | None:
    """torch's variable-length kernel; None before torch 2.10. Imported on a GPU only: it loads torch's compiler."""
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
        importlib.import_module(MODULES[backend])
    except ImportError as error:
        return f"{MODULES[backend]} cannot be imported ({error})"
    return None


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
        context_TND = _varlen(varlen_attn, query_TND, key_TGD, value_TGD, bounds)
    else:
        queries, keys = (bound.diff().tolist() for bound in bounds[:2])
        parts = zip(query_TND.split(queries), key_TGD.split(keys), value_TGD.split(keys), strict=True)
        single = ((x_TND.transpose(0, 1)[None] for x_TND in part) for part in parts)
        context_TND = torch.cat([_dense(row, dropout)[0].transpose(0, 1) for row in single])
    return back_to_rows(context_TND, query_SBND)


def _varlen(
    kernel: Callable[..., Tensor], query_TND: Tensor, key_TGD: Tensor, value_TGD: Tensor, bounds: tuple
) -> Tensor:
    """Context [T, N, D]. torch 2.13's kernel must be told of grouped queries; 2.11's has no such option."""
    told = "enable_gqa" in inspect.signature(kernel).parameters
    options = {"enable_gqa": True} if told and query_TND.shape[1] != key_TGD.shape[1] else {}
    return kernel(query_TND, key_TGD, value_TGD, *bounds, **options)


def _dense(inputs: Iterable[Tensor], dropout: float) -> Tensor:
    """Context [B, N, S, D] of rows that are one sequence each: query [B, N, S, D], key and value [B, G, S, D]."""
    query, key, value = inputs
    dtype = query.dtype
    if query.is_cpu:
        # In sequence-first rows neighbouring tokens are a batch apart, which costs the kernel more than a copy.
        query, key, value = widened(query.contiguous(), key.contiguous(), value.contiguous())
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, enable_gqa=grouped).to(dtype)


def flash(
    query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, segments: PackedSeqParams | None, dropout: float
) -> Tensor:
    """flash-attn's kernels: context [S, B, N, D]."""
    package = importlib.import_module("flash_attn")
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
    """Transformer Engine's DotProductAttention, which picks among cuDNN's and flash-attn's kernels itself.

    Not a torch module, so that Transformer Engine's state never becomes a key of a checkpoint.
    """

    def __init__(self, config: TransformerConfig, layer_number: int) -> None:
        self.kernel = importlib.import_module("transformer_engine.pytorch").DotProductAttention(
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
        # It keeps what the backward pass needs only in training; recomputation runs a first pass without gradients.
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
