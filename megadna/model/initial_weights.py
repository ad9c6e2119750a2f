"""Initial weights as a pure function of (seed, global parameter name), the same numbers under every layout.

Each rank draws the full tensor of a name and copies its own shard out of it, so that tensor, pipeline and data parallel
runs all start from one model. Scheme:

    biases                          0
    norm weights                    1
    linear_proj, linear_fc2         pre-LN: Normal(0, init_std / sqrt(2 num_layers)), as they add to the residual stream
    every other weight              Normal(0, init_std)
"""

import hashlib
import math

import numpy as np
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule

from megadna.config import Config, ModelConfig
from megadna.model.layers import ColumnWithBias
from megadna.model.sharding import shards

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
    """Write the initial weights into `model` in place."""
    for shard in shards(model):
        full = initial_tensor(shard.key, tuple(shard.global_shape), config)
        window = tuple(
            slice(offset, offset + size) for offset, size in zip(shard.global_offset, shard.local_shape, strict=True)
        )
        shard.data.copy_(torch.from_numpy(np.ascontiguousarray(full[window])))


def initial_tensor(name: str, shape: tuple[int, ...], config: Config) -> np.ndarray:
    """fp32 initial values of the whole tensor called `name`."""
    if name.endswith("bias"):
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
