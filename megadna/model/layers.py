"""What megatron's layers lack: the post-LN layer of the original BERT, and a linear layer that adds its bias itself.

x = LN(x + attention(x)), then x = LN(x + feed-forward(x)) (arXiv:1706.03762, section 3.1); megatron has pre-LN.
Shapes: S sequence, B batch, H hidden, F feed-forward width.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megadna.model.norm import norm_class


class ColumnWithBias(ColumnParallelLinear):
    """megatron's layer, its bias added at once: where no kernel fuses bias and activation that saves a pass."""

    def __init__(self, *args: Any, skip_bias_add: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, skip_bias_add=False, **kwargs)


def swiglu(gate_up_SB2F: Tensor) -> Tensor:
    """silu(gate) * up [S, B, F] (arXiv:2002.05202): megatron's, without the passes that only a compiler takes out."""
    gate_SBF, up_SBF = gate_up_SB2F.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_SBF) * up_SBF


class PostNormLayer(TransformerLayer):
    """megatron's layer without norms before its branches, and with one after each residual sum."""

    def __init__(
        self, config: TransformerConfig, submodules: TransformerLayerSubmodules, layer_number: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(config, submodules, layer_number, **kwargs)
        norm = norm_class(config)
        self.post_attention_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)
        self.post_mlp_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Hidden states [S, B, H] after the layer, and megatron's cross-attention context (None here)."""
        hidden_SBH, context = self._forward_attention(hidden_states, **kwargs)
        hidden_SBH = self._forward_mlp(self.post_attention_layernorm(hidden_SBH))
        return self.post_mlp_layernorm(hidden_SBH), context
