"""launch/slurm.sbatch on a real Slurm of two nodes: warned before its limit, saved, requeued, resumed, finished.

Jobs are submitted by the commands of docs/cluster.md, for two nodes of one rank, with a toy config after the others.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_page import changed, command, prepare
from documented import run_blocks
from slurm_cluster import cluster, job_fields, missing, wait
from toy import metrics, toy_config

from megadna.arguments import dump_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
SEED = 7
ENDLESS = 1_000_000
UNFINISHED = ("PENDING", "RUNNING", "COMPLETING")
STEPS_AFTER = 20
ACTIVATION = command("^source")
SUBMISSION = command("^megadna launch slurm .* --sbatch ")
BY_HAND = command("^CONFIG=.* sbatch ")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    with cluster() as folder:
        yield folder


@pytest.fixture
def folder(tmp_path: Path, toy_dataset: Path) -> Path:
    return prepare(tmp_path, toy_dataset)


def write_config(folder: Path, *, steps: int) -> None:
    """toy.yaml: a loader's worker, no decay (`steps` changes no loss), saved only when stopped and at the end."""
    config = toy_config(Path("DATASET"))
    config = replace(
        config,
        data=replace(config.data, num_workers=1),
        train=replace(config.train, steps=steps, schedule="constant"),
        checkpoint=replace(config.checkpoint, interval=1_000_000),
        validation=replace(config.validation, interval=0),
    )
    (folder / "toy.yaml").write_text(dump_config(config))


def submit(folder: Path, *sbatch: str) -> str:
    """Number of the job that `megadna launch slurm` submits, with the keys of toy.yaml."""
    changes = {"--nodes 32": "--nodes 2 --ranks_per_node 1", "time=12:00:00": " ".join(("time=2", *sbatch))}
    return run_submission(changed(SUBMISSION, changes), folder)


def run_submission(line: str, folder: Path) -> str:
    """Number of the job that `line` submits, in an activated environment."""
    return run_blocks([("bash", f"{ACTIVATION}\n{line} --config toy.yaml")], folder).split()[-1]


def test_a_job_goes_on_over_its_time_limit_as_if_there_were_none(slurm: Path, folder: Path) -> None:
    """It never ends before its limit; while it waits to be started again, the steps are set to a few more."""
    whole, run = folder / "whole", folder / "runs" / f"7b-seed{SEED}"
    write_config(folder, steps=ENDLESS)
    job = submit(folder, f"array={SEED}", "signal=B:USR1@60")
    wait(lambda: int(job_fields(job)["Restarts"]) > 0, 300)
    log = next(folder.glob("7b-*.log"))
    assert "exit status 75, warned: yes" in log.read_text()
    assert "received SIGUSR1" in (run / "log.txt").read_text()
    steps = metrics(run)[-1]["step"]
    write_config(folder, steps=steps + STEPS_AFTER)
    subprocess.run(["scontrol", "update", f"JobId={job}_{SEED}", "TimeLimit=30"], check=True)

    wait(lambda: job_fields(job)["JobState"] not in UNFINISHED, 600)
    assert job_fields(job)["JobState"] == "COMPLETED", log.read_text()
    assert f"checkpoints/step-{steps:08d} at step {steps}" in (run / "log.txt").read_text()

    keys = f"--engine.num_processes 2 --seed {SEED}"
    run_blocks([("bash", f"megadna train --config toy.yaml --output {whole} {keys}")], folder)
    assert [line["step"] for line in metrics(whole) if "loss" in line] == list(range(1, steps + STEPS_AFTER + 1))
    assert metrics(run) == metrics(whole)


def test_a_job_that_is_cancelled_stays_away(slurm: Path, folder: Path) -> None:
    write_config(folder, steps=ENDLESS)
    job = submit(folder)
    wait(lambda: (folder / "runs" / "7b" / "metrics.jsonl").is_file(), 300)
    subprocess.run(["scancel", job], check=True)
    wait(lambda: job_fields(job)["JobState"] == "CANCELLED", 120)


def test_a_job_submitted_by_hand_trains_and_finishes(slurm: Path, folder: Path) -> None:
    write_config(folder, steps=6)
    job = run_submission(changed(BY_HAND, {"--nodes=4": "--nodes=2 --ntasks-per-node=1"}), folder)
    wait(lambda: job_fields(job)["JobState"] not in UNFINISHED, 300)
    fields = job_fields(job)
    assert fields["JobState"] == "COMPLETED", (folder / f"megadna-{job}.log").read_text()
    assert (fields["NumNodes"], fields["NumTasks"], fields["TimeLimit"]) == ("2", "2", "1-00:00:00")
    assert [line["step"] for line in metrics(folder / "runs" / "86m") if "loss" in line] == [1, 2, 3, 4, 5, 6]
