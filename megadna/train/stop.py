"""Why a run may end before its last step: signals and the time limit; all ranks agree on the step.

SIGTERM, SIGUSR1 (Slurm's warning before the time limit) and the first SIGINT ask for a stop: the step in progress is
finished, a checkpoint is written, and the program exits with EXIT_REQUEUE. A second SIGINT interrupts at once.
"""

import signal
import time
from types import FrameType, TracebackType

import torch

from megadna.engine.distributed import World
from megadna.engine.launch import STOP_SIGNALS
from megadna.log import get_logger

log = get_logger(__name__)


class StopRequest:
    """Catches signals while it is entered; `agreed()` tells all ranks whether any of them was asked to stop."""

    def __init__(self, world: World, minutes: float) -> None:
        """minutes: stop by itself after so long; 0 never does."""
        self.world = world
        self.deadline = time.monotonic() + 60.0 * minutes if minutes else None
        self.reason = ""

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """True on every rank as soon as one has a reason; called on all ranks after each step."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = self.reason or "train.exit_after_minutes is over"
        flag = torch.tensor([float(bool(self.reason))], device=self.world.device)
        torch.distributed.all_reduce(flag)
        if not flag.item():
            return False
        log.info("stopping after this step: %s", self.reason or "another rank was asked to")
        return True

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = f"received {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
