"""One training in a run folder: a second is refused while the first lives, however it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from megadna.cli import main
from megadna.errors import UserError
from megadna.train.running import NAME, refuse_running, running

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
HOLD = """
import sys
from pathlib import Path
from megadna.train.running import running
with running(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def hold(run: Path) -> subprocess.Popen:
    """A process that trains in `run`, as far as others can see."""
    command = [sys.executable, "-c", HOLD, str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def test_a_second_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    refuse_running(tmp_path)
    process = hold(tmp_path)
    with pytest.raises(UserError, match=rf"another megadna train writes here \(process {process.pid}, since "):
        refuse_running(tmp_path)
    process.communicate("")
    assert not (tmp_path / NAME).exists()
    refuse_running(tmp_path)


def test_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / NAME).exists()
    refuse_running(tmp_path)
    with running(tmp_path):
        pass


def test_one_of_another_machine_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = hold(tmp_path)
    (tmp_path / NAME).write_text("process 1, since 2026-11-21 12:00:00, on elsewhere\n")
    refuse_running(tmp_path)
    assert "on elsewhere" in caplog.text
    process.communicate("")


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
    holder = hold(tmp_path)
    train = ["train", "--config", str(CONFIG), "--output", str(tmp_path), "--data.path", str(toy_dataset)]
    with pytest.raises(SystemExit) as stop:
        main([*train, "--data.sequence_length", "128", option])
    assert stop.value.code == 2 and f"process {holder.pid}" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text() == "step 1\n"
    holder.communicate("")
