"""Signs of life: which rank has died or hangs, when a collective fails or waits too long.

A thread of every rank counts up in the rendezvous store and says the last step and where the main thread stands. When a
collective fails, the ranks that are left compare two readings: a rank whose count stands still is gone or stopped;
where all counts rise, the one that stands elsewhere than the others hangs.
"""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.distributed import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from megadna.engine.distributed import World
from megadna.errors import RankLost, RunEnded

PACKAGE = str(Path(__file__).parents[1])
LONGEST_INTERVAL = 5.0
"""Seconds between two signs, at most; a tenth of the timeout where that is less."""
PATIENCE = 5.0
"""Seconds for an answer of the store: torch waits indefinitely where the connection to its node is cut."""
SIGNS_OF_GLOO = ("gloo", "pair closure")
"""In what gloo raises: a path of its source, or "Application timeout caused pair closure" alone."""
LEFT, HERE = "left", Path(__file__).name


class Heartbeat:
    """Beats while it is entered; turns the failure of a collective into RankLost, with the names of the ranks."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
                self.store.set(str(self.world.rank), json.dumps([count, self.step, self._place()]))
            self.store.set(str(self.world.rank), json.dumps([LEFT, self.step, ""]))
        except RuntimeError:  # the process that serves the store is gone: so are we, soon
            return

    def _place(self) -> str:
        """Innermost line of this package that the main thread is in."""
        frame = sys._current_frames().get(self.main)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""

    def _read(self) -> dict[int, list[Any]]:
        ranks = (rank for rank in range(self.world.size) if self.store.check([str(rank)]))
        return {rank: json.loads(self.store.get(str(rank))) for rank in ranks}

    def _compare(self, signs: list[dict[int, list[Any]]]) -> None:
        """Append two readings; fewer where the process that serves the store is gone."""
        with suppress(RuntimeError):
            signs.append(self._read())
            time.sleep(2.5 * self.interval)
            signs.append(self._read())

    def _verdict(self, error: BaseException) -> str:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        remedy = "start the same command again with --resume, which goes on from the last checkpoint"
        signs: list[dict[int, list[Any]]] = []
        reader = threading.Thread(target=self._compare, args=(signs,), daemon=True)
        reader.start()
        reader.join(2.5 * self.interval + PATIENCE)
        if len(signs) < 2:
            return f"step {self.step + 1}: rank 0 or its node does not answer ({reason}); {remedy}"
        before, after = signs
        silent = [rank for rank, sign in after.items() if sign[0] != LEFT and sign == before.get(rank)]
        places = {rank: sign[2] for rank, sign in after.items() if sign[0] != LEFT and HERE not in sign[2]}
        common = Counter(places.values()).most_common(1)
        astray = [rank for rank, place in places.items() if place != common[0][0]]
        if silent:
            lost = ", ".join(f"rank {rank} (last step {after[rank][1]})" for rank in silent)
            return f"step {self.step + 1}: no sign of life from {lost} of {self.world.size} ranks ({reason}); {remedy}"
        hung = ", ".join(f"rank {rank} at {after[rank][2]} (last step {after[rank][1]})" for rank in astray)
        return (
            f"step {self.step + 1}: a collective failed ({reason}); every rank that has not ended is alive"
            f"{', but apart from the others: ' + hung if hung else ''}; {remedy}"
        )


def is_collective_failure(error: BaseException) -> bool:
    """True for what gloo and nccl raise when another rank is gone or too late."""
    if isinstance(error, RunEnded) or not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in said for sign in SIGNS_OF_GLOO)
