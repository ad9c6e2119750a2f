"""Writing files and folders: an output is complete or absent under its name, and nothing of others is lost.

A file is written as .NAME.megadna-partial next to its name, a folder as .NAME.partial/new; both are flushed to disk and
renamed last. The process that writes holds a kernel lock (flock), which the kernel releases however the process ends,
and only the holder cleans up. A folder that is replaced is kept as .NAME.partial/old until the new one has its name;
after a kill in between the next command puts it back. Only what megadna wrote is replaced or deleted
(megadna/ownership.py).
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from megadna.errors import UserError, require
from megadna.ownership import (
    MARKER,
    Kind,
    check_folder,
    check_replaceable,
    clear_folder,
    read_mark,
    refuse_occupied,
    resolved,
)

log = logging.getLogger(__name__)

LOCK = ".megadna.lock"
"""File in a work folder; the process that has locked it owns the folder."""
NEW = "new"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary file that is renamed to `path` when the block succeeds, and deleted otherwise.

    Another process that writes the same file waits. Without `replace`, UserError where `path` exists.
    """
    path = resolved(path)
    if not replace or path.is_dir():
        refuse_occupied(path, is_file=True)
    require(not path.exists() or path.is_file(), f"{path}: is a device or a pipe; name a file")
    temporary = path.with_name(f".{path.name}.megadna-partial")
    with _one_line(path):
        descriptor = _locked(temporary, path, wait=True)
        done = False
        try:
            os.ftruncate(descriptor, 0)
            yield temporary
            sync(temporary)
            temporary.replace(path) if replace else _move_new(temporary, path)
            done = True
            sync(path.parent)
        finally:
            if not done:
                temporary.unlink(missing_ok=True)
            _release(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def mark(folder: Path, kind: str, **facts: Any) -> None:
    """State in `folder` what it is: the proof that megadna may delete it, and may continue in it."""
    content = {"program": "megadna", "kind": kind, **facts}
    if read_mark(folder) != content:
        write_json(folder / MARKER, content)


class Claim:
    """An output that only this process writes, and the work folder next to it."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output, self.folder, self.new, self._old = output, folder, folder / NEW, folder / "old"
        self.is_kept = False
        """Whether the work folder is kept when the block ends, for a later command to continue with."""
        self._recover()
        self._before = _identity(output)

    def fresh(self) -> Path:
        """The folder to write into, empty; leftovers are deleted."""
        self._clear()
        self.new.mkdir()
        return self.new

    def publish(self, kind: Kind | None = None) -> None:
        """Flush `new` to disk and rename it to the output; with `kind`, the output that was there before is deleted.

        UserError where the output has changed meanwhile; then what was written is kept under another name.
        """
        sync_tree(self.new)
        if _identity(self.output) != self._before:
            _set_aside(self.new, self.output)
        if self._before is not None:
            assert kind is not None
            try:
                check_replaceable(self.output, kind)
            except UserError:
                _set_aside(self.new, self.output)
            self.output.rename(self._old)
        try:
            self.new.rename(self.output)
        except OSError:
            self.is_kept = True  # nothing is deleted while it is unclear which is which
            if self._old.exists():
                self._recover()
            _set_aside(self.new, self.output)
        sync(self.output.parent)

    def _recover(self) -> None:
        """Put back a former output that a kill left set aside; delete one that was already replaced."""
        if not os.path.lexists(self._old):
            return
        if not os.path.lexists(self.new):
            shutil.rmtree(self._old)
            return
        try:
            self._old.rename(self.output)
        except OSError as error:
            raise UserError(
                f"{self._old}: is what {self.output} was before a command that replaced it was stopped, and "
                f"{self.output} exists again; move one of them away"
            ) from error
        log.warning("%s: put back; a command that replaced it was stopped half-way", self.output)

    def _clear(self) -> None:
        """Delete all but the lock. `new` loses its name first: a kill must not leave half of it to be reused."""
        doomed = self.folder / "doomed"
        if doomed.exists():
            shutil.rmtree(doomed)
        if self.new.exists():
            self.new.rename(doomed)
        clear_folder(self.folder, keep=[LOCK])

    def close(self) -> None:
        """Delete the work folder, the lock last."""
        if not self.is_kept:
            with suppress(OSError):
                self._clear()
                (self.folder / LOCK).unlink()
                self.folder.rmdir()


@contextmanager
def claimed(output: Path, folder: Path | None = None) -> Iterator[Claim]:
    """Lock `output` and its work folder (.NAME.partial next to it) during the block; then the folder is deleted.

    UserError where another process has the lock, or where something other than a work folder has its name. A former
    output that a kill left set aside is put back.
    """
    output = resolved(output)
    folder = work_folder(output).parent if folder is None else resolved(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    descriptor = None
    try:
        with _one_line(output):
            descriptor = _enter(folder, output)
            claim = Claim(output, folder)
            try:
                yield claim
            finally:
                claim.close()
    finally:
        if descriptor is not None:
            _release(descriptor)
        for parent in made:  # those that a failed command leaves empty
            with suppress(OSError):
                parent.rmdir()


def work_folder(output: Path) -> Path:
    """The folder that is renamed to `output` when it is complete; other ranks write there too."""
    output = resolved(output)
    return output.with_name(f".{output.name}.partial") / NEW


@contextmanager
def atomic_folder(output: Path, kind: Kind | None = None, remedy: str = "") -> Iterator[Path]:
    """An empty folder that is renamed to `output` when the block succeeds, and deleted otherwise.

    UserError where `output` is occupied, unless it is of `kind` (--overwrite): that is kept until the new one is
    complete.
    """
    check_folder(output, kind, remedy)
    with claimed(output) as claim:
        check_folder(claim.output, kind, remedy)  # a former output may have been put back
        yield claim.fresh()
        claim.publish(kind)


def publish_files(folder: Path, target: Path) -> list[Path]:
    """Move the finished files of `folder` to the folder `target`, replacing none; after a kill, call it again to
    complete it. UserError where a name is taken; the file is kept under another."""
    sync_tree(folder)
    files = sorted(folder.iterdir())
    for file in files:
        _move_new(file, target / file.name)
    sync(target)
    return [target / file.name for file in files]


def sync_tree(folder: Path) -> None:
    """Flush every file of `folder` and its names to disk."""
    for parent, _, files in os.walk(folder):
        for name in [*(name for name in files if not Path(parent, name).is_symlink()), ""]:
            sync(Path(parent, name))


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(output: Path) -> tuple[int, int] | None:
    """What distinguishes outputs of the same name; None where it is free: absent or an empty folder."""
    try:
        status = output.stat()
    except FileNotFoundError:
        return None
    is_free = output.is_dir() and not any(output.iterdir())
    return None if is_free else (status.st_dev, status.st_ino)


def _move_new(source: Path, target: Path) -> None:
    """Rename the file `source`, unless `target` exists: by a hard link, which is atomic, where there are any."""
    try:
        os.link(source, target)
    except FileExistsError:
        if not source.samefile(target):  # the same: a kill came before the next line
            _set_aside(source, target)
    except OSError:
        if os.path.lexists(target):
            _set_aside(source, target)
        source.rename(target)
        return
    source.unlink()


def _set_aside(source: Path, target: Path) -> None:
    """Keep what was written under another name; always raises UserError, which names it."""
    spare = next(path for number in count(2) if not os.path.lexists(path := Path(f"{target}.{number}")))
    source.rename(spare)
    raise UserError(
        f"{target}: was made or changed by another process meanwhile and is left as it is; what this command wrote is "
        f"{spare}"
    )


def _enter(folder: Path, output: Path) -> int:
    """Descriptor of the lock of a work folder, which is made if it is absent."""
    try:
        return _locked(folder / LOCK, output, wait=False)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        where = f"{error.filename or folder}: {error.strerror}"
        raise UserError(f"{output}: cannot be made ({where}); choose another --output") from error


def _locked(path: Path, output: Path, *, wait: bool) -> int:
    """Descriptor of the locked file `path`, created if absent: a file being written, for which others wait, or the lock
    of a work folder, which then names this process."""
    for _ in range(1000):  # another process may remove the file, or its folder, as it is opened
        if not wait:
            _make_work_folder(path.parent, output)
        is_new = not path.exists()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if wait:
                raise
            continue
        try:
            _lock(descriptor, path, output, wait=wait, is_new=is_new)
            if _is_at(descriptor, path):
                if not wait:
                    holder = (
                        f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}, on {socket.gethostname()}"
                    )
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{holder}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise UserError(f"{output}: cannot be locked, as other processes keep replacing it; stop them first")


def _make_work_folder(folder: Path, output: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {entry.name for entry in folder.iterdir()}
    require(not names or LOCK in names, f"{folder}: blocks {output} and megadna did not make it; move it away")


def _release(descriptor: int) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also in the processes that this one has forked
    os.close(descriptor)


def _lock(descriptor: int, path: Path, output: Path, *, wait: bool, is_new: bool) -> None:
    holder = "" if wait else os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = f" ({holder})" if holder else ""
        raise UserError(f"{output}: another process is writing it{who}; wait for it, or stop it") from error
    except OSError as error:  # NFS without its lock service, Lustre without -o flock
        if not (is_new or wait):
            raise UserError(
                f"{path.parent}: whether {holder or 'another process'} still writes there cannot be told on this file "
                f"system ({error.strerror}); if none does, remove that folder"
            ) from error
        log.warning("%s: cannot be locked (%s); make sure that no other process writes it", output, error.strerror)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the file that was opened."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    return False


@contextmanager
def _one_line(output: Path) -> Iterator[None]:
    """Turn a full disk into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = error.filename or output
        raise UserError(f"{where}: {error.strerror}; free disk space or choose another --output") from error
