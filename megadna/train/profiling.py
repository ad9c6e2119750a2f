"""A torch profiler window of rank 0 by config, and a record of GPU memory beside it.

RUN/profile/steps-10-12.json      chrome trace: open it in https://ui.perfetto.dev
RUN/profile/memory-10-12.pickle   GPU allocations up to there: open it in https://pytorch.org/memory_viz
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from megadna.config import LogConfig
from megadna.files import atomic_file
from megadna.log import get_logger

log = get_logger(__name__)


def build_profiler(run: Path, config: LogConfig, *, first_step: int) -> profile | None:
    """A started profiler that wants its `step` called after every step; None where there is nothing to record.

    first_step: step that the run starts or resumes behind.
    """
    if not config.profile_steps:
        return None
    first, last = config.profile_steps
    if first <= first_step:
        log.warning("log.profile_steps [%d, %d] begin before step %d: no profile", first, last, first_step + 1)
        return None

    def write(recorded: profile) -> None:
        _write(run / "profile" / f"steps-{first}-{last}.json", recorded.export_chrome_trace)
        if config.memory_snapshot:
            _write(run / "profile" / f"memory-{first}-{last}.pickle", torch.cuda.memory._dump_snapshot)
            torch.cuda.memory._record_memory_history(enabled=None)

    if config.memory_snapshot:
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=100_000)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    gap = first - 1 - first_step
    window = schedule(wait=max(0, gap - 1), warmup=min(1, gap), active=last - first + 1, repeat=1)
    profiler = profile(activities=activities, schedule=window, on_trace_ready=write)
    profiler.start()
    return profiler


def _write(path: Path, write: Callable[[str], None]) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary:
        write(str(temporary))
    log.info("profile: %s", path)
