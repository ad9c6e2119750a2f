"""The weights of a model under global names, which initial weights, checkpoints and exports share; initial values.

In:  a model part of any layout.
Out: its shards by global name and offset; the weights filled as a pure function of (seed, name).

A name ("encoder.layers.3.mlp.linear_fc1.weight") and a tensor's full shape depend on the architecture only, never on
the layout or on the optional kernels that are installed. Each rank draws the full tensor of a name and copies its own
shard out of it, so that tensor, pipeline and data parallel runs all start from one model:

    biases, convolutions            0
    context tables                  0: the tokens themselves come first, and training is quicker
    norm weights                    1
    linear_proj, linear_fc2         pre-LN: Normal(0, init_std / sqrt(2 num_layers)), as they add to the residual stream
    every other weight              Normal(0, init_std)
"""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule

from megadna.config import Config, ModelConfig
from megadna.model.layers import ColumnWithBias

SHARDING_METADATA = {"non_homogeneous_layers": True, "singleton_local_shards": False}
"""One key per layer, so that keys are names and do not depend on the pipeline split."""


def sharded_weights(model: MegatronModule) -> dict[str, Any]:
    """megatron's sharded state dict of the weights; without `_extra_state`, which only Transformer Engine fills."""
    sharded = model.sharded_state_dict(metadata=dict(SHARDING_METADATA))
    return {name: value for name, value in sharded.items() if not name.endswith("_extra_state")}


def shards(model: MegatronModule) -> list[ShardedTensor]:
    """Every shard that this rank holds, under its global name; `data` is a view of the parameter."""
    return flat(sharded_weights(model))


def flat(sharded: dict[str, Any]) -> list[ShardedTensor]:
    """Every shard of a sharded state dict, under its global name."""
    found: list[ShardedTensor] = []
    for value in nested_values(sharded):
        if isinstance(value, ShardedTensorFactory):  # SwiGLU: gate and up halves apart
            found.extend(part for part in nested_values(value.build()) if isinstance(part, ShardedTensor))
        elif isinstance(value, ShardedTensor):
            found.append(value)
    return found


_SPLIT_DIM: dict[type, int] = {
    ColumnParallelLinear: 0,
    ColumnWithBias: 0,
    RowParallelLinear: 1,
    VocabParallelEmbedding: 0,
}


def mark_split_weights(model: MegatronModule) -> None:
    """Mark the weights that tensor parallelism splits, as megatron's own initialisation does.

    Without the marks megatron takes a split weight for a replica and counts one rank's part in the gradient norm.
    """
    for module in model.modules():
        weight, dim = getattr(module, "weight", None), _SPLIT_DIM.get(type(module))
        if dim is not None and weight is not None:
            set_tensor_model_parallel_attributes(weight, True, dim, 1)


@torch.no_grad()
def fill_initial_weights(model: MegatronModule, config: Config) -> None:
    """Write the initial weights into `model`."""
    for shard in shards(model):
        full = initial_tensor(shard.key, tuple(shard.global_shape), config)
        part = tuple(
            slice(offset, offset + size) for offset, size in zip(shard.global_offset, shard.local_shape, strict=True)
        )
        shard.data.copy_(torch.from_numpy(np.ascontiguousarray(full[part])))


def initial_tensor(name: str, shape: tuple[int, ...], config: Config) -> np.ndarray:
    """fp32 initial values of the whole tensor called `name`."""
    if name.endswith(("bias", "convolution.weight")) or "embedding.context." in name:
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    key = hashlib.blake2b(f"{config.seed}/{name}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return rng.standard_normal(shape, np.float32) * np.float32(weight_std(name, config.model))


def weight_std(name: str, model: ModelConfig) -> float:
    """Standard deviation of the matrix called `name`."""
    residual = model.norm_placement == "pre" and name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    return model.init_std / (math.sqrt(2 * model.num_layers) if residual else 1.0)
