"""A run folder has one writer, whatever dies: a second training is refused while any process of the first lives."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from megadna.cli import main
from megadna.errors import UserError
from megadna.ownership import clear_folder, is_unused
from megadna.train.run_folder import NAME, running

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
HOLD = """
import os, sys
from pathlib import Path
from megadna.train.run_folder import running
with running(Path(sys.argv[1])):
    if "fork" in sys.argv:
        os.fork()
    sys.stdout.write(f"{os.getpid()}\\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0) if "fork" in sys.argv else None
"""


@contextmanager
def held(run: Path, *options: str) -> Iterator[subprocess.Popen]:
    """A process that trains in `run`, as far as others can see; it ends in good order with the block."""
    command = [sys.executable, "-c", HOLD, str(run), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        yield process
        process.communicate("")


def test_a_second_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with held(run) as process:
        link = tmp_path / "link"
        link.symlink_to(run)
        for path in (run, link, Path(os.path.relpath(run))):
            words = rf"another megadna train is writing here \(process {process.pid}, since "
            with pytest.raises(UserError, match=words), running(path):
                pass
        assert (run / NAME).read_text().startswith(f"process {process.pid}, ")
    assert not (tmp_path / "runs").exists()  # made by it, and left empty
    with running(run):
        assert is_unused(run, NAME)


def test_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.kill()
        process.wait()
    assert (tmp_path / NAME).exists() and is_unused(tmp_path, NAME)
    with running(tmp_path):
        assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()}, ")
    assert not (tmp_path / NAME).exists()


def test_what_a_killed_one_has_forked_holds_the_folder_still(tmp_path: Path) -> None:
    with held(tmp_path, "fork") as process:
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        with pytest.raises(UserError, match="another megadna train"), running(tmp_path):
            pass
        child.kill()
        child.wait(10)
    with running(tmp_path):
        pass


def test_one_of_another_machine_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with held(tmp_path):
        (tmp_path / NAME).write_text("process 1, since 2026-11-21 12:00:00, on elsewhere\n")
        with running(tmp_path):
            assert "on elsewhere" in caplog.text
        assert (tmp_path / NAME).read_text().endswith("on elsewhere\n")


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / NAME).write_text("process 1, since 2026-11-21 12:00:00, on this\n")
    with running(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text and len(caplog.records) == 1
    assert not (tmp_path / NAME).exists()


def test_a_lock_on_a_file_that_was_just_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ends between a second's opening of the file and its lock; a third would lock a new file."""
    lock = fcntl.flock

    def after_the_first_has_ended(descriptor: int, operation: int) -> None:
        (tmp_path / NAME).unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_first_has_ended)
    with pytest.raises(UserError, match="has just ended here; start again"), running(tmp_path):
        pass


def test_a_folder_in_the_lock_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=r"\.running: cannot be written \(Is a directory\)"), running(tmp_path):
        pass


def test_emptying_leaves_the_lock_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    run = tmp_path / "run"
    with running(run):
        (run / "checkpoints" / "step-00000001").mkdir(parents=True)
        (run / "log.txt").touch()
        (run / "dataset").symlink_to(tmp_path / "elsewhere")
        clear_folder(run, keep=[NAME])
        assert [path.name for path in run.iterdir()] == [NAME]
    assert (tmp_path / "elsewhere" / "mine").exists()


def test_a_file_as_output_is_named(toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run"
    file.write_text("mine\n")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(CONFIG), "--output", str(file), "--data.path", str(toy_dataset)])
    assert stop.value.code == 2 and f"{file}: is a file" in capsys.readouterr().err
    assert file.read_text() == "mine\n"


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_a_run_that_is_written_is_neither_deleted_nor_joined(
    option: str, toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").write_text("step 1\n")
    train = ["train", "--config", str(CONFIG), "--output", str(tmp_path), "--data.path", str(toy_dataset)]
    with held(tmp_path) as holder:
        with pytest.raises(SystemExit) as stop:
            main([*train, "--data.sequence_length", "128", option])
        assert stop.value.code == 2 and f"process {holder.pid}" in capsys.readouterr().err
        assert (tmp_path / "log.txt").read_text() == "step 1\n"
        holder.send_signal(signal.SIGSTOP)  # stopped is not gone
        with pytest.raises(SystemExit):
            main([*train, "--data.sequence_length", "128", option])
        holder.send_signal(signal.SIGCONT)


def test_a_refused_start_leaves_no_folder(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    train = ["train", "--config", str(CONFIG), "--output", str(run), "--data.path", str(toy_dataset)]
    with pytest.raises(SystemExit):
        main([*train, "--data.sequence_length", "128", "--checkpoint.init_from", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main([*train, "--data.sequence_length", "128", "--resume"])
    assert list(tmp_path.iterdir()) == []
