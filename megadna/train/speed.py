"""What the clock and the machine say about the steps of a run: speed, waits, memory.

MFU: FLOPs of the model for the tokens that are no padding (megadna/model/shapes.py: full attention, 3 x forward), over
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
from megadna.model.shapes import BACKWARD, peak_tflops, token_flops

log = get_logger(__name__)

SPEED_KEYS = ("tokens_per_second", "tokens_per_second_per_gpu", "tflops_per_gpu", "mfu")
TIMING_KEYS = (*SPEED_KEYS, "data_wait_seconds", "save_stall_seconds", "memory_mib")
"""Keys of metrics.jsonl that differ from one run of the same config to the next; a resumed run repeats all others."""


class StepClock:
    """Sums over the steps since the line before, on one rank."""

    def __init__(self, config: Config, world: World, *, sequence_length: int, vocab_rows: int) -> None:
        self.config, self.world, self.vocab_rows = config, world, vocab_rows
        self.sequence_length = sequence_length
        self.peak = _peak(config, world)
        self.tokens = self.seconds = self.flops = self.wait = self.stalled = 0.0

    def add(self, seconds: float, samples: int, data: dict[str, float]) -> None:
        """Count one step of so many samples; takes `data_wait_seconds` out of the loader's numbers."""
        tokens = samples * self.sequence_length
        self.tokens += tokens
        self.seconds += seconds
        self.wait += data.pop("data_wait_seconds")
        predicted = self.config.data.masking.fraction
        forward = token_flops(self.config.model, self.vocab_rows, data["attended_tokens"], predicted=predicted)
        self.flops += (1 + BACKWARD) * forward * tokens * (1.0 - data["padded_fraction"])

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Around whatever a checkpoint holds training up with."""
        start = perf_counter()
        yield
        self.stalled += perf_counter() - start

    def numbers(self) -> dict[str, float]:
        """Values of TIMING_KEYS (no `mfu` without a known peak); the next line starts here.

        Memory: of a GPU the most that was allocated at once, of a CPU rank what it holds now.
        """
        device, speed = self.world.device, self.tokens / self.seconds
        tflops = self.flops / self.seconds / self.world.size / 1e12
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
        values = (speed, speed / self.world.size, tflops, tflops / (self.peak or 1.0), self.wait, self.stalled)
        numbers = dict(zip(TIMING_KEYS, (*values, memory / 2**20), strict=True))
        self.tokens = self.seconds = self.flops = self.wait = self.stalled = 0.0
        return numbers if self.peak else {key: value for key, value in numbers.items() if key != "mfu"}


def _peak(config: Config, world: World) -> float | None:
    if world.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(world.device)
    peak = None if config.engine.precision == "fp32" else peak_tflops(name)
    known = f"mfu is against {peak} TFLOP/s, its dense 16-bit peak" if peak else "no peak known, so no mfu"
    log.info("%s, %s: %s", name, config.engine.precision, known)
    return peak
