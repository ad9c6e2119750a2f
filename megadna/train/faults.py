"""Why a run may end before its last step: stop signals, bad updates, lost ranks. All ranks agree on the step.

SIGTERM, SIGUSR1 (Slurm's warning before the time limit) and the first SIGINT request a stop: the step in progress is
finished, a checkpoint is written, and the program exits with EXIT_REQUEUE. A second SIGINT interrupts at once.

A step is not applied if its loss or gradient is not finite, or far above those of the last steps. It is skipped on all
ranks, and its samples are recorded in RUN/skipped.jsonl. After MAX_SKIPPED in a row the run goes back to its last
checkpoint and leaves those samples out; after MAX_ROLLBACKS of these it ends with Diverged.

Heartbeat: a thread of every rank writes a count, the last step and the current line of the main thread into the
rendezvous store. When a collective fails, the remaining ranks compare two readings: a rank whose count has not changed
is dead or stopped; if all counts rise, the rank at another line than the others hangs.
"""

import json
import math
import signal
import statistics
import sys
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from megadna.config import Config
from megadna.engine.distributed import World
from megadna.errors import RankLost, RunEnded
from megadna.log import get_logger
from megadna.processes import STOP_SIGNALS

log = get_logger(__name__)


class StopRequest:
    """Context manager that catches signals; the ranks agree on a stop within the step (train/step.py)."""

    def __init__(self, minutes: float) -> None:
        """minutes: also stop after this time; 0: never."""
        self.deadline = time.monotonic() + 60.0 * minutes if minutes else None
        self.reason = ""

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether this rank has a reason to stop."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = self.reason or "train.exit_after_minutes has passed"
        return bool(self.reason)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = f"received {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


MAX_SKIPPED = 3
"""Skipped steps in a row after which the run goes back to its last checkpoint."""
MAX_ROLLBACKS = 2
"""One more roll-back than these ends the run."""
HISTORY = 100
MIN_HISTORY = 20
MAD_TO_SIGMA = 1.4826  # of a normal distribution (Rousseeuw & Croux 1993)


class FaultGuard:
    """Checks every step before it is applied, with the same result on all ranks."""

    def __init__(self, spike_zscore: float, record: Path | None) -> None:
        """record: RUN/skipped.jsonl on the main rank, None on the others."""
        self.spike_zscore, self.record = spike_zscore, record
        self.history: deque[tuple[float, float]] = deque(maxlen=HISTORY)
        self.ranges: list[tuple[int, int]] = []
        """Samples of the steps skipped in a row, half-open positions of the run."""
        self.num_skipped = 0
        self.num_rollbacks = 0

    def problem(self, loss: float, grad_norm: float) -> str:
        """Why the step must be skipped; empty if it is sound, and then part of the history."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss}, gradient norm {grad_norm}"
        if self.spike_zscore and len(self.history) >= MIN_HISTORY:
            losses, norms = zip(*self.history, strict=True)
            for name, value, past in (("loss", loss, losses), ("gradient norm", grad_norm, norms)):
                score = _robust_zscore(value, past)
                if score > self.spike_zscore:
                    return f"{name} {value:.4g} is {score:.1f} robust deviations above the last {len(past)} steps"
        self.history.append((loss, grad_norm))
        return ""

    def skipped(self, step: int, samples: tuple[int, int], reason: str) -> None:
        """Record a skipped step and its samples."""
        self.num_skipped += 1
        self.ranges.append(samples)
        first, end = samples
        log.warning(
            "step %d skipped: %s (samples %d to %d; %d skipped so far)", step, reason, first, end - 1, self.num_skipped
        )
        if self.record is not None:
            with self.record.open("a", encoding="utf-8") as file:
                line = {"step": step, "first_sample": first, "end_sample": end, "reason": reason}
                file.write(json.dumps(line) + "\n")

    def take_ranges(self) -> list[tuple[int, int]]:
        """The samples to leave out after a roll-back, which is counted."""
        ranges, self.ranges = self.ranges, []
        self.num_rollbacks += 1
        self.history.clear()
        return ranges


def _robust_zscore(value: float, past: tuple[float, ...]) -> float:
    """Distance above the median in units of the median absolute deviation, scaled to a normal's sigma."""
    median = statistics.median(past)
    deviation = statistics.median(abs(x - median) for x in past) * MAD_TO_SIGMA
    return (value - median) / max(deviation, 1e-12)


def out_of_memory(config: Config, world: World) -> str:
    """One line with the peak and the options that lower it."""
    peak = torch.cuda.max_memory_allocated(world.device) / 2**30 if world.device.type == "cuda" else 0.0
    train, parallel = config.train, config.parallel
    return (
        f"out of memory on {world.device} at a peak of {peak:.1f} GiB; lower train.micro_batch_size (now "
        f"{train.micro_batch_size}) or data.sequence_length, set parallel.recompute full, or raise parallel.tensor or "
        f"parallel.pipeline (now {parallel.tensor} x {parallel.pipeline})"
    )


PACKAGE = str(Path(__file__).parents[1])
LONGEST_INTERVAL = 5.0
"""Most seconds between two beats; a tenth of the timeout if that is less."""
PATIENCE = 5.0
"""Seconds to wait for the store: torch waits indefinitely if the connection to its node is cut."""
SIGNS_OF_GLOO = ("gloo", "pair closure")
"""In the messages that gloo raises: a path of its source, or "Application timeout caused pair closure"."""
LEFT, HERE = "left", Path(__file__).name


class Heartbeat:
    """Context manager that beats, and turns the failure of a collective into RankLost with the ranks' numbers."""

    def __init__(self, world: World, timeout_minutes: float) -> None:
        self.world = world
        self.interval = min(LONGEST_INTERVAL, 6.0 * timeout_minutes)
        self.step = 0
        """Steps done; the loop keeps it up to date."""
        self.store = PrefixStore("heartbeat", _get_default_store())
        self.stopped = threading.Event()
        self.main = threading.get_ident()

    def __enter__(self) -> "Heartbeat":
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is not None and is_collective_failure(error):
                raise RankLost(self._verdict(error)) from error
        finally:
            self.stopped.set()
            self.thread.join(self.interval + PATIENCE)

    def _beat(self) -> None:
        count = 0
        try:
            while not self.stopped.wait(self.interval if count else 0.0):
                count += 1
                self.store.set(str(self.world.rank), json.dumps([count, self.step, self._line()]))
            self.store.set(str(self.world.rank), json.dumps([LEFT, self.step, ""]))
        except RuntimeError:  # the process that serves the store is gone, and this one will end too
            return

    def _line(self) -> str:
        """Line of this package that the main thread is at."""
        frame = sys._current_frames().get(self.main)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""

    def _read(self) -> dict[int, list[Any]]:
        ranks = (rank for rank in range(self.world.size) if self.store.check([str(rank)]))
        return {rank: json.loads(self.store.get(str(rank))) for rank in ranks}

    def _compare(self, signs: list[dict[int, list[Any]]]) -> None:
        """Append two readings; fewer if the process that serves the store is gone."""
        with suppress(RuntimeError):
            signs.append(self._read())
            time.sleep(2.5 * self.interval)
            signs.append(self._read())

    def _verdict(self, error: BaseException) -> str:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        remedy = "start the same command again with --resume, which continues from the last checkpoint"
        signs: list[dict[int, list[Any]]] = []
        reader = threading.Thread(target=self._compare, args=(signs,), daemon=True)
        reader.start()
        reader.join(2.5 * self.interval + PATIENCE)
        if len(signs) < 2:
            return f"step {self.step + 1}: no response from rank 0 or its node ({reason}); {remedy}"
        before, after = signs
        silent = [rank for rank, sign in after.items() if sign[0] != LEFT and sign == before.get(rank)]
        lines = {rank: sign[2] for rank, sign in after.items() if sign[0] != LEFT and HERE not in sign[2]}
        common = Counter(lines.values()).most_common(1)
        astray = [rank for rank, line in lines.items() if line != common[0][0]]
        if silent:
            lost = ", ".join(f"rank {rank} (last step {after[rank][1]})" for rank in silent)
            return f"step {self.step + 1}: no sign of life from {lost} of {self.world.size} ranks ({reason}); {remedy}"
        hung = ", ".join(f"rank {rank} at {after[rank][2]} (last step {after[rank][1]})" for rank in astray)
        return (
            f"step {self.step + 1}: a collective failed ({reason}); every rank that has not ended is alive"
            f"{', but at another line than the others: ' + hung if hung else ''}; {remedy}"
        )


def is_collective_failure(error: BaseException) -> bool:
    """True for what gloo and nccl raise when another rank is gone or too late."""
    if isinstance(error, RunEnded) or not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in message for sign in SIGNS_OF_GLOO)
