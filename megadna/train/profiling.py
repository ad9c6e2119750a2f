"""A torch profiler window of rank 0 by config, and a record of GPU memory beside it.

RUN/profile/steps-10-12.json      chrome trace: open it in https://ui.perfetto.dev
RUN/profile/memory-10-12.pickle   GPU allocations: open it in https://pytorch.org/memory_viz
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from megadna.config import Config
from megadna.engine.distributed import World, select_device
from megadna.errors import UserError
from megadna.log import get_logger

log = get_logger(__name__)


def check_profiling(config: Config) -> None:
    """UserError where a memory snapshot is asked for and there is no GPU to take it of."""
    if config.log.memory_snapshot and select_device(config.engine).type != "cuda":
        raise UserError("log.memory_snapshot records the memory of a GPU, and this run uses the CPU; set it to false")


class ProfileWindow:
    """Records the steps of config.log.profile_steps once."""

    def __init__(self, run: Path, config: Config, world: World, *, first_step: int) -> None:
        """first_step: step that the run starts or resumes behind."""
        self.folder, self.config = run / "profile", config.log
        self.window = config.log.profile_steps if world.is_main else []
        if self.window and self.window[0] <= first_step:
            log.warning("log.profile_steps %s begin before step %d: nothing is profiled", self.window, first_step + 1)
            self.window = []
        self.gpu = world.device.type == "cuda"
        self.profile: profile | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around one step."""
        if self.window and step == self.window[0]:
            self._start()
        yield
        if self.profile and step >= self.window[1]:
            self._stop(self.profile)

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.gpu else [])]
        if self.config.memory_snapshot:
            torch.cuda.memory._record_memory_history()
        self.profile = profile(activities=activities)
        self.profile.start()

    def _stop(self, recorded: profile) -> None:
        recorded.stop()
        self._write("steps", ".json", recorded.export_chrome_trace)
        if self.config.memory_snapshot:
            self._write("memory", ".pickle", torch.cuda.memory._dump_snapshot)
            torch.cuda.memory._record_memory_history(enabled=None)
        self.window, self.profile = [], None

    def _write(self, kind: str, suffix: str, write: Callable[[str], None]) -> None:
        path = self.folder / f"{kind}-{self.window[0]}-{self.window[1]}{suffix}"
        self.folder.mkdir(exist_ok=True)
        write(str(path.with_suffix(".partial")))
        path.with_suffix(".partial").replace(path)
        log.info("profile: %s", path)
