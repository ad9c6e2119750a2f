"""The training run: steps, logs, validations and checkpoints, from a config to a finished run folder.

In:  a resolved Config, the run folder, the position of this rank.
Out: the run folder; True if the last step was reached.
MFU is the FLOPs of the model for the tokens that are not padding (model/shapes.py: full attention, 3 x forward) over
seconds, ranks and the dense 16-bit peak of the card; only steps count, not validations and saves.

RUN/config.yaml      the resolved config
RUN/log.txt          the log of all starts (commands/train.py)
RUN/metrics.jsonl    one line per logged step, one per validation
RUN/tensorboard/     the same as events; wandb/ if log.wandb is true
RUN/checkpoints/     step-00000100/ ...
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch

from megadna.config import Config
from megadna.data.dataset import open_chunks
from megadna.data.evaluation import EvaluationSamples
from megadna.data.loader import TrainBatches, resolve_sequence_length, train_batches
from megadna.data.order import skip_more
from megadna.data.samples import resolve_schedule
from megadna.engine.distributed import World
from megadna.errors import Diverged, UserError
from megadna.files import write_text
from megadna.log import get_logger
from megadna.model.shapes import BACKWARD, padded_vocab_size, peak_tflops, token_flops
from megadna.progress import Progress
from megadna.tokenizer.build import build_tokenizer
from megadna.train.checkpoint import (
    check_resume,
    check_weights,
    complete_checkpoints,
    find_checkpoint,
    has_checkpoints,
    load_checkpoint,
    load_weights,
    read_numbers,
)
from megadna.train.evaluation import protocol_of
from megadna.train.faults import MAX_ROLLBACKS, MAX_SKIPPED, FaultGuard, Heartbeat, StopRequest
from megadna.train.metrics import Metrics
from megadna.train.saving import CheckpointWriter
from megadna.train.step import StepResult, TrainState, build_state, evaluate_split, train_step

log = get_logger(__name__)

SPEED_KEYS = ("tokens_per_second", "tokens_per_second_per_gpu", "tflops_per_gpu", "mfu")
TIMING_KEYS = (*SPEED_KEYS, "data_wait_seconds", "save_stall_seconds", "memory_mib")
"""Keys of metrics.jsonl that differ from one run of the same config to the next; a resumed run repeats all others."""


class StepClock:
    """Speed, waits and memory of the steps since the previous log line, on one rank."""

    def __init__(self, config: Config, world: World, *, sequence_length: int, vocab_rows: int) -> None:
        self.config, self.world, self.vocab_rows = config, world, vocab_rows
        self.sequence_length = sequence_length
        self.peak = _peak(config, world.device) if world.device.type == "cuda" else None
        self.tokens = self.seconds = self.flops = self.wait = self.stalled = 0.0

    def add(self, seconds: float, samples: int, data: dict[str, float]) -> None:
        """Count one step of `samples` samples; removes `data_wait_seconds` from the loader's numbers."""
        tokens = samples * self.sequence_length
        self.tokens += tokens
        self.seconds += seconds
        self.wait += data.pop("data_wait_seconds")
        predicted = self.config.data.masking.fraction
        forward = token_flops(self.config.model, self.vocab_rows, data["attended_tokens"], predicted=predicted)
        self.flops += (1 + BACKWARD) * forward * tokens * (1.0 - data["padded_fraction"])

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Around what holds up training for a checkpoint."""
        start = perf_counter()
        yield
        self.stalled += perf_counter() - start

    def numbers(self) -> dict[str, float]:
        """Values of TIMING_KEYS (no `mfu` without a known peak); the counts restart.

        Memory: of a GPU the peak allocation, of a CPU rank its current resident size.
        """
        device, speed = self.world.device, self.tokens / self.seconds
        tflops = self.flops / self.seconds / self.world.size / 1e12
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
        values = (speed, speed / self.world.size, tflops, tflops / (self.peak or 1.0), self.wait, self.stalled)
        numbers = dict(zip(TIMING_KEYS, (*values, memory / 2**20), strict=True))
        self.tokens = self.seconds = self.flops = self.wait = self.stalled = 0.0
        return numbers if self.peak else {key: value for key, value in numbers.items() if key != "mfu"}


def _peak(config: Config, device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device)
    peak = None if config.engine.precision == "fp32" else peak_tflops(name)
    known = f"mfu is relative to {peak} TFLOP/s, its dense 16-bit peak" if peak else "peak unknown, so no mfu"
    log.info("%s, %s: %s", name, config.engine.precision, known)
    return peak


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
        self.clock = StepClock(self.config, world, sequence_length=self.sequence_length, vocab_rows=rows)
        self.last_validation: dict[str, Any] = {}
        self.heartbeat = Heartbeat(world, self.config.engine.timeout_minutes)
        self.guard = FaultGuard(config.train.spike_zscore, run / "skipped.jsonl" if world.is_main else None)
        facts = {"tokenizer": config.tokenizer.kind, "dataset_id": self.valid.dataset_id}
        self.writer = CheckpointWriter(run, self.config, world, facts)

    def train(self, *, resume: str) -> bool:
        """Train to config.train.steps, from the newest checkpoint of the run folder if `resume` asks for it.

        resume: always, never, or auto (if there is a checkpoint). False if a signal or the time limit stopped the run
        early, with everything saved. RunEnded if it cannot continue.
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
                self._validate()  # the scores of the old weights
            with self.heartbeat, StopRequest(self.config.train.exit_after_minutes) as stop:
                while self.state.step < self.config.train.steps:
                    self.heartbeat.step = self.state.step
                    if self._step(stop.requested) and self.state.step < self.config.train.steps:
                        log.info("stopping after this step: %s", stop.reason or "another rank received a signal")
                        self.writer.save(self.state, self.last_validation, wait=True)
                        done = (self.state.step, self.config.train.steps)
                        log.info("stopped at step %d of %d, saved; continue with the same command and --resume", *done)
                        return False
            log.info("step %d of %d is done: %s", self.state.step, self.config.train.steps, self.run)
            return True
        finally:
            self.batches.close()
            if self.metrics:
                self.metrics.close()

    def _open_files(self) -> None:
        """Files that the main rank writes into the run folder."""
        write_text(self.run / "config.yaml", self.writer.config_text)
        self.metrics = Metrics(self.run, self.config, first_step=self.state.step)

    def _resume(self) -> None:
        checkpoint = self._agreed(lambda: find_checkpoint(self.run))
        check_resume(checkpoint, self.config, self.writer.facts)
        self.writer.set_aside_after(checkpoint)
        load_checkpoint(self.state, checkpoint)
        self.writer.facts |= {key: value for key, value in read_numbers(checkpoint).items() if key == "init_from"}
        log.info("resuming %s at step %d", checkpoint, self.state.step)

    def _agreed(self, find: Callable[[], Any]) -> Any:
        """What `find` returns on the main rank, on all ranks: a checkpoint is large, and file systems may disagree.

        An error is raised on all ranks too, or the others would wait for a main rank that has ended.
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

    def _step(self, stop: Callable[[], bool]) -> bool:
        """One step with what follows it; whether any rank asks to stop."""
        self.last_validation = {}  # a checkpoint has the validation of its own weights only
        with self.clock.stall():
            self.writer.poll()
        start, first_sample = perf_counter(), self.state.consumed_samples
        result = train_step(
            self.state,
            self.batches,
            self.config,
            self.world,
            sequence_length=self.sequence_length,
            problem=self.guard.problem,
            stop=stop,
        )
        self._log(result, perf_counter() - start, self.state.consumed_samples - first_sample)
        if result.problem:
            self.guard.skipped(self.state.step, (first_sample, self.state.consumed_samples), result.problem)
            if len(self.guard.ranges) == MAX_SKIPPED:
                self._roll_back()
                return result.stop
        else:
            self.guard.ranges.clear()
        step, last = self.state.step, self.config.train.steps
        if step == last or (self.config.validation.interval and step % self.config.validation.interval == 0):
            self._validate()
        if not result.problem and (step == last or step % self.config.checkpoint.interval == 0):
            with self.clock.stall():
                self.writer.save(self.state, self.last_validation, wait=step == last)
        return result.stop

    def _log(self, result: StepResult, seconds: float, samples: int) -> None:
        data, step = self.batches.metrics(self.state.consumed_samples), self.state.step
        self.clock.add(seconds, samples, data)
        if self.metrics and self.metrics.is_due(step):
            numbers = {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": result.lr,
                "consumed_samples": self.state.consumed_samples,
                "failed_saves": self.writer.num_failed,
                **data,
                **self.clock.numbers(),
            }
            self.metrics.training(step, numbers)

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, and leave out the samples of the steps skipped in a row."""
        ranges, failed_at = self.guard.take_ranges(), self.state.step
        self.writer.finish()  # the last checkpoint may still be on its way to the disk
        if self.guard.num_rollbacks > MAX_ROLLBACKS or not complete_checkpoints(self.run):
            raise Diverged(
                f"step {failed_at}: {MAX_SKIPPED} bad updates in a row, and no roll-back is left (of {MAX_ROLLBACKS}) "
                f"or no checkpoint to go back to; see {self.run / 'skipped.jsonl'}, lower train.lr, rerun with --resume"
            )
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
        """Score the validation split, and the datasets of validation.extra under their names."""
        protocol, config = protocol_of(self.tokenizer), self.config
        numbers: dict[str, Any] = {}
        for name, pool in self.validated.items():
            count, size = config.validation.samples, config.validation.micro_batch_size
            samples = EvaluationSamples(pool, self.tokenizer, self.sequence_length, samples=count, seed=config.seed)
            evaluation = evaluate_split(self.state.model_parts, samples, self.world, micro_batch_size=size)
            numbers |= evaluation.line(f"valid_extra/{name}_" if name else "valid_")
        self.last_validation = {**numbers, "valid_protocol": protocol}
        if self.metrics:
            self.metrics.validation(self.state.step, numbers, protocol)

    def _announce(self) -> None:
        world, parallel, batch = self.world, self.config.parallel, self.config.train.global_batch_size
        log.info(
            "%d rank%s on %s: tensor %d x pipeline %d x data %d, %s",
            *(world.size, "s" * (world.size > 1), world.device.type, parallel.tensor, parallel.pipeline),
            *(world.data_size, self.config.engine.precision),
        )
        log.info("%d samples of %d tokens a step", batch, self.sequence_length)
