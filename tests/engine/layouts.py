"""Ten steps of the toy run under a layout, and what its ranks computed, by global names, for test_parity.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from toy import toy_config

from megadna.config import Config

STEPS = 10


def parity_config(dataset: Path, changes: dict[str, dict[str, Any]]) -> Config:
    """The toy config at 10 steps; `changes` by section."""
    config = toy_config(dataset)
    config = replace(config, train=replace(config.train, steps=STEPS))
    return replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in changes.items()})


def train(config: Config) -> dict[str, Any]:
    """Losses and gradient norms of all steps; this rank's shards of the first gradients and of the last weights."""
    from megadna.data.loader import resolve_sequence_length, train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.engine.optimizer import gather_weights
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    tokenizer = build_tokenizer(config.tokenizer)
    length = resolve_sequence_length(config, 512, tokenizer)
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, tokenizer.vocab_size, world)
        batches = train_batches(
            config, tokenizer, sequence_length=length, rank=world.data_rank, size=world.data_size, consumed_samples=0
        )
        found: dict[str, Any] = {"loss": [], "grad_norm": []}
        for step in range(STEPS):
            result = train_step(state, batches, config, world, sequence_length=length)
            found["loss"].append(result.loss)
            found["grad_norm"].append(result.grad_norm)
            if step == 0:
                found["gradients"] = _first_gradients(state)
        gather_weights(state.model_parts)
        found["weights"] = _shards(state)
    return found


def _shards(state: Any) -> list[tuple[str, tuple, tuple, torch.Tensor]]:
    """(name, full shape, offset, values) of everything that this rank holds."""
    from megadna.model.initial_weights import shards

    return [
        (shard.key, tuple(shard.global_shape), tuple(shard.global_offset), shard.data.detach().float().clone())
        for chunk in state.model_parts
        for shard in shards(getattr(chunk.module, "module", chunk.module))
    ]


@torch.no_grad()
def _first_gradients(state: Any) -> list[tuple[str, tuple, tuple, torch.Tensor]]:
    """The gradients in the place of the weights, NaN where another data-parallel rank holds the sum."""
    ranges = (
        state.optimizer.chained_optimizers[0] if hasattr(state.optimizer, "chained_optimizers") else state.optimizer
    )
    parameters = [parameter for chunk in state.model_parts for parameter in chunk.parameters()]
    kept = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        own = torch.full_like(parameter, float("nan")).view(-1)
        if parameter in ranges.model_param_gbuf_map:
            part = ranges._get_model_param_range_map(parameter)["param"]
            own[part.start : part.end] = parameter.main_grad.view(-1)[part.start : part.end]
        parameter.copy_(own.view_as(parameter))
    found = _shards(state)
    for parameter, values in zip(parameters, kept, strict=True):
        parameter.copy_(values)
    return found


def whole(shards_of_ranks: list[list[tuple[str, tuple, tuple, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Full tensors by name out of all ranks' shards; copies of one value must agree to the last bit."""
    tensors: dict[str, torch.Tensor] = {}
    for name, shape, offset, values in (shard for shards in shards_of_ranks for shard in shards):
        full = tensors.setdefault(name, torch.full(shape, float("nan")))
        window = full[tuple(slice(start, start + size) for start, size in zip(offset, values.shape, strict=True))]
        known, new = ~window.isnan(), ~values.isnan()
        assert torch.equal(window[known & new], values[known & new]), f"{name}: ranks hold different copies"
        window[new] = values[new]
    assert all(not tensor.isnan().any() for tensor in tensors.values())
    return tensors
