"""A run that is told to stop: it saves, exits with the status for requeue, and goes on as if nothing had happened."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks
from toy import losses, metrics, run_training, toy_config

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.errors import EXIT_REQUEUE
from megadna.train.faults import FaultGuard

STEPS = 30


def long_config(dataset: Path) -> Config:
    config = toy_config(dataset)
    return replace(
        config,
        train=replace(config.train, steps=STEPS),
        checkpoint=replace(config.checkpoint, interval=7),
        validation=replace(config.validation, interval=0),
        engine=replace(config.engine, num_processes=2),
    )


@pytest.fixture(scope="module")
def whole_run(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(run_training, 2, long_config(toy_dataset), run)
    return run


def start(config: Config, run: Path, *options: str, own_group: bool = False) -> subprocess.Popen:
    """`megadna train` with two ranks, as a user starts it."""
    yaml = run.with_suffix(".yaml")
    yaml.write_text(dump_config(config))
    command = [sys.executable, "-m", "megadna", "train", "--config", str(yaml), "--output", str(run), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=own_group)


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not reach step {step}")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_exits_for_requeue(
    number: signal.Signals, toy_dataset: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(long_config(toy_dataset), run)
    wait_for_step(run, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == EXIT_REQUEUE, errors
    assert f"received {number.name}" in errors
    stopped = metrics(run)[-1]["step"]
    saved = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    assert saved["step"] == stopped < STEPS
    process = start(long_config(toy_dataset), run, "--resume")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert losses(run) == losses(whole_run)


def stops(config: Config) -> list[bool]:
    """What three steps say of stopping; rank 1 asks for it in the second."""
    from megadna.data.loader import train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    tokenizer = build_tokenizer(config.tokenizer)
    with parallel_world(config.engine, config.parallel) as world:
        place = {"rank": world.data_rank, "size": world.data_size}
        batches = train_batches(config, tokenizer, sequence_length=128, consumed_samples=0, **place)
        state = build_state(config, tokenizer.vocab_size, world)
        asks = [world.rank == 1 and step == 1 for step in range(3)]
        return [train_step(state, batches, config, world, sequence_length=128, stop=[ask].pop).stop for ask in asks]


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}, {"pipeline": 2}])
def test_all_ranks_stop_after_the_step_in_which_one_asks(layout: dict[str, int], toy_dataset: Path) -> None:
    assert run_ranks(stops, 2, toy_config(toy_dataset, **layout)) == [[False, True, False]] * 2


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_saves_too(toy_dataset: Path, tmp_path: Path) -> None:
    """As a terminal, `timeout` and torchrun send it: loader workers and writers of checkpoints get it as well."""
    config = long_config(toy_dataset)
    config = replace(config, data=replace(config.data, num_workers=1), train=replace(config.train, steps=10_000))
    process = start(config, tmp_path / "run", own_group=True)
    wait_for_step(tmp_path / "run", 9)  # the first checkpoint is written or being written
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == EXIT_REQUEUE, errors
    saved = json.loads((tmp_path / "run" / "checkpoints" / "latest" / "state.json").read_text())
    assert saved["step"] == metrics(tmp_path / "run")[-1]["step"] < 10_000


@pytest.mark.slow
def test_the_time_limit_does_the_same(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = long_config(toy_dataset)
    config = replace(config, train=replace(config.train, steps=10_000, exit_after_minutes=0.02))
    process = start(config, run)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == EXIT_REQUEUE, errors
    assert "stopping after this step" in errors
    assert (run / "checkpoints" / "latest" / "complete").is_file()


@pytest.mark.slow
def test_five_kills_of_a_whole_run(toy_dataset: Path, whole_run: Path, tmp_path: Path) -> None:
    """kill -9 of all ranks at five moments; the log is that of the run that nobody killed."""
    run = tmp_path / "run"
    for kill in range(5):
        resumable = (run / "checkpoints" / "latest").exists()
        process = start(long_config(toy_dataset), run, "--resume" if resumable else "--overwrite")
        wait_for_step(run, 4 + 5 * kill)
        kill_all(process)
    process = start(long_config(toy_dataset), run, "--resume")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert metrics(run) == metrics(whole_run)


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def kill_all(process: subprocess.Popen) -> None:
    """kill -9, and wait until every process is gone, and with it its lock: on a busy machine that takes a while."""
    import psutil

    killed = [psutil.Process(pid) for pid in children(process.pid)]
    for one in killed:
        one.kill()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(killed, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--model.num_layers", "2"), ("model.num_layers", "4", "2")),
        (("--seed", "9"), ("seed", "1234", "9")),
        (("--data.sequence_length", "64"), ("data.sequence_length", "128", "64")),
    ],
)
def test_resume_refuses_what_must_not_change(
    option: tuple[str, str], words: tuple[str, ...], toy_dataset: Path, whole_run: Path
) -> None:
    config = replace(long_config(toy_dataset), engine=replace(long_config(toy_dataset).engine, num_processes=1))
    process = start(config, whole_run, "--resume", *option)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    line = errors.strip().splitlines()[-1]
    assert line.startswith("megadna: error:") and all(word in line for word in words)


@pytest.mark.slow
def test_resume_follows_a_new_learning_rate_and_says_so(toy_dataset: Path, whole_run: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    process = start(long_config(toy_dataset), run, "--resume", *shlex.split("--train.steps 32 --train.lr 5e-4"))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "train.lr 0.0005 instead of 0.001" in errors
    rates = [line["lr"] for line in metrics(run) if "lr" in line]
    assert len(rates) == 32 and 0 < rates[-1] < 5e-4


def poisoned_training(config: Config, run: Path, bad: tuple[int, int], value: float) -> str:
    """Train with the loss weights of the samples `bad` set to `value`, on whichever rank meets them."""
    from collections.abc import Iterator

    from megadna.data.batch import Batch
    from megadna.errors import Diverged
    from megadna.train import loop

    original = loop.train_batches

    class Poisoned:
        def __init__(self, **arguments: object) -> None:
            self.batches = original(**arguments)  # type: ignore[arg-type]
            self.metrics = self.batches.metrics
            self.close = self.batches.close

        def __iter__(self) -> Iterator[Batch]:
            return self

        def __next__(self) -> Batch:
            batch = next(self.batches)
            for row, sample in enumerate(batch.samples_B.tolist()):
                if bad[0] <= sample < bad[1]:
                    batch.weights_BS[row] = value
            return batch

    loop.train_batches = lambda config, tokenizer, **rest: Poisoned(config=config, tokenizer=tokenizer, **rest)  # type: ignore
    try:
        run_training(config, run)
    except Diverged as error:
        return str(error)
    return ""


def test_a_step_with_nan_on_one_rank_is_skipped_on_all(toy_dataset: Path, tmp_path: Path) -> None:
    config = replace(long_config(toy_dataset), train=replace(long_config(toy_dataset).train, steps=6))
    run = tmp_path / "run"
    assert run_ranks(poisoned_training, 2, config, run, (17, 18), float("nan")) == ["", ""]
    lines = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["first_sample"], line["end_sample"]) for line in lines] == [(3, 16, 24)]
    found = losses(run)
    assert [loss is not None for loss in found] == [True, True, False, True, True, True]


def test_bad_steps_in_a_row_roll_back_and_leave_the_samples_out(toy_dataset: Path, tmp_path: Path) -> None:
    """Steps 9 to 11 are poisoned: back to checkpoint 7, and on without their samples; the run ends sound."""
    config = replace(long_config(toy_dataset), train=replace(long_config(toy_dataset).train, steps=14))
    run = tmp_path / "run"
    assert run_ranks(poisoned_training, 2, config, run, (64, 88), float("nan")) == ["", ""]
    assert len((run / "skipped.jsonl").read_text().splitlines()) == 3
    saved = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    assert saved["step"] == 14 and saved["skipped"] == [[64, 88]] and saved["consumed_samples"] == 14 * 8
    assert None not in losses(run) and len(losses(run)) == 14


@pytest.mark.slow
def test_endless_bad_steps_end_the_run(toy_dataset: Path, tmp_path: Path) -> None:
    config = long_config(toy_dataset)
    messages = run_ranks(poisoned_training, 2, config, tmp_path / "run", (64, 10_000), float("inf"))
    assert all("bad updates in a row" in message and "skipped.jsonl" in message for message in messages)


def test_a_spike_is_told_from_the_usual_scatter() -> None:
    guard = FaultGuard(8.0, None)
    for step in range(50):
        assert guard.problem(1.0 + 0.01 * (step % 7), 2.0 + 0.1 * (step % 5)) == ""
    assert "loss 3" in guard.problem(3.0, 2.0)
    assert "gradient norm 90" in guard.problem(1.0, 90.0)
    assert guard.problem(0.5, 1.0) == ""
    assert "nan" in FaultGuard(0.0, None).problem(float("nan"), 1.0)
