"""Loader processes of a training end with it: they take no SIGTERM, so a process that kept them would never end."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

from ranks import run_ranks
from toy import toy_config

from megadna.config import Config


def children_after(config: Config, run: Path) -> list[str]:
    """Processes left when training is done and still held; not megatron's queue, which ends with this process."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.loop import TrainingRun

    run.mkdir()
    with parallel_world(config.engine, config.parallel) as world:
        training = TrainingRun(config, run, world)
        assert training.train(resume="never")
        return [child.name for child in multiprocessing.active_children() if "SyncManager" not in child.name]


def test_no_worker_outlives_a_training(toy_dataset: Path, tmp_path: Path) -> None:
    config = toy_config(toy_dataset)
    config = replace(config, data=replace(config.data, num_workers=2), train=replace(config.train, steps=2))
    assert run_ranks(children_after, 1, config, tmp_path / "run") == [[]]
