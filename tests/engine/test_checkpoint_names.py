"""What a checkpoint holds has the same names, full shapes and optimizer keys under every backend and layout."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from toy import toy_config

from megadna.config import Config

# name: (ranks, changes by config section); tests/gpu has the backends that need a GPU
CASES: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "sdpa, fp32": (1, {}),
    "eager, fp32": (1, {"model": {"attention": "eager"}}),
    "dropout": (1, {"model": {"dropout": 0.1}}),
    "bf16": (1, {"engine": {"precision": "bf16"}}),
    "fp16, recompute": (1, {"engine": {"precision": "fp16"}, "parallel": {"recompute": "full"}}),
    "tensor 2, sequence": (2, {"parallel": {"tensor": 2, "sequence": True}}),
    "pipeline 2, interleaved": (2, {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}),
    "context 2, bf16": (2, {"parallel": {"context": 2}, "engine": {"precision": "bf16"}}),
    "data 2, overlap": (2, {"parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True}}),
}
Names = dict[str, tuple[int, ...]]


def names_of(cases: dict[str, tuple[int, Config]]) -> dict[str, tuple[Names, list[set[str]]]]:
    """Tensors that this rank saves by name, with their full shape, and the keys of the optimizer's parameter groups."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    from megadna.engine.distributed import parallel_world
    from megadna.engine.optimizer import allocate_moments
    from megadna.model.initial_weights import SHARDING_METADATA, sharded_weights
    from megadna.train.step import build_state

    metadata = {**SHARDING_METADATA, "distrib_optim_sharding_type": "fully_reshardable"}

    rank, store, found = int(os.environ["RANK"]), os.environ["MEGADNA_STORE"], {}
    for number, (name, (num_ranks, config)) in enumerate(cases.items()):
        if rank >= num_ranks:
            continue
        os.environ.update(WORLD_SIZE=str(num_ranks), MEGADNA_STORE=f"{store}-{number}")
        with parallel_world(config.engine, config.parallel) as world:
            state = build_state(config, 16, world)
            modules = [getattr(chunk.module, "module", chunk.module) for chunk in state.model_parts]
            model = {f"chunk-{number}": sharded_weights(module) for number, module in enumerate(modules)}
            allocate_moments(state.optimizer)
            optimizer = state.optimizer.sharded_state_dict(model, is_loading=False, metadata=metadata)
        names: Names = {}
        for value in nested_values({"model": model, "optimizer": optimizer}):
            parts = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
            names.update({part.key: tuple(part.global_shape) for part in parts if isinstance(part, ShardedTensor)})
        found[name] = (names, [set(group) for group in optimizer["optimizer"]["param_groups"]])
    return found


def configs() -> dict[str, tuple[int, Config]]:
    base = toy_config(Path())
    sections = {
        name: {key: replace(getattr(base, key), **keys) for key, keys in changes.items()}
        for name, (_, changes) in CASES.items()
    }
    return {name: (ranks, replace(base, **sections[name])) for name, (ranks, _) in CASES.items()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, tuple[Names, list[set[str]]]]]:
    return run_ranks(names_of, 2, configs())


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_has_the_names_of_the_reference(case: str, ranks: list) -> None:
    reference, groups = ranks[0]["sdpa, fp32"]
    assert len([name for name in reference if name.startswith("optimizer.")]) == 3 * (4 * 12 + 8)
    found: Names = {}
    for rank in ranks:
        names, keys = rank.get(case, ({}, groups))
        found |= names
        assert keys == groups
    assert found == reference
