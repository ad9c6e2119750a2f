"""The planner's bytes of weights, gradients and optimizer are those that a dry run of the real engine counts."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks

from megadna.arguments import load_config
from megadna.config import Config
from megadna.errors import UserError
from megadna.model.shapes import padded_vocab_size
from megadna.planning.memory import Position, state_bytes
from megadna.tokenizer.build import build_tokenizer

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def jobs(count: int) -> list[tuple[Config, int, int]]:
    """(config, rank, ranks) of random possible layouts, over all presets in turn; deep models cut to 8 layers."""
    rng, found = random.Random(7), []
    while len(found) < count:
        config = load_config(PRESETS[len(found) % len(PRESETS)])
        config = replace(config, model=replace(config.model, num_layers=min(8, config.model.num_layers)))
        pipeline = rng.choice([1, 2, 3, 4])
        try:
            parallel = replace(
                config.parallel,
                tensor=rng.choice([1, 2, 4, 8]),
                pipeline=pipeline,
                pipeline_layers=[3, 3, 2] if pipeline == 3 and config.model.num_layers == 8 else [],
                virtual_pipeline=rng.choice([1, 2]) if pipeline > 1 else 1,
                context=rng.choice([1, 1, 2]),
                sequence=False,
                overlap_grad_reduce=rng.random() < 0.5,
                overlap_param_gather=False,
            )
            size = parallel.model_size * rng.choice([1, 2, 3, 16])
            config = replace(
                config, parallel=parallel, train=replace(config.train, global_batch_size=9216, micro_batch_size=1)
            )
            config.data_parallel_size(size)
        except UserError:
            continue
        found.append((config, rng.randrange(size), size))
    return found


def counted(jobs: list[tuple[Config, int, int]]) -> list[dict[str, int]]:
    from megadna.engine.distributed import imagined_world
    from megadna.train.describe import memory_bytes
    from megadna.train.step import build_state

    found = []
    for config, rank, size in jobs:
        with imagined_world(config.parallel, rank=rank, size=size) as world:
            found.append(memory_bytes(build_state(config, build_tokenizer(config.tokenizer).vocab_size, world)))
    return found


@pytest.mark.slow
def test_arithmetic_equals_the_dry_run_over_all_presets_and_60_layouts() -> None:
    some = jobs(60)
    assert {config.model.hidden_size for config, _, _ in some} >= {768, 4352, 4096}
    for (config, rank, size), expected in zip(some, run_ranks(counted, 1, some)[0], strict=True):
        rows = padded_vocab_size(config.tokenizer, build_tokenizer(config.tokenizer).vocab_size)
        assert state_bytes(config, rows, Position.of(config, rank, size)) == expected, (config.parallel, rank, size)
