"""Logits of a few tokens of each row, without computing those of the others.

In:  any masked language model of transformers; ids, lengths of the rows, and which tokens are asked for.
Out: their logits, or the last hidden states of all tokens.

The head (`cls` or `lm_head`) runs on the chosen tokens. In a megadna encoder the last layer computes keys and values of
all tokens, the rest for the chosen ones. Whether a model can be run so is seen by running it both ways once, not by its
name: parts that do not give the whole's logits are not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: B rows, S tokens, C chosen tokens of a row, M of a batch, E features, V vocabulary, N heads of D features.

_HEADS = ("cls", "lm_head")
_TOLERANCE = 1e-4  # of fp32 logits of order 1 to 10, from sums in another order; bf16 is compared before it is cast


class PartialForward:
    """A model in eval mode, on its device."""

    def __init__(self, model: Any, probe: list[int]) -> None:
        """probe: ids of some tokens; the model is still to be called with others."""
        self._model, self._base = model, model.base_model
        self._last: Any = None
        self._head: Any = None
        heads = [found for name in _HEADS if isinstance(found := getattr(model, name, None), nn.Module)]
        head = heads[0] if heads and self._base is not model else None
        for last, part in ((_last_layer(self._base), head), (None, head), (None, None)):
            self._last, self._head = (last, part) if part is not None else (None, None)
            if part is None or self._agrees(probe):
                break

    @torch.inference_mode()
    def _agrees(self, probe: list[int]) -> bool:
        """Whether the parts give the logits of the whole."""
        ids_BS, lengths_B = torch.tensor([probe, probe[::-1]]), torch.tensor([len(probe)] * 2)
        row_M, position_M = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
        tolerance = _TOLERANCE if next(self._model.parameters()).dtype == torch.float32 else 0.1
        whole_MV = self._whole(ids_BS, lengths_B)[row_M, position_M].float()
        try:
            part_MV = self.logits(ids_BS, lengths_B, row_M, position_M).float()
        except Exception:  # of code that others wrote: a head that takes something else
            return False
        return part_MV.shape == whole_MV.shape and torch.allclose(part_MV, whole_MV, atol=tolerance, rtol=tolerance)

    @torch.inference_mode()
    def logits(self, ids_BS: Tensor, lengths_B: Tensor, row_M: Tensor, position_M: Tensor) -> Tensor:
        """[M, V] of the tokens at these rows and positions, in their order."""
        device = self._model.device
        row_M, position_M = row_M.to(device), position_M.to(device)
        if self._head is None:
            return self._whole(ids_BS, lengths_B)[row_M, position_M]
        if self._last is None or len(row_M) * 2 > ids_BS.numel():  # most tokens: gathering them costs more
            return self._head(self.states(ids_BS, lengths_B)[row_M, position_M])
        chosen_BC, column_M = _by_row(row_M, position_M, len(ids_BS))
        with _only(self._last, chosen_BC):
            states_BCE = self.states(ids_BS, lengths_B)
        return self._head(states_BCE[row_M, column_M])

    @torch.inference_mode()
    def states(self, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Last hidden states [B, S, E]."""
        inputs = self._inputs(ids_BS, lengths_B)
        if self._base is self._model:
            return self._model(**inputs, output_hidden_states=True).hidden_states[-1]
        return self._base(**inputs)[0]

    def _whole(self, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        return self._model(**self._inputs(ids_BS, lengths_B)).logits

    def _inputs(self, ids_BS: Tensor, lengths_B: Tensor) -> dict[str, Tensor]:
        mask_BS = (torch.arange(ids_BS.shape[1]) < lengths_B[:, None]).long()
        device = self._model.device
        return {"input_ids": ids_BS.to(device), "attention_mask": mask_BS.to(device)}


def _by_row(row_M: Tensor, position_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """(positions [B, C] of each row's chosen tokens, 0 where a row has fewer; each chosen token's column in it [M])."""
    order_M = torch.argsort(row_M, stable=True)
    count_B = torch.bincount(row_M, minlength=num_rows)
    first_B = count_B.cumsum(0) - count_B
    column_M = torch.empty_like(row_M)
    column_M[order_M] = torch.arange(len(row_M), device=row_M.device) - first_B[row_M[order_M]]
    chosen_BC = torch.zeros((num_rows, int(count_B.max())), dtype=torch.int64, device=row_M.device)
    chosen_BC[row_M, column_M] = position_M
    return chosen_BC, column_M


def _last_layer(base: Any) -> Any | None:
    """The last layer of a megadna encoder; None of another, or where more than attention and MLP read its input."""
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    if not layers or type(layers[-1]).__name__ != "MegaDnaLayer" or hasattr(layers[-1].attention, "convolution"):
        return None
    return layers[-1] if base.config._attn_implementation in (None, "sdpa") else None


@contextmanager
def _only(layer: Any, chosen_BC: Tensor) -> Iterator[None]:
    """Inside, the layer gives the residual stream [B, C, E] of the chosen tokens."""

    def forward(
        hidden_BSE: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, *_: Any
    ) -> tuple[Tensor, None]:
        attention = layer.attention
        branch_BSE = attention.ln(hidden_BSE) if layer.pre_norm else hidden_BSE
        branch_BCE = attention.output(_attend(attention.self, branch_BSE, chosen_BC, rotary, mask))
        sum_BCE = _taken(hidden_BSE, chosen_BC) + branch_BCE
        if layer.pre_norm:
            return sum_BCE + layer.mlp(layer.ln(sum_BCE)), None
        sum_BCE = attention.ln(sum_BCE)
        return layer.ln(sum_BCE + layer.mlp(sum_BCE)), None

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def _taken(values_BSE: Tensor, chosen_BC: Tensor) -> Tensor:
    return values_BSE.gather(1, chosen_BC[:, :, None].expand(-1, -1, values_BSE.shape[2]))


def _attend(
    own: Any, branch_BSE: Tensor, chosen_BC: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None
) -> Tensor:
    """Self-attention [B, C, E] of the chosen tokens over all."""
    inputs = {"query": _taken(branch_BSE, chosen_BC), "key": branch_BSE, "value": branch_BSE}
    query, key, value = (getattr(own, name)(x).unflatten(-1, (-1, own.head_size)) for name, x in inputs.items())
    if own.config.qk_norm:
        query, key = own.query_norm(query), own.key_norm(key)
    if rotary is not None:
        cos_SD, sin_SD = rotary
        query = _rotated(query, cos_SD[chosen_BC][:, :, None], sin_SD[chosen_BC][:, :, None])
        key = _rotated(key, cos_SD[:, None], sin_SD[:, None])
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if own.heads_per_group > 1:
        key, value = (x.repeat_interleave(own.heads_per_group, dim=1) for x in (key, value))
    context_BNCD = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context_BNCD.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), pairs (i, i + D/2), of x [B, S, N, D]; cos and sin broadcast to its half."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
