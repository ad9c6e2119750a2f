"""Dropout is a pure function of (seed, step, position of the rank): a resumed run repeats it to the last bit."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from toy import losses, run_training, toy_config

from megadna.config import Config, ParallelConfig

LAYOUTS = {
    "tensor 2, sequence": {"tensor": 2, "sequence": True},
    "pipeline 2, interleaved, recompute": {"pipeline": 2, "virtual_pipeline": 2, "recompute": "full"},
    "data 2": {},
}


def with_dropout(config: Config) -> Config:
    return replace(config, model=replace(config.model, dropout=0.1))


@pytest.mark.parametrize(
    "layout", [name if name == "tensor 2, sequence" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_resumed_run_drops_the_same_places(layout: str, toy_dataset: Path, tmp_path: Path) -> None:
    config = with_dropout(toy_config(toy_dataset, **LAYOUTS[layout]))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_ranks(run_training, 2, config, whole)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000006")
    run_ranks(run_training, 2, config, stopped, True)
    assert losses(stopped) == losses(whole)


def draws() -> dict[str, list[tuple[float, float]]]:
    """A number of the state that tensor-parallel ranks share and one of this rank's own, for four (seed, step)."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from megadna.engine.distributed import parallel_world, seed_dropout

    store, found = os.environ["MEGADNA_STORE"], {}
    for name, parallel in {"tensor": ParallelConfig(tensor=2), "data": ParallelConfig()}.items():
        os.environ["MEGADNA_STORE"] = f"{store}-{name}"
        found[name] = []
        with parallel_world(toy_config(Path()).engine, parallel) as world:
            for seed, step in ((1, 7), (1, 8), (2, 7), (1, 7)):
                seed_dropout(seed, step, world)
                shared = torch.rand(()).item()
                with get_cuda_rng_tracker().fork():
                    found[name].append((shared, torch.rand(()).item()))
    return found


def test_states_follow_from_seed_step_and_place() -> None:
    ranks = run_ranks(draws, 2)
    for numbers in (rank[name] for rank in ranks for name in rank):
        assert numbers[0] == numbers[3] and len(set(numbers)) == 3
    (tensor, data), (other_tensor, other_data) = ((rank["tensor"], rank["data"]) for rank in ranks)
    assert [shared for shared, _ in tensor] == [shared for shared, _ in other_tensor]
    assert not {own for _, own in tensor} & {own for _, own in other_tensor}
    assert not {shared for shared, _ in data} & {shared for shared, _ in other_data}
