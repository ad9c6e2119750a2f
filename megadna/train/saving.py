"""Writes checkpoints while training continues, and prunes them.

`save` copies the shards to host memory (the stall), passes them to a writer process, and returns. `poll`, called every
step on every rank, seals and publishes a checkpoint once all ranks' writers have ended. A save that fails (e.g. disk
full) is logged and counted; training continues, and earlier checkpoints are intact.
"""

import atexit
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import psutil
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint.api import CheckpointException

from megadna import __version__
from megadna.arguments import dump_config
from megadna.config import CheckpointConfig, Config
from megadna.engine.distributed import World
from megadna.errors import SaveFailed, UserError
from megadna.files import sync
from megadna.log import get_logger
from megadna.processes import STOP_SIGNALS, die_with_parent
from megadna.train.checkpoint import complete_checkpoints, read_numbers, sharded_state, step_folders
from megadna.train.faults import is_collective_failure
from megadna.train.integrity import seal
from megadna.train.metrics import BEST_METRICS
from megadna.train.step import TrainState

log = get_logger(__name__)

PARTIAL = ".partial"
_STEP = re.compile(r"step-\d{8,}")
_LEFTOVER = re.compile(rf"\.step-\d+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
RESERVE_BYTES = 64 << 20
"""Free disk space that a save leaves untouched."""


class CheckpointWriter:
    """The saves of one run on one rank; every method is called on all ranks together."""

    def __init__(self, run: Path, config: Config, world: World, facts: dict[str, Any]) -> None:
        """facts: what a resumed run must agree with (tokenizer, dataset), written to every state.json."""
        self.run, self.config, self.world, self.facts = run, config, world, facts
        self.config_text = dump_config(config)
        self.queue = AsyncCallsQueue()
        _use_forked_results_queue()
        self.num_failed = 0
        """Saves that failed since the start."""
        self.damaged: set[Path] = set()
        """Checkpoints whose state.json cannot be read."""
        self.num_failed_in_a_row = 0
        if world.is_main:
            for leftover in run.glob(f"checkpoints/.step-*{PARTIAL}"):
                if _LEFTOVER.fullmatch(leftover.name):
                    shutil.rmtree(leftover, ignore_errors=True)
        self.stall_seconds = 0.0
        """How long the last save stopped training."""
        self.stall_bytes = 0
        """Host memory that this rank needed for it beyond what it had."""

    def save(self, state: TrainState, numbers: dict[str, Any], *, wait: bool = False) -> None:
        """Start writing RUN/checkpoints/step-N; `numbers` (the last validation) go into its state.json.

        wait: until it is published; SaveFailed if it could not be saved.
        """
        start = time.perf_counter()
        self.finish()
        memory = _reset_peak_memory()
        final = self.run / "checkpoints" / f"step-{state.step:08d}"
        unique = [uuid.uuid4().hex[:8]]  # a name that no writer left over from a killed run uses
        torch.distributed.broadcast_object_list(unique, src=0)
        temporary = final.with_name(f".{final.name}.{unique[0]}{PARTIAL}")
        sharded = sharded_state(state, is_loading=False)
        content = {
            "step": state.step,
            "consumed_samples": state.consumed_samples,
            "skipped": state.skipped,
            **self.facts,
            **numbers,
            "versions": versions(),
        }
        problem = self._prepare(temporary, state, content) if self.world.is_main else None
        if not self._failed(problem, state.step, temporary):
            request = dist_checkpointing.save(
                sharded, str(temporary / "weights"), async_sharded_save=True, validate_access_integrity=False
            )
            finalize = partial(self._finalize, list(request.finalize_fns), temporary, final, state.step)
            write = partial(_write, os.getpid(), request.async_fn) if request.async_fn else None
            self.queue.schedule_async_request(request._replace(async_fn=write, finalize_fns=[finalize]))
            if wait:
                self.finish()
            del request
        del sharded
        self.stall_seconds, self.stall_bytes = time.perf_counter() - start, _peak_memory() - memory
        log.info(
            "step %d, checkpoint: training paused for %.2f s, %.0f MB more host memory",
            *(state.step, self.stall_seconds, self.stall_bytes / 1e6),
        )
        if wait and self.num_failed_in_a_row:
            raise SaveFailed(
                f"the checkpoint that ends the run, of step {state.step}, could not be saved; free disk space for "
                f"{self.run} and rerun with --resume"
            )

    def poll(self) -> None:
        """Publish what is completely written; does not wait."""
        if self.queue.get_num_unfinalized_calls():
            self.queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait until every save has been published or has failed."""
        self.queue.maybe_finalize_async_calls(blocking=True)

    def _found(self) -> dict[Path, dict[str, Any]]:
        """The run's checkpoints and their state.json, oldest first, without a user's copies under other names.

        A damaged one has an empty state.json, and is logged once.
        """
        found: dict[Path, dict[str, Any]] = {}
        for folder in complete_checkpoints(self.run):
            if not _STEP.fullmatch(folder.name):
                continue
            try:
                found[folder] = read_numbers(folder)
            except UserError as error:
                found[folder] = {}
                if folder not in self.damaged:
                    log.warning("%s", error)
                    self.damaged.add(folder)
        return found

    def set_aside_after(self, checkpoint: Path) -> None:
        """Rename the damaged checkpoints after the one that the run continues from.

        Their steps are done and saved again, and until then they must not count among the newest that are kept.
        """
        if not self.world.is_main:
            return
        for folder in step_folders(self.run):
            if step_of(folder) > step_of(checkpoint):
                aside = folder.with_name(f"damaged-{folder.name}-{uuid.uuid4().hex[:8]}")
                try:
                    folder.rename(aside)
                except OSError as error:
                    log.warning("%s is damaged and cannot be renamed (%s)", folder, error.strerror)
                else:
                    log.info("%s is damaged, and now named %s", folder, aside.name)

    def _prepare(self, temporary: Path, state: TrainState, content: dict[str, Any]) -> Exception | None:
        """Write folder, state.json and config.yaml on the main rank; returns the error if the disk is too full."""
        try:
            (temporary / "weights").mkdir(parents=True)
            weights = sum(parameter.numel() for part in state.model_parts for parameter in part.parameters())
            needed = 14 * weights  # bf16, master, two moments
            free = shutil.disk_usage(temporary).free
            if free < needed + RESERVE_BYTES:
                raise OSError(f"{free:,} bytes free on the disk of {self.run}, {needed:,} needed")
            (temporary / "state.json").write_text(json.dumps(content, indent=2) + "\n")
            (temporary / "config.yaml").write_text(self.config_text)
        except OSError as error:
            return error
        return None

    def _finalize(self, functions: list[Callable[[], None]], temporary: Path, final: Path, step: int) -> None:
        """megatron's own finalisation, then the commit; the ranks agree on success before the folder is renamed."""
        write_results, *rest = functions
        problem = caught(write_results)
        if self._failed(problem, step, temporary):
            return
        for function in rest:
            function()
        problem = caught(partial(self._commit, temporary, final)) if self.world.is_main else None
        if not self._failed(problem, step, temporary):
            self.num_failed_in_a_row = 0

    def _commit(self, temporary: Path, final: Path) -> None:
        seal(temporary)
        former = _aside(final) if final.exists() else None  # the same step once more, after a resume
        temporary.rename(final)
        sync(final.parent)
        _point_to(final)
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)
        for folder in superfluous(self._found(), self.config.checkpoint):
            shutil.rmtree(_aside(folder), ignore_errors=True)

    def _failed(self, problem: BaseException | None, step: int, temporary: Path) -> bool:
        """True on all ranks if any has a problem; logged and counted once, and the partial save is removed."""
        if problem is not None:
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[-1]
            log.error("checkpoint of step %d failed: %s; earlier checkpoints are intact", step, reason)
        flag = torch.tensor([float(problem is not None)], device=self.world.device)
        torch.distributed.all_reduce(flag)
        failed = bool(flag.item())
        if failed and self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        self.num_failed += failed
        self.num_failed_in_a_row += failed
        if failed and self.num_failed_in_a_row == self.config.checkpoint.max_failed:
            raise SaveFailed(
                f"{self.num_failed_in_a_row} saves failed in a row (checkpoint.max_failed), the last at step {step}; "
                f"make room on the disk of {self.run} and rerun with --resume"
            )
        return failed


def superfluous(checkpoints: dict[Path, dict[str, Any]], config: CheckpointConfig) -> list[Path]:
    """Whole checkpoints to delete, of all (oldest first, with their state.json): neither newest nor lasting."""
    kept = {*list(checkpoints)[-config.keep_last :], *lasting(checkpoints, config)}
    return [folder for folder in checkpoints if folder not in kept]


def lasting(checkpoints: dict[Path, dict[str, Any]], config: CheckpointConfig) -> set[Path]:
    """Which of them are kept permanently: every n-th step, and the best."""
    kept = {folder for folder in checkpoints if config.keep_every and step_of(folder) % config.keep_every == 0}
    metric = next((name for name in BEST_METRICS if any(name in numbers for numbers in checkpoints.values())), "")
    scored = [(numbers[metric], folder) for folder, numbers in checkpoints.items() if metric in numbers]
    return kept | {folder for _, folder in sorted(scored)[: config.keep_best]}


def step_of(folder: Path) -> int:
    """Step that a checkpoint folder is named after."""
    return int(folder.name.removeprefix("step-"))


def versions() -> dict[str, str]:
    """Versions of the programs that write a checkpoint."""
    return {"megadna": __version__, "torch": torch.__version__, "megatron-core": version("megatron-core")}


def _aside(checkpoint: Path) -> Path:
    """Rename a checkpoint to a name that the next start deletes, so that a kill leaves no part under its own."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    checkpoint.rename(doomed)
    return doomed


def _point_to(final: Path) -> None:
    """Make checkpoints/latest a link to `final`, atomically."""
    if final.with_name("latest").is_dir() and not final.with_name("latest").is_symlink():
        log.warning("%s is a folder (a copy that followed links?) and is not replaced", final.with_name("latest"))
        return
    link = final.with_name(".latest.partial")
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.replace(final.with_name("latest"))


def _reset_peak_memory() -> int:
    """Forget the peak of this process's memory (Linux can); returns the bytes it holds now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return int(psutil.Process().memory_info().rss)


def _peak_memory() -> int:
    """Peak of the resident bytes since then; the current size if the system does not report it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return int(psutil.Process().memory_info().rss)


def _use_forked_results_queue() -> None:
    """Give megatron's writers a results queue whose server is forked and never outlives this process.

    megatron would spawn one: seconds of imports at the first save, and an orphan after a kill -9.
    """
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("fork"))
        manager.start(initializer=_start_server, initargs=(os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
        atexit.register(manager.shutdown)


def _start_server(training: int) -> None:
    for number in STOP_SIGNALS:  # they reach the whole process group; training needs this one to save
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(training)


def _write(training: int, write: Callable[..., None], *arguments: Any, **more: Any) -> None:
    """The writer process: megatron's function, which forks one more process for each file."""
    die_with_parent(training)
    os.register_at_fork(after_in_child=partial(die_with_parent, os.getpid()))
    write(*arguments, **more)


def caught(function: Callable[[], None]) -> BaseException | None:
    """The error that `function` raises, or None; the error of a lost rank is raised."""
    try:
        function()
    except (Exception, CheckpointException) as error:
        if is_collective_failure(error):  # the heartbeat finds out which rank
            raise
        return error  # the save has failed, training has not
    return None
