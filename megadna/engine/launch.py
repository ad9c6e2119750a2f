"""Several ranks on this machine from one plain command: `megadna train --engine.num_processes 2`.

Each rank is the same command again, told its place by RANK, LOCAL_RANK, WORLD_SIZE and a rendezvous file.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a run to save and stop (train/stop.py)."""
GRACE_SECONDS = 20.0
STORE = "MEGADNA_STORE"
"""Environment variable that names the rendezvous file."""


def launched_here() -> bool:
    """True in a rank that run_ranks started: the process that did has checked everything and made the run folder."""
    return STORE in os.environ


def run_ranks(num_processes: int, arguments: list[str]) -> int:
    """Run `megadna ARGUMENTS` as `num_processes` ranks; returns the exit status of the first that fails, else 0.

    When a rank fails the others get GRACE_SECONDS to end by themselves, then SIGTERM, then SIGKILL. SIGINT, SIGTERM and
    SIGUSR1 are passed on to all ranks.
    """
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    with tempfile.TemporaryDirectory(prefix="megadna-") as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "megadna", *arguments],
                start_new_session=True,  # Ctrl-C reaches a rank once, through us, not twice
                env={
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_processes),
                    STORE: str(Path(folder) / "store"),
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
            if status < 0:  # it could not say so itself
                name = signal.Signals(-status).name
                sys.stderr.write(
                    f"megadna: error: rank {ranks.index(failed[0])} was ended by {name}, so the others stop too; "
                    "say --resume to go on from the last checkpoint\n"
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
