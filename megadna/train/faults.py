"""Steps that must not be applied: a loss or gradient that is no number, or far out of the run of the last ones.

Such an update is skipped on all ranks, and the samples behind it are noted in RUN/skipped.jsonl. After
`faults.max_skipped` in a row the run goes back to its last checkpoint and leaves those samples out; after
`faults.max_rollbacks` of these it ends with EXIT_DIVERGED.
"""

import json
import math
import statistics
from collections import deque
from pathlib import Path

import torch

from megadna.config import Config, FaultConfig
from megadna.engine.distributed import World
from megadna.log import get_logger

log = get_logger(__name__)

HISTORY = 100
MIN_HISTORY = 20
MAD_TO_SIGMA = 1.4826  # of a normal distribution (Rousseeuw & Croux 1993)


class FaultGuard:
    """Judges every step before it is applied, the same on all ranks."""

    def __init__(self, config: FaultConfig, record: Path | None) -> None:
        """record: RUN/skipped.jsonl on the main rank, None on the others."""
        self.config, self.record = config, record
        self.history: deque[tuple[float, float]] = deque(maxlen=HISTORY)
        self.ranges: list[tuple[int, int]] = []
        """Samples of the steps skipped in a row, half-open positions of the run."""
        self.num_skipped = 0
        self.num_rollbacks = 0

    def problem(self, loss: float, grad_norm: float) -> str:
        """Why the step must be skipped; empty where it is sound, which then counts as history."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss}, gradient norm {grad_norm}"
        if self.config.spike_zscore and len(self.history) >= MIN_HISTORY:
            losses, norms = zip(*self.history, strict=True)
            for name, value, past in (("loss", loss, losses), ("gradient norm", grad_norm, norms)):
                score = _robust_zscore(value, past)
                if score > self.config.spike_zscore:
                    return f"{name} {value:.4g} is {score:.1f} robust deviations above the last {len(past)} steps"
        self.history.append((loss, grad_norm))
        return ""

    def skipped(self, step: int, samples: tuple[int, int], reason: str) -> None:
        """Note a skipped step and its samples."""
        self.num_skipped += 1
        self.ranges.append(samples)
        place = (samples[0], samples[1] - 1, self.num_skipped)
        log.warning("step %d skipped: %s (samples %d to %d; %d skipped so far)", step, reason, *place)
        if self.record is not None:
            with self.record.open("a", encoding="utf-8") as file:
                line = {"step": step, "first_sample": samples[0], "end_sample": samples[1], "reason": reason}
                file.write(json.dumps(line) + "\n")

    def applied(self) -> None:
        """A sound step ends a row of skipped ones."""
        self.ranges.clear()

    def must_roll_back(self) -> bool:
        """True after max_skipped steps in a row."""
        return len(self.ranges) >= self.config.max_skipped

    def take_ranges(self) -> list[tuple[int, int]]:
        """The samples to leave out after a roll-back; starts a new row."""
        ranges, self.ranges = self.ranges, []
        self.num_rollbacks += 1
        self.history.clear()
        return ranges

    def has_diverged(self) -> bool:
        """True once there were more roll-backs than allowed."""
        return self.num_rollbacks > self.config.max_rollbacks


def _robust_zscore(value: float, past: tuple[float, ...]) -> float:
    """Distance above the median in units of the median absolute deviation, scaled to a normal's sigma."""
    median = statistics.median(past)
    deviation = statistics.median(abs(x - median) for x in past) * MAD_TO_SIGMA
    return (value - median) / max(deviation, 1e-12)


def out_of_memory(config: Config, world: World) -> str:
    """The line that names the peak and the options that lower it."""
    peak = torch.cuda.max_memory_allocated(world.device) / 2**30 if world.device.type == "cuda" else 0.0
    train, parallel = config.train, config.parallel
    return (
        f"out of memory on {world.device} at a peak of {peak:.1f} GiB; lower train.micro_batch_size (now "
        f"{train.micro_batch_size}) or data.sequence_length, set parallel.recompute full, or raise parallel.tensor or "
        f"parallel.pipeline (now {parallel.tensor} x {parallel.pipeline})"
    )
