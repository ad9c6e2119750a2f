"""engine.dry_run: the shards of a 7B job on 256 ranks, found on one process, are the whole model and nothing twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from megadna.arguments import load_config
from megadna.commands import train
from megadna.config import Config, EngineConfig
from megadna.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "aido-dna-7b.yaml"
TOTAL = 7_285_036_304


def job() -> Config:
    """AIDO.DNA-7B at tensor 8 x pipeline 4 x data 8."""
    config = load_config(CONFIG)
    return replace(config, parallel=replace(config.parallel, tensor=8, pipeline=4))


def describe(config: Config, ranks: list[int]) -> list[tuple[str, dict[str, int], int]]:
    """Text, memory and number of parameters whose first copy the rank holds."""
    from megadna.engine.distributed import imagined_world
    from megadna.model.initial_weights import shards
    from megadna.train.describe import describe_rank, memory_bytes
    from megadna.train.step import build_state

    found = []
    for rank in ranks:
        text = describe_rank(replace(config, engine=replace(config.engine, dry_run=f"{rank}/256")))
        with imagined_world(config.parallel, rank=rank, size=256) as world:
            state = build_state(config, 16, world)
            held: list[Any] = [shard for chunk in state.model_parts for shard in shards(chunk.module.module)]
            first = sum(shard.data.numel() for shard in held if not any(flat(shard.replica_id)))
            found.append((text, memory_bytes(state), first))
    return found


def flat(replica_id: Any) -> tuple[int, ...]:
    return replica_id if isinstance(replica_id, tuple) else (replica_id,)


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, dict[str, int], int]]:
    """Tensor ranks 0 and 7 of every stage; pipeline is the slowest dimension of the rank order."""
    return run_ranks(describe, 1, job(), [stage * 64 + tensor for stage in range(4) for tensor in (0, 7)])[0]


def test_shards_add_up_to_the_whole_model(stages: list[tuple[str, dict[str, int], int]]) -> None:
    """Tensor rank 0 holds the first copy of replicated tensors; 1 to 7 hold their own shards alone, all of one size."""
    assert sum(first for _, _, first in stages[0::2]) + 7 * sum(first for _, _, first in stages[1::2]) == TOTAL


def test_the_text_names_place_layers_and_memory(stages: list[tuple[str, dict[str, int], int]]) -> None:
    first, last = stages[0][0], stages[-1][0]
    assert "tensor 0 of 8, pipeline 0 of 4, context 0 of 1, data 0 of 8" in first
    assert "layers: embedding 0-7\n" in first and "layers: 24-31 head\n" in last
    assert f"of {TOTAL:,}" in first
    assert "encoder.layers.31.mlp.linear_fc2.weight" in last and "[4352, 1448] of [4352, 11584]" in last


def test_memory_is_two_bytes_of_weight_four_of_gradient_and_a_share_of_twelve(
    stages: list[tuple[str, dict[str, int], int]],
) -> None:
    memory = stages[2][1]  # a middle stage
    assert memory["gradients"] == 2 * memory["weights"]
    assert memory["optimizer"] == pytest.approx(6 * memory["weights"] / 8, rel=1e-2)


@pytest.mark.parametrize("text", ["256", "256/256", "a/4", "-1/4", "0/0"])
def test_a_bad_rank_is_refused(text: str) -> None:
    from megadna.train.describe import parse_rank

    with pytest.raises(UserError, match=r"engine\.dry_run must be RANK/RANKS"):
        parse_rank(text)


def test_an_impossible_layout_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UserError, match="100 ranks cannot be split into groups of 32"):
        train.main(["--config", str(CONFIG), "--parallel.tensor=8", "--parallel.pipeline=4", "--engine.dry_run=0/100"])
    assert EngineConfig().dry_run == ""
