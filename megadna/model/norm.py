"""Norms for megatron layers: torch's, by apex's fused kernels on a GPU where they are installed and run.

megatron-core's torch norm refuses sequence parallelism; here the parameters carry the mark by which megatron sums their
gradients over the tensor-parallel ranks, each of which sees a part of the sequence. A kernel is a function of them, so
that no name of a tensor depends on it.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megadna.log import get_logger

log = get_logger(__name__)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm under the constructor that megatron's layer specs call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark(self, config)
        self.kernel = None if config.use_cpu_initialization else apex_kernel("fused_layer_norm_affine", "cuda")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised over the last dimension, same shape."""
        if self.kernel:
            return self.kernel(input, self.weight, self.bias, self.normalized_shape, self.eps)
        if input.is_cpu and input.dtype != torch.float32 and torch.is_grad_enabled():
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
        self.kernel = None if config.use_cpu_initialization else apex_kernel("fused_rms_norm_affine", "cuda")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over the last dimension, same shape."""
        if self.kernel:
            return self.kernel(x, self.weight, self.normalized_shape, self.eps)
        return super().forward(x)


@functools.cache
def apex_kernel(name: str, device: str) -> Callable[..., Tensor] | None:
    """apex's function of that name where it runs on `device`; None without NVIDIA's apex (on PyPI: another package)."""
    try:
        kernel: Callable[..., Tensor] = getattr(importlib.import_module("apex.normalization.fused_layer_norm"), name)
        ones = [torch.ones(8, device=device)] * (3 if name == "fused_layer_norm_affine" else 2)
        kernel(*ones, (8,), 1e-5)
    except Exception as error:  # absent, another package, or built without its CUDA part: that shows at the first call
        log.info("norms: torch (no apex here: %s)", error)
        return None
    log.info("norms: apex %s", name)
    return kernel


def norm_class(config: TransformerConfig) -> type[LayerNorm] | type[RMSNorm]:
    """The kind of norm that the config asks for."""
    return RMSNorm if config.normalization == "RMSNorm" else LayerNorm


def _mark(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
