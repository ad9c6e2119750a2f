"""Norms for megatron layers without Transformer Engine or apex, sequence parallelism included.

megatron-core's torch norm refuses sequence parallelism; here the parameters carry the mark by which megatron sums their
gradients over the tensor-parallel ranks, each of which sees a part of the sequence.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm under the constructor that megatron's layer specs call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark(self, config)

    def forward(self, input: Tensor) -> Tensor:
        """Normalised over the last dimension, same shape."""
        if input.is_cpu and input.dtype != torch.float32:
            # torch's CPU kernel adds up the gradients of weight and bias over all tokens in bf16, which stops growing;
            # a plain sum runs in fp32.
            plain = torch.nn.functional.layer_norm(input, self.normalized_shape, eps=self.eps)
            return torch.addcmul(self.bias, plain, self.weight)
        return super().forward(input)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm (arXiv:1910.07467) under the same constructor; a weight, no bias."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark(self, config)


def norm_class(config: TransformerConfig) -> type[LayerNorm] | type[RMSNorm]:
    """The kind of norm that the config asks for."""
    return RMSNorm if config.normalization == "RMSNorm" else LayerNorm


def _mark(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
