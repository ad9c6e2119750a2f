"""launch/slurm.sbatch on a real Slurm of two nodes: warned before its limit, saved, requeued, resumed, finished."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import cluster, job_fields, missing, wait
from toy import metrics, toy_config

from megadna.arguments import dump_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
BIN = str(Path(sys.executable).parent)
SEED = 7
ENDLESS = 1_000_000
STEPS_AFTER = 20


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    with cluster() as folder:
        yield folder


@pytest.fixture
def environment() -> dict[str, str]:
    """As after `source .venv/bin/activate`; one thread a rank, so that sums have one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}


def write_config(path: Path, dataset: Path, *, steps: int) -> Path:
    """A loader's worker, no decay (so that `steps` changes no loss); saved only when told to stop and at the end."""
    config = toy_config(dataset)
    config = replace(
        config,
        data=replace(config.data, num_workers=1),
        train=replace(config.train, steps=steps, schedule="constant"),
        checkpoint=replace(config.checkpoint, interval=1_000_000),
        validation=replace(config.validation, interval=0),
    )
    path.write_text(dump_config(config))
    return path


def submit(yaml: Path, run: Path, environment: dict[str, str], *sbatch: str) -> str:
    """Number of the job that `megadna launch slurm` submits."""
    log = f"output={run.with_suffix('.log')}"
    options = [
        "--output",
        str(run),
        "--nodes",
        "2",
        "--ranks_per_node",
        "1",
        "--sbatch",
        " ".join((log, "time=2", *sbatch)),
    ]
    command = ["megadna", "launch", "slurm", "--config", str(yaml), *options]
    done = subprocess.run(command, env=environment, cwd=yaml.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_a_job_goes_on_over_its_time_limit_as_if_there_were_none(
    slurm: Path, toy_dataset: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """It never ends before its limit; while it waits to be started again, the steps are set to a few more."""
    yaml, whole, run = tmp_path / "toy.yaml", tmp_path / "whole", tmp_path / f"run-seed{SEED}"
    write_config(yaml, toy_dataset, steps=ENDLESS)
    job = submit(yaml, tmp_path / "run", environment, f"array={SEED}", "signal=B:USR1@60")
    wait(lambda: int(job_fields(job)["Restarts"]) > 0, 300)
    assert "exit status 75, warned: yes" in (tmp_path / "run.log").read_text()
    assert "received SIGUSR1" in (run / "log.txt").read_text()
    steps = metrics(run)[-1]["step"]
    write_config(yaml, toy_dataset, steps=steps + STEPS_AFTER)
    subprocess.run(["scontrol", "update", f"JobId={job}_{SEED}", "TimeLimit=30"], check=True)

    wait(lambda: job_fields(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 600)
    assert job_fields(job)["JobState"] == "COMPLETED", (tmp_path / "run.log").read_text()
    assert f"resuming {run}/checkpoints/step-{steps:08d} at step {steps}" in (run / "log.txt").read_text()

    keys = ["--engine.num_processes", "2", "--seed", str(SEED)]
    command = ["megadna", "train", "--config", str(yaml), "--output", str(whole), *keys]
    subprocess.run(command, env=environment, check=True)
    assert [line["step"] for line in metrics(whole) if "loss" in line] == list(range(1, steps + STEPS_AFTER + 1))
    assert metrics(run) == metrics(whole)


def test_a_job_that_is_cancelled_stays_away(
    slurm: Path, toy_dataset: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(write_config(tmp_path / "toy.yaml", toy_dataset, steps=ENDLESS), run, environment)
    wait(lambda: (run / "metrics.jsonl").is_file(), 300)
    subprocess.run(["scancel", job], check=True)
    wait(lambda: job_fields(job)["JobState"] == "CANCELLED", 120)
