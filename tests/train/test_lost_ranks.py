"""A rank that dies or hangs: the others end in time and name it, nothing is left behind, and torchrun goes on alone."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_faults import long_config, wait_for_step
from toy import metrics

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.errors import EXIT_RANK_LOST

pytestmark = pytest.mark.slow
TIMEOUT_SECONDS = 30.0


def four_ranks(dataset: Path, steps: int) -> Config:
    config = long_config(dataset)
    return replace(
        config,
        train=replace(config.train, steps=steps),
        engine=replace(config.engine, num_processes=4, timeout_minutes=TIMEOUT_SECONDS / 60),
    )


def start(config: Config, run: Path, *launcher: str) -> subprocess.Popen:
    yaml = run.with_suffix(".yaml")
    yaml.write_text(dump_config(config))
    command = [*launcher, "-m", "megadna", "train", "--config", str(yaml), "--output", str(run), "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def rank_process(parent: int, rank: int, num_ranks: int = 4) -> psutil.Process:
    """The process of that rank, among all below `parent`; its loaders and writers carry the same environment."""
    found = []
    for process in descendants(parent):
        with suppress(psutil.NoSuchProcess):  # a writer that has just ended
            environment = process.environ()
            if environment.get("RANK") == str(rank) and environment.get("WORLD_SIZE") == str(num_ranks):
                found.append(process)
    return min(found, key=lambda process: process.create_time())


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_end_in_time_and_name_the_rank(number: signal.Signals, toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(four_ranks(toy_dataset, 100_000), run, sys.executable)
    wait_for_step(run, 10)
    family = descendants(process.pid)
    begin = time.monotonic()
    rank_process(process.pid, 2).send_signal(number)
    _, errors = process.communicate(timeout=600)
    # The timeout, the comparison of signs, what the launcher grants the ranks that are left, and a slow machine.
    assert time.monotonic() - begin < TIMEOUT_SECONDS + 300
    last = metrics(run)[-1]["step"]
    lines = [line for line in errors.splitlines() if "no sign of life from rank 2 (last step" in line]
    assert lines and any(f"step {step}: " in lines[0] for step in (last, last + 1, last + 2)), errors
    assert process.returncode == (128 + number if number == signal.SIGKILL else EXIT_RANK_LOST)
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


def test_torchrun_goes_on_from_the_checkpoint_by_itself(toy_dataset: Path, tmp_path: Path) -> None:
    config = replace(long_config(toy_dataset), engine=replace(long_config(toy_dataset).engine, timeout_minutes=1.0))
    config = replace(config, train=replace(config.train, steps=60))
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = start(config, whole, sys.executable)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    alone = replace(config, engine=replace(config.engine, num_processes=1))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2")
    process = start(alone, run, *torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    wait_for_step(run, 16)
    rank_process(process.pid, 1, num_ranks=2).kill()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "resuming" in (run / "log.txt").read_text()
    assert metrics(run) == metrics(whole)
