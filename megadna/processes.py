"""Several ranks on this machine from one plain command: `megadna train --engine.num_processes 2`.

Each rank is the same command again; RANK, LOCAL_RANK, WORLD_SIZE and a rendezvous file state its rank. Here and
wherever else a process starts another one, that one ends with it (`die_with_parent`), even after a SIGKILL. And what
the CPU under them has (`has_bf16_instructions`).
"""

import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a run to save and stop (train/faults.py)."""
GRACE_SECONDS = 20.0
STORE = "MEGADNA_STORE"
"""Environment variable that names the rendezvous file."""
LAUNCHER = "MEGADNA_LAUNCHER"
"""Environment variable with the process number of the one that started this process."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_SECONDS = 1.0


@functools.cache
def has_bf16_instructions() -> bool:
    """Whether Linux lists those of AVX-512, AMX or Arm among the flags of the CPU."""
    with suppress(OSError):
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()))
    return False


def launched_here() -> bool:
    """Whether run_ranks started this rank; then the launcher has checked everything and made the run folder."""
    return STORE in os.environ


def end_with_launcher() -> None:
    """End this process when the launcher ends, if run_ranks or torchrun started it.

    A shell may end before its children (nohup), and Slurm's daemon ends the tasks of srun itself.
    """
    if LAUNCHER in os.environ:
        die_with_parent(int(os.environ[LAUNCHER]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(os.getppid())


def die_with_parent(parent: int) -> None:
    """SIGKILL this process as soon as its parent, process number `parent`, has ended, or now if it has.

    A parent that is stopped (SIGSTOP) has not ended. On Linux the parent is the thread that started this process, so
    that must be one that lasts. Elsewhere a thread looks every WATCH_SECONDS whether this process has another parent.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # the parent ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def run_ranks(num_processes: int, arguments: list[str], *, inherited: Sequence[int] = ()) -> int:
    """Run `megadna ARGUMENTS` as `num_processes` ranks; returns the exit status of the first that fails, else 0.

    When a rank fails the others get GRACE_SECONDS to end by themselves, then SIGTERM, then SIGKILL. SIGINT, SIGTERM and
    SIGUSR1 are passed on to all ranks. inherited: file descriptors that the ranks hold open as well.
    """
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    with tempfile.TemporaryDirectory(prefix="megadna-") as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "megadna", *arguments],
                start_new_session=True,  # Ctrl-C reaches a rank once, through us, not twice
                pass_fds=inherited,
                env={
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_processes),
                    STORE: str(Path(folder) / "store"),
                    LAUNCHER: str(os.getpid()),
                },
            )
            for rank in range(num_processes)
        ]

        def forward(number: int, _frame: FrameType | None) -> None:
            for process in ranks:
                if process.poll() is None:
                    process.send_signal(number)

        previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
        try:
            status = _wait(ranks)
            return status if status >= 0 else 128 - status  # a shell's way of naming the signal that ended it
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Status of the first rank that fails, else 0, once all have ended."""
    failed_at: float | None = None
    status = 0
    while any(process.poll() is None for process in ranks):
        failed = [process for process in ranks if process.poll() not in (None, 0)]
        if failed and failed_at is None:
            failed_at, status = time.monotonic(), failed[0].returncode
            if status < 0:  # the rank could not report it itself
                name = signal.Signals(-status).name
                sys.stderr.write(
                    f"megadna: error: rank {ranks.index(failed[0])} was killed by {name}; stopping the others; rerun "
                    "with --resume to continue from the last checkpoint\n"
                )
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            _end(ranks)
        time.sleep(0.05)
    return status or next((process.returncode for process in ranks if process.returncode), 0)


def _end(ranks: list[subprocess.Popen]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + 5.0
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
