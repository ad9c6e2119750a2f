"""Writers: whole or absent, one at a time, and nothing of others is lost, whenever a process is killed."""

import json
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megadna import files
from megadna.errors import UserError
from megadna.files import (
    LOCK,
    atomic_file,
    atomic_folder,
    claimed,
    mark,
    publish_files,
    work_folder,
    write_json,
    write_text,
)
from megadna.ownership import (
    MARKER,
    Kind,
    check_folder,
    check_replaceable,
    clear_folder,
    read_mark,
    refuse_foreign,
    refuse_occupied,
    refuse_replacing,
)

FORK = multiprocessing.get_context("fork")
NOTES = Kind(name="notebook", files=lambda folder: r"\d+\.txt" if read_mark(folder).get("kind") == "notebook" else None)


def make(folder: Path, text: str, kind: Kind | None = None, count: int = 3) -> None:
    """Write a notebook of `count` files that all say `text`."""
    with atomic_folder(folder, kind) as work:
        for number in range(count):
            (work / f"{number}.txt").write_text(text)
        mark(work, "notebook")


def text_of(folder: Path) -> str:
    """What a whole notebook says; fails where its files disagree or some are missing."""
    texts = {(folder / f"{number}.txt").read_text() for number in range(3)}
    assert len(texts) == 1 and read_mark(folder)["kind"] == "notebook"
    return texts.pop()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def hold(output: Path) -> Iterator[int]:
    """Another process that writes `output`, and has written one file of it; its number."""
    ready = FORK.Event()

    def write() -> None:
        with atomic_folder(output) as work:
            (work / "0.txt").write_text("half")
            ready.set()
            time.sleep(600)

    process = FORK.Process(target=write)
    process.start()
    assert ready.wait(30) and process.pid
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def test_a_second_process_is_refused_and_deletes_nothing(tmp_path: Path) -> None:
    with hold(tmp_path / "a") as pid:
        for kind in (None, NOTES):
            with pytest.raises(UserError, match=rf"a: another process is writing it \(process {pid}, since .* on "):
                make(tmp_path / "a", "second", kind)
        assert (work_folder(tmp_path / "a") / "0.txt").read_text() == "half"
    assert names(tmp_path) == [".a.partial"]  # of the killed one
    make(tmp_path / "a", "third")
    assert text_of(tmp_path / "a") == "third" and names(tmp_path) == ["a"]


def test_two_that_start_at_once_make_one_whole_output(tmp_path: Path) -> None:
    start, outcomes = threading.Barrier(2), []

    def run(text: str) -> None:
        start.wait()
        try:
            make(tmp_path / "a", text)
            outcomes.append(text)
        except UserError as error:
            outcomes.append(str(error))

    for _ in range(8):
        outcomes.clear()
        threads = [threading.Thread(target=run, args=(text,)) for text in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner = text_of(tmp_path / "a")
        assert winner in outcomes and any("another process" in told or "not empty" in told for told in outcomes)
        assert names(tmp_path) == ["a"]
        clear_folder(tmp_path)


def test_a_lock_whose_folder_was_renamed_or_deleted_between_open_and_lock_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, changes = files.fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not changes:  # what another process does at this very moment
            changes.append(descriptor)
            (tmp_path / ".a.partial" / LOCK).unlink()
            (tmp_path / ".a.partial").rename(tmp_path / "elsewhere")
        real(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    make(tmp_path / "a", "whole")
    assert changes and text_of(tmp_path / "a") == "whole"
    assert names(tmp_path) == ["a", "elsewhere"] and not names(tmp_path / "elsewhere")


def test_a_file_system_without_locks_is_said_and_leftovers_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: int) -> None:
        raise OSError(37, "No locks available")

    with hold(tmp_path / "b"):
        monkeypatch.setattr(files.fcntl, "flock", flock)
        make(tmp_path / "a", "whole")
        assert "cannot be locked (No locks available)" in caplog.text and text_of(tmp_path / "a") == "whole"
        with pytest.raises(
            UserError, match=r"whether process \d+.* still writes there cannot be told .*remove that folder"
        ):
            make(tmp_path / "b", "second")
        assert (work_folder(tmp_path / "b") / "0.txt").read_text() == "half"


def test_what_another_makes_meanwhile_is_left_and_the_own_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "a"

    def meanwhile(kind: Kind | None, change: Callable[[], Any]) -> str:
        with pytest.raises(UserError) as caught, atomic_folder(output, kind) as work:
            (work / "0.txt").write_text("mine")
            change()
        assert not work_folder(output).parent.exists()
        return str(caught.value)

    def theirs() -> None:
        output.mkdir(exist_ok=True)
        (output / "theirs").write_text("theirs")

    assert f"{output}.2" in meanwhile(None, theirs)
    assert (output / "theirs").read_text() == "theirs" and (tmp_path / "a.2" / "0.txt").read_text() == "mine"
    clear_folder(output)
    make(output, "first")
    assert f"{output}.3" in meanwhile(NOTES, theirs)  # a foreign file in what was to be replaced
    assert (output / "theirs").read_text() == "theirs" and text_of(output) == "first"
    (output / "theirs").unlink()
    assert f"{output}.4" in meanwhile(NOTES, lambda: (output.rename(tmp_path / "moved"), make_by_hand(output)))
    assert text_of(tmp_path / "moved") == "first" and text_of(output) == "by hand"
    with (
        pytest.raises(UserError, match=r"x: was made .* is .*x\.2"),
        atomic_file(tmp_path / "x", replace=False) as path,
    ):
        path.write_text("mine")
        (tmp_path / "x").write_text("theirs")
    assert (tmp_path / "x").read_text() == "theirs" and (tmp_path / "x.2").read_text() == "mine"


def make_by_hand(folder: Path) -> None:
    folder.mkdir()
    mark(folder, "notebook")
    for number in range(3):
        (folder / f"{number}.txt").write_text("by hand")


def test_a_former_output_comes_back_after_a_kill_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output, old = tmp_path / "a", tmp_path / ".a.partial" / "old"
    make(output, "first")

    def replace_and_die(step: str) -> None:
        real = Path.rename

        def rename(path: Path, target: Path) -> Path:
            if step == "before" and path.name == "new":
                os.kill(os.getpid(), signal.SIGKILL)
            moved = real(path, target)
            if step == "after" and path.name == "new":
                os.kill(os.getpid(), signal.SIGKILL)
            return moved

        monkeypatch.setattr(Path, "rename", rename)
        make(output, "second", NOTES)

    def die(step: str) -> None:
        process = FORK.Process(target=replace_and_die, args=(step,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    die("before")
    assert not output.exists() and text_of(old) == "first"
    with pytest.raises(UserError, match="not empty"):
        make(output, "third")
    assert "a: put back" in caplog.text and text_of(output) == "first" and names(tmp_path) == ["a"]
    die("before")
    make_by_hand(output)  # nobody knows which of the two is wanted
    with pytest.raises(UserError, match=r"old: is what .*a was before .* exists again"):
        make(output, "third", NOTES)
    assert text_of(old) == "first" and text_of(output) == "by hand"
    clear_folder(output)
    make(output, "third", NOTES)  # the former one is back and is replaced
    assert text_of(output) == "third"
    die("after")
    assert text_of(output) == "second" and old.exists()
    make(output, "third", NOTES)
    assert text_of(output) == "third" and names(tmp_path) == ["a"]


def test_only_what_megadna_wrote_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "a"
    make(output, "first")
    with pytest.raises(UserError, match=r"a: not empty; choose another --output$"):
        make(output, "second")
    (output / "sub").mkdir()
    (output / "sub" / "thesis.tex").write_text("three years")
    (output / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"a: contains 2 files that megadna did not write \(link, \.\.\.\)"):
        make(output, "second", NOTES)
    (output / "link").unlink()
    with pytest.raises(UserError, match=r"a: contains 1 file that megadna did not write \(sub/thesis\.tex\)"):
        make(output, "second", NOTES)
    (output / "sub" / "thesis.tex").rename(tmp_path / "thesis.tex")
    (output / ".0.txt.megadna-partial").write_text("")  # what a kill left of a file
    for content in ("", "{}", "[]", '{"kind": "notebook"}', '{"program": "megadna", "kind": "run"}', "\xff"):
        (output / MARKER).write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match="a: is no notebook that megadna wrote"):
            make(output, "second", NOTES)
    mark(output, "notebook")
    make(output, "second", NOTES)
    assert text_of(output) == "second" and names(output) == [MARKER, "0.txt", "1.txt", "2.txt"]
    (tmp_path / "file").write_text("mine")
    for kind in (None, NOTES):
        with pytest.raises(UserError, match="file: is a file that exists; choose another --output"):
            make(tmp_path / "file", "second", kind)
    assert (tmp_path / "file").read_text() == "mine" and names(tmp_path) == ["a", "file", "thesis.tex"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root may become another user")
def test_a_folder_that_cannot_be_read_is_not_deleted() -> None:
    def check(folder: Path) -> None:
        os.seteuid(65534)
        with pytest.raises(PermissionError):
            check_replaceable(folder, NOTES)

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        make(Path(name, "a"), "first")
        Path(name, "a", "private").mkdir(mode=0o000)
        process = FORK.Process(target=check, args=(Path(name, "a"),))
        process.start()
        process.join()
        assert process.exitcode == 0


def test_links_stay_and_their_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk/data")
    make(tmp_path / "a", "first")  # through a link that leads to nothing yet
    make(tmp_path / "a", "second", NOTES)
    assert (tmp_path / "a").is_symlink() and text_of(tmp_path / "disk" / "data") == "second"
    (tmp_path / "b.json").symlink_to("disk/b.json")
    write_json(tmp_path / "b.json", {"b": 1})
    assert (tmp_path / "b.json").is_symlink() and (tmp_path / "disk" / "b.json").is_file()
    assert names(tmp_path) == ["a", "b.json", "disk"] and names(tmp_path / "disk") == ["b.json", "data"]


def test_outputs_that_are_or_contain_inputs_or_the_current_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    refuse_replacing(tmp_path / "a", [tmp_path / "b", None, "", tmp_path / "ab" / "x"])
    with pytest.raises(UserError, match=r"in/x: lies in the output .*link"):
        refuse_replacing(tmp_path / "link", ["", tmp_path / "a" / "in" / "x"])
    with pytest.raises(UserError, match=r"link: is the output .*/a, "):
        refuse_replacing(tmp_path / "a", [str(tmp_path / "link")])
    monkeypatch.chdir(tmp_path / "a" / "in")
    with pytest.raises(UserError, match="is or contains the current folder"):
        check_folder(Path(), None)
    with pytest.raises(UserError, match="mount point"):
        check_folder(Path("/dev/shm"), Kind(name="disk", files=lambda _: ".*"))


def test_a_work_folder_of_others_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"\.a\.partial: blocks .*a and megadna did not make it; move it away"):
        make(tmp_path / "a", "first")
    assert (tmp_path / ".a.partial" / "notes").read_text() == "mine"
    (tmp_path / ".b.partial").write_text("mine")
    with pytest.raises(UserError, match="b: cannot be made"):
        make(tmp_path / "b", "first")
    assert (tmp_path / ".b.partial").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    for error in (UserError("mistake"), OSError("broken"), KeyboardInterrupt(), Stopped()):
        with pytest.raises(type(error)), atomic_folder(tmp_path / "deep" / "er" / "a") as work:
            (work / "0.txt").write_text("half")
            raise error
        with pytest.raises(type(error)), atomic_file(tmp_path / "b") as path:
            path.write_text("half")
            raise error
        assert names(tmp_path) == []
    write_text(tmp_path / "b", "first")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "b") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_text() == "first"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(UserError, match="a: File too large; free disk space or choose another --output"):
            make(tmp_path / "a", "text" * 1000)
        with pytest.raises(UserError, match="b: File too large; free disk space or choose another --output"):
            write_text(tmp_path / "b", "text" * 1000)

    process = FORK.Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0 and names(tmp_path) == []


def test_files_replace_only_their_like(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    refuse_foreign(file, "plan", "gpu")
    for content in ("mine", "[1]", '{"mine": 1}', "[" * 10_000, "\xff"):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=r"plan\.json: exists and is no plan of megadna"):
            refuse_foreign(file, "plan", "gpu")
    write_json(file, {"gpu": 1})
    refuse_foreign(file, "plan", "gpu")
    assert json.loads(file.read_text()) == {"gpu": 1} and names(tmp_path) == ["plan.json"]
    refuse_occupied(tmp_path / "new")
    with pytest.raises(UserError, match="is a folder; --output names a file"), atomic_file(tmp_path):
        pass
    with pytest.raises(UserError, match="null: is a device or a pipe"), atomic_file(Path("/dev/null")):
        pass
    assert Path("/dev/null").is_char_device()


def test_writers_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(25):
            write_text(tmp_path / "a", f"{number}" * 1000)

    processes = [FORK.Process(target=write, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    text = (tmp_path / "a").read_text()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(text) == 1000 and len(set(text)) == 1 and names(tmp_path) == ["a"]


@pytest.mark.parametrize("has_links", [True, False])
def test_several_files_get_their_names_however_often_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    ready = tmp_path / "ready"
    ready.mkdir()
    for name in ("a", "b", "c"):
        (ready / name).write_text(name)
    real, calls = Path.unlink if has_links else Path.rename, []

    def stop_at_the_second(path: Path, *rest: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(Path, "unlink" if has_links else "rename", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        publish_files(ready, tmp_path)
    publish_files(ready, tmp_path)
    assert [(tmp_path / name).read_text() for name in ("a", "b", "c")] == ["a", "b", "c"] and not names(ready)
    (ready / "a").write_text("new")
    with pytest.raises(UserError, match=r"a: was made .* is .*a\.2"):
        publish_files(ready, tmp_path)
    assert (tmp_path / "a").read_text() == "a" and (tmp_path / "a.2").read_text() == "new"


def kills(tmp_path: Path, rng: random.Random, count: int) -> int:
    """Kill a process that replaces a folder and a file over and over; returns how many kills came before its end."""
    output, file, mine = tmp_path / "a", tmp_path / "b", tmp_path / ".mine"
    mine.write_text("mine")
    make(output, "0")
    write_text(file, "0" * 5000)

    def write(number: int) -> None:
        for round_ in range(200):
            make(output, f"{number}.{round_}", NOTES)
            write_text(file, str(round_ % 10) * 5000)

    killed = 0
    for number in range(count):
        process = FORK.Process(target=write, args=(number,))
        process.start()
        time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        with claimed(output):  # the next command: whatever the moment, one whole output is back
            before = text_of(output)
        text = file.read_text()
        assert before and len(text) == 5000 and len(set(text)) == 1
        assert set(names(tmp_path)) <= {".b.megadna-partial", ".mine", "a", "b"}, number
    make(output, "last", NOTES)
    write_text(file, "last")
    assert text_of(output) == "last" and names(tmp_path) == [".mine", "a", "b"] and mine.read_text() == "mine"
    return killed


def test_kills_at_any_moment_leave_one_whole_output(tmp_path: Path) -> None:
    assert kills(tmp_path, random.Random(7), 15) > 5


@pytest.mark.slow
def test_more_kills_at_any_moment(tmp_path: Path) -> None:
    assert kills(tmp_path, random.Random(8), 200) > 100


@pytest.mark.parametrize("below", ["file/out", "file/a/out"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=rf"{below}: cannot be made, as .*/file is no folder to write in"):
        check_folder(tmp_path / below, None)
    check_folder(tmp_path / "a" / "b", None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
