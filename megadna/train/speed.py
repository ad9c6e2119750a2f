"""What the clock and the machine say about the steps of a run: speed, waits, memory.

MFU: FLOPs of the model for the tokens that are no padding (megadna/model/flops.py: full attention, 3 x forward), over
seconds, ranks and the dense 16-bit peak of the card. Steps alone count: validations and saves stand outside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import psutil
import torch

from megadna.config import Config
from megadna.engine.distributed import World
from megadna.log import get_logger
from megadna.model.flops import BACKWARD, peak_tflops, token_flops

log = get_logger(__name__)

TIMING_KEYS = (
    "tokens_per_second",
    "tokens_per_second_per_gpu",
    "tflops_per_gpu",
    "mfu",
    "data_wait_seconds",
    "save_stall_seconds",
    "memory_mib",
    "seconds_left",
)
"""Keys of metrics.jsonl that differ from one run of the same config to the next; a resumed run repeats all others."""
SMOOTHING = 0.9


class StepClock:
    """Sums over the steps since the line before, on the main rank."""

    def __init__(self, config: Config, world: World, *, sequence_length: int, vocab_rows: int) -> None:
        self.config, self.world, self.vocab_rows = config, world, vocab_rows
        self.tokens_per_step = config.train.global_batch_size * sequence_length
        self.peak = self._peak()
        self.smooth_seconds = 0.0
        self._clear()

    def _clear(self) -> None:
        self.steps, self.seconds, self.flops, self.wait, self.stall_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, seconds: float, data: dict[str, float]) -> None:
        """Count one step; takes `data_wait_seconds` out of the loader's numbers."""
        smooth = SMOOTHING if self.smooth_seconds else 0.0
        self.smooth_seconds = smooth * self.smooth_seconds + (1.0 - smooth) * seconds
        forward = token_flops(self.config.model, self.vocab_rows, data["attended_tokens"])
        self.steps += 1
        self.seconds += seconds
        self.flops += (1 + BACKWARD) * forward * self.tokens_per_step * (1.0 - data["padded_fraction"])
        self.wait += data.pop("data_wait_seconds")

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Around whatever a checkpoint holds training up with."""
        start = perf_counter()
        yield
        self.stall_seconds += perf_counter() - start

    def numbers(self, steps_left: int) -> dict[str, float]:
        """The values of TIMING_KEYS (no `mfu` without a known peak); starts the next line."""
        speed = self.tokens_per_step * self.steps / self.seconds
        tflops = self.flops / self.seconds / self.world.size / 1e12
        numbers = {
            "tokens_per_second": speed,
            "tokens_per_second_per_gpu": speed / self.world.size,
            "tflops_per_gpu": tflops,
            **({} if self.peak is None else {"mfu": tflops / self.peak}),
            "data_wait_seconds": self.wait,
            "save_stall_seconds": self.stall_seconds,
            "memory_mib": self._memory() / 2**20,
            "seconds_left": int(steps_left * self.smooth_seconds),
        }
        self._clear()
        return numbers

    def _memory(self) -> int:
        """Bytes: of the GPU the most that was allocated at once, of a CPU rank what it holds now."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device)
        return psutil.Process().memory_info().rss

    def _peak(self) -> float | None:
        if self.world.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.world.device)
        peak = None if self.config.engine.precision == "fp32" else peak_tflops(name)
        if peak is None:
            log.info("no peak known for %s in %s: no mfu is logged", name, self.config.engine.precision)
        else:
            log.info("mfu is against %.1f TFLOP/s, the dense 16-bit peak of %s", peak, name)
        return peak
