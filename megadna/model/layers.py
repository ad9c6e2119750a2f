"""The transformer layer: ModelConfig and ParallelConfig -> megatron-core's TransformerConfig and layer specs.

In:  a Config, a device.
Out: TransformerConfig; the submodules from which megatron builds this rank's layers.

What megatron lacks is here: norms that run under sequence parallelism (its torch norm refuses it), with the mark by
which megatron sums their gradients over the tensor-parallel ranks, each of which sees a part of the sequence; apex's
fused kernels are used on a GPU if they run, as functions of the same parameters, so that no tensor's name depends on
them. The post-LN layer of the original BERT, x = LN(x + attention(x)), then x = LN(x + feed-forward(x))
(arXiv:1706.03762, section 3.1). A linear layer that adds its bias itself.

Shapes: S sequence, B batch, H hidden, F feed-forward width.
"""

import functools
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megadna.config import Config, ModelConfig
from megadna.log import get_logger
from megadna.model.attention import CoreAttention
from megadna.model.local_context import ConvolvedAttention

log = get_logger(__name__)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm with the constructor that megatron's layer specs call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark(self, config)
        self.kernel = None if config.use_cpu_initialization else apex_kernel("fused_layer_norm_affine", "cuda")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised over the last dimension, same shape."""
        if self.kernel:
            return self.kernel(input, self.weight, self.bias, self.normalized_shape, self.eps)
        if input.is_cpu and input.dtype != torch.float32 and torch.is_grad_enabled():
            # torch's CPU kernel accumulates the gradients of weight and bias over all tokens in bf16, where a sum stops
            # growing; a plain sum runs in fp32.
            plain = torch.nn.functional.layer_norm(input, self.normalized_shape, eps=self.eps)
            return torch.addcmul(self.bias, plain, self.weight)
        return super().forward(input)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm (arXiv:1910.07467) with the same constructor; a weight, no bias."""

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
    """apex's function of that name if it runs on `device`; None without NVIDIA's apex (PyPI's is another package)."""
    try:
        kernel: Callable[..., Tensor] = getattr(importlib.import_module("apex.normalization.fused_layer_norm"), name)
        ones = [torch.ones(8, device=device)] * (3 if name == "fused_layer_norm_affine" else 2)
        kernel(*ones, (8,), 1e-5)
    except Exception as error:  # absent, another package, or built without CUDA, which shows at the first call
        log.info("norms: torch (no apex here: %s)", error)
        return None
    log.info("norms: apex %s", name)
    return kernel


def norm_class(config: TransformerConfig) -> type[LayerNorm] | type[RMSNorm]:
    """The norm of the config."""
    return RMSNorm if config.normalization == "RMSNorm" else LayerNorm


def _mark(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class ColumnWithBias(ColumnParallelLinear):
    """megatron's layer, but it adds its bias itself: one pass less if no kernel fuses bias and activation."""

    def __init__(self, *args: Any, skip_bias_add: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, skip_bias_add=False, **kwargs)


def swiglu(gate_up_SB2F: Tensor) -> Tensor:
    """silu(gate) * up [S, B, F] (arXiv:2002.05202): megatron's without the passes that only a compiler removes."""
    gate_SBF, up_SBF = gate_up_SB2F.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_SBF) * up_SBF


class PostNormLayer(TransformerLayer):
    """megatron's layer without norms before its branches, with one after each residual sum."""

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


def to_transformer_config(config: Config, device: torch.device) -> TransformerConfig:
    """megatron-core's configuration of the encoder; dropout, norms and activation by ModelConfig."""
    model = config.model
    dtype = weight_dtype(config)
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=torch.nn.functional.silu if model.activation == "swiglu" else torch.nn.functional.gelu,
        add_bias_linear=model.linear_bias,
        normalization="RMSNorm" if model.normalization == "rmsnorm" else "LayerNorm",
        qk_layernorm=model.qk_norm,
        layernorm_epsilon=model.layernorm_epsilon,
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        **_layout_options(config),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=config.engine.precision == "bf16",
        fp16=config.engine.precision == "fp16",
        calculate_per_token_loss=True,
        attention_backend=AttnBackend.local,
        use_cpu_initialization=device.type != "cuda",
        perform_initialization=False,  # model/initial_weights.py fills them, the same under every layout
        gradient_accumulation_fusion=False,  # needs apex
        masked_softmax_fusion=False,
        # megatron's fused SwiGLU is compiled on a GPU; a CPU takes ours. Its fused GELU is the tanh approximation,
        # BERT's is exact.
        bias_activation_fusion=model.activation == "swiglu" and device.type != "cpu",
        use_te_activation_func=model.activation == "swiglu" and device.type == "cpu",  # `activation_func` below
        bias_dropout_fusion=device.type == "cuda",
        persist_layer_norm=False,
    )


def weight_dtype(config: Config) -> torch.dtype:
    """Type of the weights and activations under engine.precision."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.engine.precision]


def _layout_options(config: Config) -> dict[str, Any]:
    """megatron's names for config.parallel."""
    layers, parallel = config.model.num_layers, config.parallel
    options: dict[str, Any] = {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence,
    }
    if parallel.pipeline_layers:
        stages = [["decoder"] * count for count in parallel.pipeline_layers]
        options["pipeline_model_parallel_layout"] = [["embedding", *stages[0]], *stages[1:]]
        options["pipeline_model_parallel_layout"][-1].append("loss")
    if parallel.virtual_pipeline > 1:
        options["virtual_pipeline_model_parallel_size"] = parallel.virtual_pipeline
        # Batched, the messages of two stages would be mixed up: several are under way between the same two ranks.
        options.update(overlap_p2p_comm=True, batch_p2p_comm=False)
    if parallel.recompute != "none":
        options["recompute_granularity"] = parallel.recompute
    if parallel.recompute == "full":
        largest = max(parallel.pipeline_layers or [layers // parallel.pipeline // parallel.virtual_pipeline])
        options.update(recompute_method="block", recompute_num_layers=-(-largest // parallel.recompute_interval))
    return options


def block_submodules(
    transformer_config: TransformerConfig, model: ModelConfig, backend: str, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage (of its model part `vp_stage`) and the final norm, absent in post-LN models."""
    norm = norm_class(transformer_config)
    before = norm if model.norm_placement == "pre" else IdentityOp
    head_norm = norm if model.qk_norm else IdentityOp
    layer = ModuleSpec(
        module=TransformerLayer if model.norm_placement == "pre" else PostNormLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=before,
            self_attention=ModuleSpec(
                module=ConvolvedAttention if model.has_convolutions else SelfAttention,
                params={"attn_mask_type": AttnMaskType.padding},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=partial(CoreAttention, backend=backend),
                    linear_proj=RowParallelLinear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=before,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear if transformer_config.bias_activation_fusion else ColumnWithBias,
                    activation_func=swiglu if transformer_config.use_te_activation_func else None,
                    linear_fc2=RowParallelLinear,
                ),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(transformer_config, vp_stage), layer_norm=norm
    )
