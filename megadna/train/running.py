"""One run folder, one training: the process that started it holds RUN/.running until it ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from megadna.errors import UserError
from megadna.log import get_logger

log = get_logger(__name__)
NAME = ".running"


def refuse_running(run: Path) -> None:
    """UserError where a process of this machine trains in `run`.

    The lock is POSIX's: forks do not inherit it and it ends with its process. One of another machine may be what a dead
    node left on a network file system, so that is a warning.
    """
    try:
        file = (run / NAME).open("r+")
    except FileNotFoundError:
        return
    with file:
        holder = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:  # somebody has it, or the file system knows no locks
            pass
    if holder.endswith(f" on {socket.gethostname()}"):
        raise UserError(f"{run}: another megadna train writes here ({holder}); stop it first, or give another --output")
    log.warning("%s: another megadna train may be writing here (%s)", run, holder)


@contextmanager
def running(run: Path) -> Iterator[None]:
    """Hold `run` while the block lasts; where the file system knows no locks, only say who is there."""
    path = run / NAME
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            log.warning("%s: cannot be locked (%s)", path, error.strerror)
        file.write(f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}, on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
