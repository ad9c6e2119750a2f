"""launch/torchrun.sh over two hosts: one is cut off, both end and say why, the run goes on from its checkpoint."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import wait
from toy import metrics, toy_config
from two_hosts import Host, missing, two_hosts

from megadna.arguments import dump_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
SCRIPT = str(Path(__file__).parents[2] / "launch" / "torchrun.sh")
BIN = str(Path(sys.executable).parent)
TIMEOUT_SECONDS = 15.0
STEPS = 150


def start(hosts: tuple[Host, Host], yaml: Path, run: Path) -> list[subprocess.Popen]:
    """One rank a host, with the command of docs/cluster.md."""
    started = []
    for number, host in enumerate(hosts):
        settings = {
            "NODES": "2",
            "RANKS": "1",
            "HEAD": hosts[0].address,
            "NODE_RANK": str(number),
            "LOCAL_ADDR": host.address,
            "GLOO_SOCKET_IFNAME": host.card,
            "MAX_RESTARTS": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        command = host.command("bash", SCRIPT, "--config", str(yaml), "--output", str(run))
        with (run.parent / f"host{number}.log").open("a") as log:
            started.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env={**os.environ, **settings}, start_new_session=True
                )
            )
    return started


def test_a_host_that_is_cut_off_ends_the_job_and_it_goes_on(toy_dataset: Path, tmp_path: Path) -> None:
    config = toy_config(toy_dataset)
    config = replace(
        config,
        train=replace(config.train, steps=STEPS),
        checkpoint=replace(config.checkpoint, interval=20),
        validation=replace(config.validation, interval=0),
        engine=replace(config.engine, timeout_minutes=TIMEOUT_SECONDS / 60),
    )
    yaml, whole, run = tmp_path / "toy.yaml", tmp_path / "whole", tmp_path / "run"
    yaml.write_text(dump_config(config))
    alone = [str(Path(BIN) / "megadna"), "train", "--config", str(yaml), "--output", str(whole)]
    command = [*alone, "--engine.num_processes", "2"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with two_hosts(tmp_path) as hosts:
        launched = start(hosts, yaml, run)
        try:
            wait(lambda: (run / "checkpoints" / "latest").exists() and len(metrics(run)) > 40, 300)
            hosts[1].plug("down")
            begin = time.monotonic()
            statuses = [process.wait(timeout=300) for process in launched]
            sys.stdout.write(f"both hosts had ended {time.monotonic() - begin:.0f} s after the cut\n")
            assert all(statuses)
            said = [(tmp_path / f"host{number}.log").read_text() for number in (0, 1)]
            assert "no sign of life from rank 1 (last step" in said[0], said[0]
            assert "rank 0 or its node does not answer" in said[1], said[1]
            assert len(metrics(run)) < STEPS
            hosts[1].plug("up")
            launched = start(hosts, yaml, run)
            assert [process.wait(timeout=600) for process in launched] == [0, 0]
        finally:
            for process in launched:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    assert "resuming" in (run / "log.txt").read_text()
    assert metrics(run) == metrics(whole)
