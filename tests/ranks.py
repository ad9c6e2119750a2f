"""Run a check on several CPU ranks of the real engine: gloo through a file store, one thread each, no ports."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

# Ranks are forks of one small server that has imported torch and megatron-core once: importing takes each rank seconds,
# a fork of this process would inherit locks that its threads hold.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "megadna.train.loop", "megadna.train.saving", "megatron.core.pipeline_parallel"]
)


def run_ranks(check: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """`check(*arguments)` on `num_ranks` fresh processes that know their rank from the environment, as under torchrun.

    Returns what each rank returned, in rank order; any failure fails the test with that rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = (check, num_ranks, folder, dict(os.environ), arguments)
        mp.start_processes(_rank_main, args=place, nprocs=num_ranks, start_method="forkserver")
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(num_ranks)]


def _rank_main(
    rank: int, check: Callable[..., Any], num_ranks: int, folder: str, environment: dict[str, str], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()  # a fork of the server has the server's
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), MEGADNA_STORE=str(Path(folder) / "store")
    )
    torch.save(check(*arguments), Path(folder) / f"result-{rank}")
