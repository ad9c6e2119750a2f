"""Ranks started from one plain command: the first failure's status is the command's, and no rank is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megadna import processes as launch

RANK = """
import os, sys, time
rank = int(os.environ["RANK"])
open(os.path.join(sys.argv[-1], f"pid-{rank}"), "w").write(str(os.getpid()))
if sys.argv[1] == "fail" and rank == 1:
    sys.exit(7)
time.sleep(60 if sys.argv[1] in ("fail", "sleep") else 0)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the command that ranks run, found before the real one."""
    (tmp_path / "megadna").mkdir()
    (tmp_path / "megadna" / "__main__.py").write_text(RANK)
    (tmp_path / "megadna" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_all_ranks_run_to_the_end(package: Path) -> None:
    assert launch.run_ranks(3, ["ok", str(package)]) == 0
    assert all((package / f"pid-{rank}").is_file() for rank in range(3))


def test_a_failing_rank_ends_the_others(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    assert launch.run_ranks(2, ["fail", str(package)]) == 7
    assert not any(alive(int((package / f"pid-{rank}").read_text())) for rank in range(2))


def test_a_killed_rank_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    killer = threading.Thread(target=_kill_when_there, args=(package / "pid-1",))
    killer.start()
    assert launch.run_ranks(2, ["sleep", str(package)]) == 128 + signal.SIGKILL
    killer.join()
    assert "rank 1 was killed by SIGKILL" in capfd.readouterr().err
    assert not any(alive(int((package / f"pid-{rank}").read_text())) for rank in range(2))


def _kill_when_there(pid_file: Path) -> None:
    while not (pid_file.is_file() and pid_file.read_text()):
        time.sleep(0.05)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_sigterm_reaches_every_rank(package: Path) -> None:
    code = f"from megadna_launch import run_ranks; import sys; sys.exit(run_ranks(2, ['sleep', {str(package)!r}]))"
    (package / "megadna_launch.py").write_text(Path(launch.__file__).read_text())
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not all((package / f"pid-{rank}").is_file() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    parent.terminate()
    assert parent.wait(30) != 0
    assert not any(alive(int((package / f"pid-{rank}").read_text())) for rank in range(2))
