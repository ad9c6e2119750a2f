"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases, and a progress line.

metrics.jsonl and TensorBoard are cut where a run resumes or goes back, so that no step stands twice. Weights & Biases
cannot forget: there the steps that were done again stand twice.
"""

import importlib.util
import json
import math
import re
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megadna.config import Config, LogConfig
from megadna.errors import UserError, require
from megadna.files import write_text
from megadna.log import get_logger
from megadna.progress import Progress
from megadna.train.evaluations import beside_guessing
from megadna.train.metric_lines import cut_after

log = get_logger(__name__)

PLAIN_LINES = 25
"""A run logs about this many progress lines (beside a progress bar only in log.txt) ..."""
PLAIN_SECONDS = 60.0
"""... and one where none came for so long."""


class Metrics:
    """Sinks of the main rank; the other ranks have none and make no Metrics."""

    def __init__(self, run: Path, config: Config, *, first_step: int) -> None:
        self.run, self.config, self.steps = run, config.log, config.train.steps
        self.tensorboard: Any = None
        self._open(first_step)
        self.wandb = _wandb(run, config) if config.log.wandb else None
        self.first_step, self.started, self.shown = first_step, time.monotonic(), -math.inf
        self.shown_step = first_step
        self.progress: Progress | None = None
        if sys.stderr.isatty():
            self.progress = Progress("training", self.steps, "steps", own_lines=True).__enter__()
            self.progress.skip(first_step)

    def _open(self, step: int) -> None:
        cut_after(self.run / "metrics.jsonl", step)
        self.file = (self.run / "metrics.jsonl").open("a", encoding="utf-8")
        if self.config.tensorboard:
            self.tensorboard = _tensorboard(self.run, step)

    def is_due(self, step: int) -> bool:
        """True for the steps that are written: every `log.interval`-th and the last."""
        return step % self.config.interval == 0 or step == self.steps

    def training(self, step: int, numbers: dict[str, Any]) -> None:
        """Show and write a training step that is due."""
        self._show(step, numbers)
        self._write({"step": step, **numbers})

    def validation(self, step: int, numbers: dict[str, Any], protocol: str) -> None:
        """One validation; its keys begin with `valid_`. The line shown names the protocol (MaskedScore)."""
        log.info(
            "step %6d | valid %.4f bits per base%s (standard error %.4f) | accuracy %.4f%s",
            step,
            numbers["valid_bits_per_base"],
            beside_guessing(numbers["valid_bits_per_base"]),
            numbers["valid_bits_per_base_se"] or math.nan,
            numbers["valid_accuracy"],
            "" if protocol == "base" else f" | protocol {protocol}",
        )
        self._write({"step": step, **numbers})

    def go_back(self, step: int) -> None:
        """Drop what was written after `step`: the run goes on from there."""
        self._close_files()
        self._open(step)

    def close(self) -> None:
        """Flush and close every sink."""
        if self.progress:
            self.progress.__exit__()
        if self.wandb:
            self.wandb.finish()
        self._close_files()

    def _close_files(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
        self.file.close()

    def _show(self, step: int, numbers: dict[str, Any]) -> None:
        loss, speed = numbers["loss"], numbers["tokens_per_second"]
        if self.progress:
            self.progress.advance(step - self.shown_step)
            self.progress.note = f"loss {loss:.4f}, {speed:,.0f} tokens/s"
        self.shown_step = step
        now = time.monotonic()
        interval = self.config.interval
        every = max(1, self.steps // PLAIN_LINES // interval) * interval
        if step == self.steps or step % every == 0 or now - self.shown >= PLAIN_SECONDS:
            self.shown = now
            left = int((self.steps - step) * (now - self.started) / max(1, step - self.first_step))
            (log.debug if self.progress else log.info)(
                "step %6d / %d | loss %.4f | grad norm %.2f | lr %.2e | %.0f tokens/s | %d:%02d left",
                *(step, self.steps, loss, numbers["grad_norm"], numbers["lr"], speed, left // 60, left % 60),
            )

    def _write(self, line: dict[str, Any]) -> None:
        lost = {name: None for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
        self.file.write(json.dumps({**line, **lost}) + "\n")
        self.file.flush()
        numbers = {name: value for name, value in line.items() if value is not None and name not in lost}
        if self.wandb:
            self.wandb.log(numbers)
        if self.tensorboard:
            for name in numbers.keys() - {"step"}:
                self.tensorboard.add_scalar(name, numbers[name], line["step"])


def check_log(config: LogConfig, device: torch.device) -> None:
    """UserError where this machine lacks what `log` asks for."""
    if config.wandb:
        missing = "log.wandb is true, but wandb is not installed; pip install 'megadna[wandb]', or set it to false"
        require(importlib.util.find_spec("wandb") is not None, missing)
        import wandb

        known = wandb.setup().settings.mode != "online" or wandb.api.api_key
        require(bool(known), "log.wandb is true, but there is no API key; `wandb login`, or set WANDB_MODE=offline")
    require(
        not config.memory_snapshot or device.type == "cuda",
        "log.memory_snapshot records the memory of a GPU, and this run uses the CPU; set it to false",
    )


def _tensorboard(run: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)


def _wandb(run: Path, config: Config) -> Any:
    """The Weights & Biases run of this folder, the same one when it resumes."""
    import wandb

    identity = _identity(run / "wandb" / "id")
    offline = wandb.setup().settings.mode == "offline"
    try:
        sink = wandb.init(
            project="megadna",
            name=run.resolve().name,
            id=identity,
            resume=None if offline else "allow",
            dir=str(run),
            config=asdict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        raise UserError(f"log.wandb: {error}; set WANDB_MODE=offline, or log.wandb false") from error
    sink.define_metric("*", step_metric="step")  # not wandb's own counter: it refuses a step that is done again
    log.info("Weights & Biases: %s", sink.dir if offline else sink.url)
    return sink


def _identity(file: Path) -> str:
    """The id that `file` holds, a new one where there is no file; UserError where it holds something else."""
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:8])
    identity = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    remedy = "remove it, and the run becomes a new one of Weights & Biases"
    require(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity) is not None, f"{file}: is no id of a run; {remedy}")
    return identity
