"""Nothing outlives what started it: after a kill -9 of the parent no rank, worker or writer is left.

The parents that tests kill are processes of their own; a parent that is stopped keeps its children.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from toy import metrics, toy_config

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.processes import LAUNCHER

CHILD = """
import os, sys, time
sys.platform = os.environ.get("PLATFORM", sys.platform)
from megadna.processes import end_with_launcher
end_with_launcher()
open(sys.argv[1], "w").close()
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
os.environ["{LAUNCHER}"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", '''{CHILD}''', sys.argv[1]]).wait()
"""


def wait_until(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


@contextmanager
def family(
    command: list[str], **environment: str
) -> Iterator[tuple[subprocess.Popen, Callable[[], set[psutil.Process]]]]:
    """A process and what it has started so far; nothing of it is left after the block."""
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.DEVNULL
    )
    known: set[psutil.Process] = set()

    def children() -> set[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            known.update(psutil.Process(process.pid).children(recursive=True))
        return known

    try:
        yield process, children
    finally:
        for one in (*children(), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def all_end_with(process: subprocess.Popen, children: set[psutil.Process], seconds: float = 10) -> bool:
    """Whether a kill -9 of the one ends all others; a writer among them may have ended before, its work done."""
    assert any(child.is_running() for child in children)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=seconds)
    return not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_child_ends_with_its_parent_and_not_before(platform: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with family([sys.executable, "-c", PARENT, str(ready)], PLATFORM=platform) as (process, children):
        wait_until(ready.exists, process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        assert all(child.is_running() for child in children())
        assert all_end_with(process, children())


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_child_whose_parent_is_gone_already_ends_at_once(platform: str, tmp_path: Path) -> None:
    environment = {**os.environ, LAUNCHER: "999999999", "PLATFORM": platform}
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "ready")], env=environment, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "ready").exists()


def test_any_other_process_may_outlive_its_parent(tmp_path: Path) -> None:
    """As under nohup: a shell may end before the training that it started."""
    shell = 'trap "" HUP; "$@" & echo $!'
    environment = {key: value for key, value in os.environ.items() if key != LAUNCHER}
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", CHILD, str(tmp_path / "ready")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as shell_process:
        assert shell_process.stdout is not None
        child = psutil.Process(int(shell_process.stdout.readline()))
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline and child.is_running()
        time.sleep(0.02)
    assert child.is_running() and child.ppid() != shell_process.pid
    child.kill()


def endless(dataset: Path, **engine: object) -> Config:
    config = toy_config(dataset)
    return replace(
        config,
        data=replace(config.data, num_workers=2),
        train=replace(config.train, steps=100_000, schedule="constant"),
        checkpoint=replace(config.checkpoint, interval=4, keep_last=2),
        validation=replace(config.validation, interval=0),
        engine=replace(config.engine, timeout_minutes=5.0, **engine),  # type: ignore[arg-type]
    )


def train_command(config: Config, run: Path, *options: str, launcher: tuple[str, ...] = ()) -> list[str]:
    yaml = run.with_suffix(".yaml")
    yaml.write_text(dump_config(config))
    launched = [sys.executable, *launcher, "-m", "megadna", "train"]
    return [*launched, "--config", str(yaml), "--output", str(run), *options]


def reached(run: Path, step: int) -> Callable[[], bool]:
    def happened() -> bool:
        file = run / "metrics.jsonl"
        return file.exists() and file.read_text().count("\n") >= step

    return happened


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_launcher_leaves_nothing_and_its_run_goes_on(ranks: int, toy_dataset: Path, tmp_path: Path) -> None:
    """Ranks, their loaders and writers; while the launcher is stopped they go on, and the run folder is theirs."""
    run, config = tmp_path / "run", endless(toy_dataset, num_processes=ranks)
    resume = train_command(config, run, "--resume", "--train.steps", "12")
    with family(train_command(config, run)) as (process, children):
        wait_until(reached(run, 5), process)
        if ranks > 1:
            process.send_signal(signal.SIGSTOP)
            step = metrics(run)[-1]["step"]
            wait_until(reached(run, step + 3), process)
        second = subprocess.run(resume, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and f"(process {process.pid}, since" in second.stderr
        assert len(children()) >= 3 * ranks  # two loader workers and a queue each, and the other ranks
        assert all_end_with(process, children())
    last = metrics(run)[-1]["step"]
    steps = str(last + 4)
    third = subprocess.run([*resume[:-1], steps], capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, last + 5))


@pytest.mark.slow
def test_a_killed_torchrun_leaves_nothing(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
    launcher += ("--rdzv-endpoint", "localhost:0")
    command = train_command(endless(toy_dataset), run, launcher=launcher)
    with family(command) as (process, children):
        wait_until(reached(run, 5), process)
        second = subprocess.run(train_command(endless(toy_dataset), run, "--resume"), capture_output=True, text=True)
        assert second.returncode == 2 and "another megadna train is writing here" in second.stderr
        assert all_end_with(process, children())


GATE = """
import os, sys
from pathlib import Path
from megadna.hf.gate import _run
os.mkfifo(Path(sys.argv[1]) / "task.json")  # what reads it waits
_run(Path(sys.argv[1]))
"""
SELF_TEST = """
from megadna.planning import doctor as self_test
if __name__ == "__main__":
    self_test.run_self_test()
"""


@pytest.mark.slow
def test_the_gate_s_process_ends_with_the_export(tmp_path: Path) -> None:
    pipes: list[int] = []

    def reads_its_task() -> bool:
        with suppress(OSError):  # no FIFO yet, or nobody reads it
            pipes.append(os.open(tmp_path / "task.json", os.O_WRONLY | os.O_NONBLOCK))
        return bool(pipes)

    with family([sys.executable, "-c", GATE, str(tmp_path)]) as (process, children):
        wait_until(reads_its_task, process)
        assert all_end_with(process, children())
    os.close(pipes[0])


@pytest.mark.slow
def test_the_ranks_of_the_self_test_end_with_the_doctor(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SELF_TEST)
    with family([sys.executable, str(script)], TMPDIR=str(tmp_path)) as (process, children):
        wait_until(lambda: bool(list(tmp_path.glob("megadna-*/store"))), process)
        assert all_end_with(process, children())
