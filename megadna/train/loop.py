"""The training run: steps, logs, validations and checkpoints, from a config to a finished run folder.

RUN/config.yaml      the resolved config
RUN/log.txt          what is logged, behind that of earlier starts (commands/train.py)
RUN/metrics.jsonl    one line a logged step, one a validation
RUN/tensorboard/     the same as events; wandb/ where log.wandb is true, profile/ by log.profile_steps
RUN/checkpoints/     step-00000100/ ...
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.data.dataset import open_chunks
from megadna.data.loader import TrainBatches, resolve_sequence_length, train_batches
from megadna.data.order import skip_more
from megadna.data.samples import resolve_schedule
from megadna.engine.distributed import World
from megadna.errors import Diverged, UserError
from megadna.files import write_text
from megadna.log import get_logger
from megadna.model.shapes import padded_vocab_size
from megadna.progress import Progress
from megadna.tokenizer.build import build_tokenizer
from megadna.train.checkpoint import (
    complete_checkpoints,
    find_checkpoint,
    has_checkpoints,
    load_checkpoint,
    load_weights,
    read_numbers,
)
from megadna.train.faults import FaultGuard, Heartbeat, StopRequest
from megadna.train.metrics import Metrics
from megadna.train.profiling import build_profiler
from megadna.train.resume import check_resume, check_weights
from megadna.train.saving import CheckpointWriter
from megadna.train.scoring import protocol_of
from megadna.train.speed import StepClock
from megadna.train.state import TrainState, build_state
from megadna.train.step import StepResult, train_step
from megadna.train.validation import validate

log = get_logger(__name__)


class TrainingRun:
    """One run on one rank."""

    def __init__(self, config: Config, run: Path, world: World) -> None:
        self.run, self.world = run, world
        self.tokenizer = build_tokenizer(config.tokenizer)
        self.valid = open_chunks(config.data.path, "valid")
        extra = {name: open_chunks(path, "valid") for name, path in config.validation.extra.items()}
        self.validated = {"": self.valid, **extra}
        self.sequence_length = resolve_sequence_length(config, self.valid.chunk_length, self.tokenizer)
        resolved = replace(config.data, sequence_length=self.sequence_length)
        self.config = resolve_schedule(replace(config, data=resolved))
        self.state: TrainState = build_state(self.config, self.tokenizer.vocab_size, world)
        self.metrics: Metrics | None = None
        rows = padded_vocab_size(config.tokenizer, self.tokenizer.vocab_size)
        self.profiler: profile | None = None
        self.clock = StepClock(self.config, world, sequence_length=self.sequence_length, vocab_rows=rows)
        self.last_validation: dict[str, Any] = {}
        self.heartbeat = Heartbeat(world, self.config.engine.timeout_minutes)
        self.guard = FaultGuard(config.faults, run / "skipped.jsonl" if world.is_main else None)
        facts = {"tokenizer": config.tokenizer.kind, "dataset_id": self.valid.dataset_id}
        self.writer = CheckpointWriter(run, self.config, world, facts)

    def train(self, *, resume: str) -> bool:
        """Train to config.train.steps, from the newest checkpoint of the run folder where `resume` says so.

        resume: always, never, or auto (where there is a checkpoint). False where a signal or the time limit ended the
        run before, with everything saved. RunEnded where it cannot go on.
        """
        source = self.config.checkpoint.init_from
        if resume == "always" or (resume == "auto" and self._agreed(lambda: has_checkpoints(self.run))):
            with Progress("loading the checkpoint"):
                self._resume()
        elif source:
            checkpoint = self._agreed(lambda: find_checkpoint(Path(source)))
            check_weights(checkpoint, self.config)
            with Progress(f"loading {checkpoint}"):
                load_weights(self.state, checkpoint)
            self.writer.facts["init_from"] = str(checkpoint)
            log.info("starting from the weights of %s", checkpoint)
        self._agreed(self._open_files)
        self._announce()
        self.batches = self._batches()
        try:
            if self.state.step == 0 and (source or self.config.validation.extra):
                self._validate()  # what the model knows before it forgets
            with self.heartbeat, StopRequest(self.world, self.config.train.exit_after_minutes) as stop:
                while self.state.step < self.config.train.steps:
                    self.heartbeat.step = self.state.step
                    self._step()
                    if stop.agreed() and self.state.step < self.config.train.steps:
                        self.writer.save(self.state, self.last_validation, wait=True)
                        done = (self.state.step, self.config.train.steps)
                        log.info("stopped at step %d of %d, saved; the same command with --resume goes on", *done)
                        return False
            log.info("step %d of %d is done: %s", self.state.step, self.config.train.steps, self.run)
            return True
        finally:
            self.batches.close()
            if self.metrics:
                self.metrics.close()

    def _open_files(self) -> None:
        """What the main rank writes into the run folder."""
        write_text(self.run / "config.yaml", dump_config(self.config))
        self.metrics = Metrics(self.run, self.config, first_step=self.state.step)
        self.profiler = build_profiler(self.run, self.config.log, first_step=self.state.step)

    def _resume(self) -> None:
        checkpoint = self._agreed(lambda: find_checkpoint(self.run))
        check_resume(checkpoint, self.config, self.writer.facts)
        self.writer.set_aside_after(checkpoint)
        load_checkpoint(self.state, checkpoint)
        self.writer.facts |= {key: value for key, value in read_numbers(checkpoint).items() if key == "init_from"}
        log.info("resuming %s at step %d", checkpoint, self.state.step)

    def _agreed(self, find: Callable[[], Any]) -> Any:
        """What the main rank alone finds, on all ranks: a checkpoint is large, and file systems may disagree.

        So is the error it ends with, or the other ranks would wait for a main rank that has ended.
        """
        found: list[Any] = [None]
        if self.world.is_main:
            try:
                found = [find()]
            except (UserError, OSError) as error:
                found = [error]
        torch.distributed.broadcast_object_list(found, src=0)
        if isinstance(found[0], UserError | OSError):
            raise found[0]
        return found[0]

    def _batches(self) -> TrainBatches:
        return train_batches(
            self.config,
            self.tokenizer,
            sequence_length=self.sequence_length,
            rank=self.world.data_rank,
            size=self.world.data_size,
            consumed_samples=self.state.consumed_samples,
            skipped=self.state.skipped,
        )

    def _step(self) -> None:
        self.last_validation = {}  # a checkpoint carries the validation of its own weights alone
        with self.clock.stall():
            self.writer.poll()
        start, first_sample = time.perf_counter(), self.state.consumed_samples
        result = train_step(
            self.state,
            self.batches,
            self.config,
            self.world,
            sequence_length=self.sequence_length,
            problem=self.guard.problem,
        )
        self._log(result, time.perf_counter() - start, self.state.consumed_samples - first_sample)
        if self.profiler:
            self.profiler.step()
        if result.problem:
            self.guard.skipped(self.state.step, (first_sample, self.state.consumed_samples), result.problem)
            if self.guard.must_roll_back():
                self._roll_back()
                return
        else:
            self.guard.applied()
        step, last = self.state.step, self.config.train.steps
        if step == last or (self.config.validation.interval and step % self.config.validation.interval == 0):
            self._validate()
        if not result.problem and (step == last or step % self.config.checkpoint.interval == 0):
            with self.clock.stall():
                self.writer.save(self.state, self.last_validation, wait=step == last)

    def _log(self, result: StepResult, seconds: float, samples: int) -> None:
        data, step = self.batches.metrics(self.state.consumed_samples), self.state.step
        self.clock.add(seconds, samples, data)
        if self.metrics and self.metrics.is_due(step):
            numbers = {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": result.lr,
                "weight_decay": result.weight_decay,
                "consumed_samples": self.state.consumed_samples,
                "failed_saves": self.writer.num_failed,
                **data,
                **self.clock.numbers(),
            }
            self.metrics.training(step, numbers)

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, leaving out the samples of the steps that were skipped in a row."""
        ranges, failed_at = self.guard.take_ranges(), self.state.step
        if self.guard.has_diverged() or not complete_checkpoints(self.run):
            faults = self.config.faults
            raise Diverged(
                f"step {failed_at}: {faults.max_skipped} bad updates in a row, and no roll-back is left (of "
                f"{faults.max_rollbacks}) or no checkpoint to go back to; look at {self.run / 'skipped.jsonl'}, lower "
                "train.lr, and say --resume"
            )
        self.writer.finish()
        skipped = skip_more(self.state.skipped, ranges)
        checkpoint = self._agreed(lambda: find_checkpoint(self.run))
        self.writer.set_aside_after(checkpoint)
        load_checkpoint(self.state, checkpoint)
        self.state.skipped = skipped
        self.batches = self._batches()
        if self.metrics:
            self.metrics.go_back(self.state.step)
        log.warning("step %d: back to %s, leaving out samples %s", failed_at, checkpoint.name, ranges)

    def _validate(self) -> None:
        protocol = protocol_of(self.tokenizer)
        numbers = validate(
            self.state.chunks,
            self.validated,
            self.tokenizer,
            self.config,
            self.world,
            sequence_length=self.sequence_length,
        )
        self.last_validation = {**numbers, "valid_protocol": protocol}
        if self.metrics:
            self.metrics.validation(self.state.step, numbers, protocol)

    def _announce(self) -> None:
        world, parallel = self.world, self.config.parallel
        log.info(
            "%d ranks on %s: tensor %d x pipeline %d x data %d | %s | %d tokens a sample, %d samples a step",
            *(world.size, world.device.type, parallel.tensor, parallel.pipeline, world.data_size),
            *(self.config.engine.precision, self.sequence_length, self.config.train.global_batch_size),
        )
