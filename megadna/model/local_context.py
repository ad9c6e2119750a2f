"""What lies next to a base, given to the encoder instead of left for attention to discover.

Two parts, each by model.local_context. Attention learns k-mers slowly (docs/results.md has what each part is worth):

    kmer         tables of the 5 bases to the left of a token, the 5 to its right and the 5 around it, added to its
                 embedding. A hidden or ambiguous base is a fifth symbol, what lies beyond the sequence a sixth.
    convolution  a depthwise convolution over 31 tokens beside the attention of each of the first two layers: both read
                 the same input, and their outputs are added.

Neither crosses from one sequence of a row into the next: a special token ends the contexts, and the convolution reads
the segments. Ranks that hold parts of a row exchange the 15 tokens at their ends (convolution), or all token ids.

Shapes: S sequence (of this rank), B batch, H hidden, V vocabulary, K tokens a convolution spans, R rows of a table.
"""

from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import embedding, pad

from megadna.errors import require
from megadna.model.shapes import CONTEXT_ROWS, CONTEXT_TABLES, CONVOLUTION_WIDTH, CONVOLVED_LAYERS
from megadna.tokenizer.base import EDGE

HALO = CONVOLUTION_WIDTH // 2
REACH = 5
CONTEXTS = dict(zip(CONTEXT_TABLES, (range(-REACH, 0), range(1, REACH + 1), range(-2, 3)), strict=True))
"""Offsets, from a token, of the bases that each table goes by."""
SYMBOLS = 6
"""Symbols that a token can be to the tables (tokenizer/base.py)."""


def context_rows(symbols_BS: Tensor) -> dict[str, Tensor]:
    """Row [B, S] of each table for every token: the symbols at its offsets as digits of a number in base 6."""
    length = symbols_BS.shape[1]
    padded = pad(symbols_BS, (REACH, REACH), value=EDGE)
    at = {0: symbols_BS}
    for step in (1, -1):  # outwards: what lies beyond an edge is edge too
        for distance in range(1, REACH + 1):
            offset = step * distance
            here = padded[:, REACH + offset : REACH + offset + length]
            at[offset] = here if distance == 1 else here.masked_fill(at[offset - step] == EDGE, EDGE)
    rows = {}
    for name, offsets in CONTEXTS.items():
        rows[name] = torch.zeros_like(symbols_BS)
        for offset in offsets:
            rows[name] = rows[name] * SYMBOLS + at[offset]
    return rows


class ContextEmbedding(torch.nn.Module):
    """The tables `left`, `right` and `around`, each [R, H], replicated on the tensor-parallel ranks."""

    def __init__(self, config: TransformerConfig, symbols: list[int]) -> None:
        super().__init__()
        self.splits_rows = config.sequence_parallel
        for name in CONTEXTS:
            table = torch.nn.Embedding(CONTEXT_ROWS, config.hidden_size, dtype=config.params_dtype)
            table.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
            self.add_module(name, table)
        self._symbols_V = torch.tensor(symbols, device="cpu")  # a model on `meta` needs them too: no buffer

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """[S, B, H] to add to the hidden states: this rank's part of S under sequence parallelism."""
        self._symbols_V = self._symbols_V.to(tokens_BS.device)
        symbols_BS = self._symbols_V[tokens_BS]
        group = parallel_state.get_context_parallel_group()
        if group.size() > 1:
            parts = [torch.empty_like(symbols_BS) for _ in range(group.size())]
            torch.distributed.all_gather(parts, symbols_BS.contiguous(), group=group)
            symbols_BS = torch.cat(parts, dim=1)
        found = []
        for name, rows_BS in context_rows(symbols_BS).items():
            rows_SB = rows_BS.chunk(group.size(), dim=1)[group.rank()].transpose(0, 1)
            if self.splits_rows:
                ranks = parallel_state.get_tensor_model_parallel_world_size()
                rows_SB = rows_SB.chunk(ranks)[parallel_state.get_tensor_model_parallel_rank()]
            found.append(look_up(getattr(self, name).weight, rows_SB))
        left, right, around = found
        return left + right + around


def look_up(weight_RH: Tensor, rows: Tensor) -> Tensor:
    """[..., H]; through fp32 on a CPU, where torch's kernel adds up a row's gradient in bf16, which stops growing."""
    if weight_RH.is_cpu and weight_RH.dtype != torch.float32:
        return embedding(rows, weight_RH.float()).to(weight_RH.dtype)
    return embedding(rows, weight_RH)


class LocalConvolution(torch.nn.Module):
    """Depthwise convolution over K tokens; `weight` [K, H] begins as zeros."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(CONVOLUTION_WIDTH, config.hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        if config.sequence_parallel:
            self.group = parallel_state.get_tensor_and_context_parallel_group()
        else:
            self.group = parallel_state.get_context_parallel_group()

    def forward(self, hidden_SBH: Tensor, segments: PackedSeqParams | None) -> Tensor:
        """[S, B, H]; `segments` as in CoreAttention."""
        before = after = hidden_SBH.new_zeros(HALO, *hidden_SBH.shape[1:])
        ranks, rank = self.group.size(), self.group.rank()
        if ranks > 1:
            require(
                len(hidden_SBH) >= HALO,
                f"model.local_context: a rank holds {len(hidden_SBH)} tokens of a row, and a convolution reads "
                f"{HALO} of its neighbour's: raise data.sequence_length, or split rows over fewer ranks",
            )
            ends = torch.cat([hidden_SBH[:HALO], hidden_SBH[-HALO:]])
            ends = tensor_parallel.gather_from_sequence_parallel_region(ends, group=self.group)
            first_last = ends.unflatten(0, (ranks, 2, HALO))
            before = first_last[rank - 1, 1] if rank else before
            after = first_last[rank + 1, 0] if rank < ranks - 1 else after
        same = None if segments is None else _same_sequence(segments, hidden_SBH, ranks, rank)
        return Convolve.apply(torch.cat([before, hidden_SBH, after]), self.weight, same)


def _same_sequence(segments: PackedSeqParams, hidden_SBH: Tensor, ranks: int, rank: int) -> Tensor:
    """[K, S, B, 1] in the type of the hidden states: 1 where the token at that offset is of the same sequence."""
    length, rows, _ = hidden_SBH.shape
    count = rows * ranks * length
    numbers = torch.searchsorted(
        segments.cu_seqlens_kv, torch.arange(count, device=hidden_SBH.device), right=True
    ).view(rows, -1)
    padded_SB = pad(numbers, (HALO, HALO))[:, rank * length : (rank + 1) * length + 2 * HALO].transpose(0, 1)
    own_SB = padded_SB[HALO : HALO + length]
    same = [padded_SB[offset : offset + length] == own_SB for offset in range(CONVOLUTION_WIDTH)]
    return torch.stack(same).unsqueeze(-1).to(hidden_SBH.dtype)


class Convolve(torch.autograd.Function):
    """y[s] = sum over k of w[k] x[s + k], in passes over memory.

    4,000 tokens of 768 channels forward and backward on a core of a busy AMD EPYC: 166 ms in bf16 and 219 in fp32;
    torch's depthwise convolution, with the transpositions that it needs, 214 and 233.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight_KH: Tensor, same: Tensor | None) -> Tensor:
        """[S, B, H] of inputs [S + 2 HALO, B, H]."""
        ctx.save_for_backward(padded, weight_KH, same)
        length = len(padded) - 2 * HALO
        result = torch.zeros_like(padded[:length])
        for offset in range(CONVOLUTION_WIDTH):
            here = padded[offset : offset + length]
            result.addcmul_(here if same is None else here * same[offset], weight_KH[offset])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of inputs and weight; the weight's is summed over the tokens in fp32."""
        padded, weight_KH, same = ctx.saved_tensors
        (gradient_SBH,) = gradients
        length = len(gradient_SBH)
        padded_grad, weight_grad = torch.zeros_like(padded), torch.empty_like(weight_KH)
        for offset in range(CONVOLUTION_WIDTH):
            own = gradient_SBH if same is None else gradient_SBH * same[offset]
            padded_grad[offset : offset + length].addcmul_(own, weight_KH[offset])
            weight_grad[offset] = (padded[offset : offset + length] * own).sum((0, 1), dtype=torch.float32)
        return padded_grad, weight_grad, None


class ConvolvedAttention(SelfAttention):
    """megatron's self-attention, and in the first layers the convolution of the same input added to its output."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if self.layer_number <= CONVOLVED_LAYERS:
            self.convolution = LocalConvolution(config)

    def forward(
        self, hidden_states: Tensor, *args: Any, packed_seq_params: PackedSeqParams | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As megatron's."""
        output_SBH, bias = super().forward(hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs)
        if self.layer_number <= CONVOLVED_LAYERS:
            output_SBH = output_SBH + self.convolution(hidden_states, packed_seq_params)
        return output_SBH, bias
