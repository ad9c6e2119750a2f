"""One run folder, one training: who starts it locks RUN/.running, and the lock lasts as long as any of its processes.

The lock is flock's: what a process forks, and the ranks that the launcher starts, hold it as well. So it is free only
once the last process that could write into the folder has ended, however the others ended.
"""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from megadna.errors import UserError
from megadna.log import get_logger

log = get_logger(__name__)
NAME = ".running"


@contextmanager
def running(run: Path) -> Iterator[list[int]]:
    """Hold `run`, made where it is absent, while the block lasts; yields the descriptors that keep the lock.

    UserError where a process of this machine holds it. A lock of another machine is a warning, as on a network file
    system it may be what a dead node left; so is a file system without locks.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file; --output names the run folder")
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / NAME
    descriptor = _open(path)
    try:
        if not _lock(descriptor, path):
            yield []
            return
        os.ftruncate(descriptor, 0)
        holder = f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}, on {socket.gethostname()}\n"
        os.pwrite(descriptor, holder.encode(), 0)
        try:
            yield [descriptor]
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
        for folder in made:  # those that a refused start leaves empty
            with suppress(OSError):
                folder.rmdir()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); one file there tells that a training runs: remove what is "
            "in its place, or give another --output"
        ) from error


def _lock(descriptor: int, path: Path) -> bool:
    """Lock the open file `path`; False where one of another machine holds it, UserError where one of this does."""
    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        host = re.search(r" on (\S+)$", holder)
        if host is None or host[1] == socket.gethostname():
            who = holder or "it has not yet said which process"
            raise UserError(
                f"{path.parent}: another megadna train writes here ({who}); stop it first, or give another --output"
            ) from error
        log.warning("%s: another megadna train may be writing here (%s)", path.parent, holder)
        return False
    except OSError as error:
        log.warning("%s: cannot be locked (%s); see to it that no other training writes here", path, error.strerror)
        return True
    if not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):  # one that ended just now took it
        raise UserError(f"{path.parent}: another megadna train has just ended here; start again")
    return True
