"""launch/torchrun.sh over two hosts: one is cut off, both end and say why, the run goes on from its checkpoint.

The commands are those of docs/cluster.md, with a toy config after theirs.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_page import changed, command, prepare
from slurm_cluster import wait
from toy import metrics, toy_config
from two_hosts import Host, missing, two_hosts

from megadna.arguments import dump_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
ONE_NODE = command("^launch/torchrun.sh")
TWO_NODES = (command("NODE_RANK=0 launch/torchrun.sh"), command("NODE_RANK=1 launch/torchrun.sh"))
BIN = str(Path(sys.executable).parent)
TIMEOUT_SECONDS = 15.0
STEPS = 150


def start(host: Host, line: str, folder: Path, ranks: int = 1) -> subprocess.Popen:
    """Give `line` to the host, in `folder`, with `ranks` ranks and the keys of toy.yaml; its log is the host's."""
    settings = {
        "RANKS": str(ranks),
        "LOCAL_ADDR": host.address,
        "GLOO_SOCKET_IFNAME": host.card,
        "MAX_RESTARTS": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"{host.address}.log").open("a") as log:
        return subprocess.Popen(
            host.command("bash", "-c", f"{line} --config toy.yaml"),
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **settings},
            start_new_session=True,
        )


def write_config(folder: Path) -> None:
    """toy.yaml: enough steps that the wire can be cut between two checkpoints."""
    config = toy_config(Path("DATASET"))
    config = replace(
        config,
        train=replace(config.train, steps=STEPS),
        checkpoint=replace(config.checkpoint, interval=20),
        validation=replace(config.validation, interval=0),
        engine=replace(config.engine, timeout_minutes=TIMEOUT_SECONDS / 60),
    )
    (folder / "toy.yaml").write_text(dump_config(config))


def test_a_host_that_is_cut_off_ends_the_job_and_it_goes_on(toy_dataset: Path, tmp_path: Path) -> None:
    """Without a break, on the first host alone; then on both, with one."""
    folder, whole, run = prepare(tmp_path, toy_dataset), tmp_path / "whole", tmp_path / "RUN"
    write_config(folder)
    with two_hosts(folder) as hosts:
        launched = [start(hosts[0], changed(ONE_NODE, {"--output RUN": "--output whole"}), folder, ranks=2)]
        try:
            assert launched[0].wait(timeout=600) == 0, (folder / "10.0.0.1.log").read_text()
            launched = [start(*pair, folder) for pair in zip(hosts, TWO_NODES, strict=True)]
            wait(lambda: (run / "checkpoints" / "latest").exists() and len(metrics(run)) > 40, 300)
            hosts[1].plug("down")
            begin = time.monotonic()
            statuses = [process.wait(timeout=300) for process in launched]
            sys.stdout.write(f"both hosts had ended {time.monotonic() - begin:.0f} s after the cut\n")
            assert all(statuses)
            logs = [(folder / f"{host.address}.log").read_text() for host in hosts]
            assert "no sign of life from rank 1 (last step" in logs[0], logs[0]
            assert "no response from rank 0 or its node" in logs[1], logs[1]
            assert len(metrics(run)) < STEPS
            hosts[1].plug("up")
            launched = [start(*pair, folder) for pair in zip(hosts, TWO_NODES, strict=True)]
            assert [process.wait(timeout=600) for process in launched] == [0, 0]
        finally:
            for process in launched:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    assert "resuming" in (run / "log.txt").read_text()
    assert metrics(run) == metrics(whole)
