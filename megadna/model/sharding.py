"""The weights of a model under global names: what initial weights, checkpoints and exports agree on.

A name ("encoder.layers.3.mlp.linear_fc1.weight") and a tensor's full shape depend on the architecture alone, never on
the layout or on which optional kernels are installed.
"""

from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

SHARDING_METADATA = {"non_homogeneous_layers": True, "singleton_local_shards": False}
"""One key a layer, so that keys are names and do not depend on the pipeline split."""


def sharded_weights(model: MegatronModule, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """megatron's sharded state dict of the weights; without `_extra_state`, which only Transformer Engine fills."""
    sharded = model.sharded_state_dict(metadata=dict(metadata or SHARDING_METADATA))
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
