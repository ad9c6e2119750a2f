"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and a progress line with loss, tokens/s and time left."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megadna.config import LogConfig
from megadna.log import console, get_logger

log = get_logger(__name__)

PLAIN_LINES = 25
"""Where there is no terminal, a run prints about this many progress lines."""


class Metrics:
    """Sinks of the main rank; the other ranks have none and make no Metrics."""

    def __init__(self, run: Path, config: LogConfig, *, first_step: int, steps: int) -> None:
        self.path = run / "metrics.jsonl"
        cut_after(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8")
        self.interval = config.interval
        self.steps = steps
        self.tensorboard = _tensorboard(run, first_step) if config.tensorboard else None
        self.progress = _progress() if sys.stderr.isatty() else None
        if self.progress:
            self.progress.start()
            self.task = self.progress.add_task("training", total=steps, completed=first_step, numbers="")

    def training(self, step: int, numbers: dict[str, Any]) -> None:
        """One training step: shown always, written every `log.interval` steps and at the last."""
        self._show(step, numbers)
        if step % self.interval == 0 or step == self.steps:
            self._write({"step": step, **numbers})

    def validation(self, step: int, numbers: dict[str, Any], protocol: str) -> None:
        """One validation; its keys begin with `valid_`. The line shown names the protocol (MaskedScore)."""
        log.info(
            "step %6d | valid %.4f bits per base (standard error %.4f) | accuracy %.4f%s",
            step,
            numbers["valid_bits_per_base"],
            numbers["valid_bits_per_base_se"] or math.nan,
            numbers["valid_accuracy"],
            "" if protocol == "base" else f" | protocol {protocol}",
        )
        self._write({"step": step, **numbers})

    def go_back(self, step: int) -> None:
        """Drop what was written behind `step`: the run goes on from there."""
        self.file.close()
        cut_after(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Flush and close every sink."""
        if self.progress:
            self.progress.stop()
        if self.tensorboard:
            self.tensorboard.close()
        self.file.close()

    def _show(self, step: int, numbers: dict[str, Any]) -> None:
        loss, speed = numbers["loss"], numbers["tokens_per_second"]
        if self.progress:
            self.progress.update(self.task, completed=step, numbers=f"loss {loss:.4f}  {speed:,.0f} tokens/s")
        elif step == 1 or step == self.steps or step % max(1, self.steps // PLAIN_LINES) == 0:
            left = numbers["seconds_left"]
            log.info(
                "step %6d / %d | loss %.4f | grad norm %.2f | lr %.2e | %.0f tokens/s | %d:%02d left",
                *(step, self.steps, loss, numbers["grad_norm"], numbers["lr"], speed, left // 60, left % 60),
            )

    def _write(self, line: dict[str, Any]) -> None:
        line = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in line.items()
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.tensorboard:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self.tensorboard.add_scalar(name, value, line["step"])


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl behind `step`, and a half-written last one, so that no step stands twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    temporary = path.with_suffix(".jsonl.partial")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _tensorboard(run: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
