"""Checkpoints under attack: kills at any moment, full disks, flipped bytes, planted pickles; what retention keeps."""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from toy import toy_config

from megadna.commands import inspect
from megadna.config import CheckpointConfig, Config
from megadna.errors import SaveFailed, UserError
from megadna.train.checkpoint import complete_checkpoints, find_checkpoint
from megadna.train.integrity import MARKER, check, refuse_foreign_pickles, seal
from megadna.train.saving import caught, lasting, superfluous


def save_steps(
    config: Config, run: Path, steps: int, disk_bytes: int | None = None, reserve: int | None = None
) -> int | str:
    """Save `steps` checkpoints without training; returns how many failed, or why the run ended.

    `disk_bytes` limits a file's size, `reserve` is the free space that a save leaves untouched.
    """
    import resource

    from megadna.engine.distributed import parallel_world
    from megadna.train import saving
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    run.mkdir(parents=True, exist_ok=True)
    saving.RESERVE_BYTES = saving.RESERVE_BYTES if reserve is None else reserve
    with parallel_world(config.engine, config.parallel) as world:
        writer = CheckpointWriter(run, config, world, {})
        state = build_state(config, 16, world)
        if disk_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails with an OSError
            resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
        try:
            for _ in range(steps):
                state.step += 1
                writer.save(state, {"valid_bits_per_base": 2.0 - 0.01 * state.step})
                writer.poll()
            writer.finish()
        except SaveFailed as error:
            return str(error)
        return writer.num_failed


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints 1 to 3."""
    run = tmp_path_factory.mktemp("saved") / "run"
    assert run_ranks(save_steps, 1, toy_config(Path("none")), run, 3) == [0]
    return run


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint that a test may damage."""
    folder = tmp_path / "checkpoints" / "step-00000003"
    shutil.copytree(saved / "checkpoints" / "step-00000003", folder)
    return folder


def test_saves_are_whole_and_latest_points_to_the_newest(saved: Path) -> None:
    folders = complete_checkpoints(saved)
    assert [folder.name for folder in folders] == [f"step-0000000{step}" for step in (1, 2, 3)]
    for folder in folders:
        check(folder)
    assert (saved / "checkpoints" / "latest").resolve() == folders[-1].resolve()
    assert not list((saved / "checkpoints").glob(".*partial"))


def test_inspect_lists_what_a_checkpoint_and_a_run_hold(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main([str(saved)])
    printed = capsys.readouterr().out
    assert "3 whole checkpoints" in printed
    assert f"not yet beside baselines: megadna evaluate --model {saved} --split test" in printed
    inspect.main([str(saved / "checkpoints" / "step-00000003"), "--tensors"])
    printed = capsys.readouterr().out
    assert "step 3" in printed and "every checksum fits" in printed and "valid 1.9700" in printed
    assert "optimizer.state.exp_avg.encoder.layers.3.mlp.linear_fc2.weight [64, 128]" in printed


def test_a_flipped_byte_is_seen_and_named(checkpoint: Path) -> None:
    for name in json.loads((checkpoint / MARKER).read_text()):
        path = checkpoint / name
        whole = path.read_bytes()
        position = random.Random(name).randrange(len(whole))
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
            check(checkpoint)
        path.write_bytes(whole)
    check(checkpoint)


class Payload:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/megadna-was-here",)


def test_a_planted_pickle_is_refused_and_not_run(checkpoint: Path) -> None:
    weights = checkpoint / "weights"
    refuse_foreign_pickles(weights)
    metadata, common = (weights / ".metadata").read_bytes(), (weights / "common.pt").read_bytes()
    (weights / ".metadata").write_bytes(pickle.dumps(Payload()))
    seal(checkpoint)  # an attacker would forge the checksums too
    check(checkpoint)
    with pytest.raises(UserError, match=r"\.metadata: refused.*system"):
        refuse_foreign_pickles(weights)
    (weights / ".metadata").write_bytes(metadata)
    torch.save({"optimizer": Payload()}, weights / "common.pt")
    with pytest.raises(UserError, match=r"common\.pt: refused"):
        refuse_foreign_pickles(weights)
    (weights / "common.pt").write_bytes(common)
    refuse_foreign_pickles(weights)
    assert not Path("/tmp/megadna-was-here").exists()


@pytest.mark.slow
def test_a_full_disk_fails_the_save_and_keeps_what_was_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = toy_config(Path("none"))
    assert run_ranks(save_steps, 2, config, run, 1) == [0, 0]
    assert run_ranks(save_steps, 2, config, run, 2, 100_000) == [2, 2]
    assert find_checkpoint(run).name == "step-00000001"
    assert not list((run / "checkpoints").glob(".*partial"))


@pytest.mark.parametrize(("disk_bytes", "reserve"), [(100_000, None), (None, 1 << 60)])
def test_a_run_ends_after_as_many_failed_saves_as_asked_for(
    tmp_path: Path, disk_bytes: int | None, reserve: int | None
) -> None:
    """Whether the disk fills up or has no room from the first, nothing is left of the saves."""
    config = replace(toy_config(Path("none")), checkpoint=CheckpointConfig(max_failed=2))
    (message,) = run_ranks(save_steps, 1, config, tmp_path / "run", 4, disk_bytes, reserve)
    assert "2 saves failed in a row" in message and "step 2" in message and "--resume" in message
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_the_next_start_clears_its_own_leftovers_and_retention_leaves_copies_alone(tmp_path: Path) -> None:
    config = replace(toy_config(Path("none")), checkpoint=CheckpointConfig(keep_last=1, keep_every=2))
    assert run_ranks(save_steps, 1, config, tmp_path, 1) == [0]
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000001", folder / "step-00000001-paper")
    for name in (".step-00000009.0a1b2c3d.partial", ".step-mine.partial"):
        (folder / name).mkdir()
    assert run_ranks(save_steps, 1, config, tmp_path, 3) == [0]
    kept = {"step-00000002", "step-00000003", "step-00000001-paper", ".step-mine.partial", "latest"}
    assert {entry.name for entry in folder.iterdir()} == kept


def test_a_rank_that_is_gone_is_not_a_failed_save() -> None:
    def fails_with(error: Exception) -> None:
        raise error

    full = OSError("No space left on device")
    assert caught(partial(fails_with, full)) is full
    gone = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:26543")
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        caught(partial(fails_with, gone))


@pytest.mark.slow
def test_a_disk_that_fills_up_while_shards_are_written(tmp_path: Path) -> None:
    """A tmpfs (mounted by root) with room for less than a checkpoint, and then for one."""
    disk, config = tmp_path / "disk", toy_config(Path("none"))
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        from megadna.model.shapes import num_parameters

        room = 14 * num_parameters(config.model, 16) + (64 << 10)  # what a save asks for; fp32 needs 16 a weight
        (disk / "filler").write_bytes(bytes((8 << 20) - room))
        assert run_ranks(save_steps, 1, config, disk / "run", 1, None, 0) == [1]
        assert not complete_checkpoints(disk / "run")
        (disk / "filler").unlink()
        assert run_ranks(save_steps, 1, config, disk / "run", 1, None, 0) == [0]
        check(find_checkpoint(disk / "run"))
        assert not list((disk / "run" / "checkpoints").glob(".*partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_retention_keeps_the_last_the_best_and_every_nth(tmp_path: Path) -> None:
    bits = {100: 1.90, 200: 1.95, 300: 1.96, 400: 1.97, 500: 1.98}
    found = {tmp_path / f"step-{step:08d}": {"valid_bits_per_base": value} for step, value in bits.items()}
    config = CheckpointConfig(keep_last=1, keep_every=300, keep_best=1)
    assert [folder.name[-3:] for folder in superfluous(found, config)] == ["200", "400"]
    assert superfluous(dict(list(found.items())[:1]), config) == []
    assert sorted(folder.name[-3:] for folder in lasting(found, config)) == ["100", "300"]
    by_group = {folder: {**numbers, "valid_bits_per_base_macro": 2.0} for folder, numbers in found.items()}
    by_group[tmp_path / "step-00000400"]["valid_bits_per_base_macro"] = 1.5
    assert sorted(folder.name[-3:] for folder in lasting(by_group, config)) == ["300", "400"]


def _saver(config: Config, run: Path, ready: Path) -> None:
    """Child of the kill loop: saves for ever, as fast as it can."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    torch.set_num_threads(1)
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        writer = CheckpointWriter(run, config, world, {})
        found = complete_checkpoints(run)
        state.step = int(found[-1].name[-8:]) if found else 0
        while True:
            state.step += 1
            writer.save(state, {})
            ready.touch()
            writer.poll()


@pytest.mark.slow
def test_kills_leave_only_whole_checkpoints(tmp_path: Path) -> None:
    """kill -9 at 15 random moments: what counts as a checkpoint is whole, and the newest never goes back."""
    config = replace(toy_config(Path("none")), checkpoint=CheckpointConfig(keep_last=2))
    run, ready = tmp_path / "run", tmp_path / "ready"
    run.mkdir()
    rng = random.Random(5)
    newest = 0
    # The savers are forks of a small server, not of this process: its threads may hold locks that a fork would inherit.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["megadna.train.saving", "megadna.train.step"])
    for _ in range(15):
        ready.unlink(missing_ok=True)
        process = processes.Process(target=_saver, args=(config, run, ready))
        process.start()
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline and process.is_alive(), "the saver did not start"
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 2.0))
        process.kill()
        process.join()
        for folder in complete_checkpoints(run):
            check(folder)
            refuse_foreign_pickles(folder / "weights")
        found = complete_checkpoints(run)
        step = int(found[-1].name[-8:]) if found else 0
        assert step >= newest
        newest = step
    assert newest > 3  # how far the saver came is up to the machine
