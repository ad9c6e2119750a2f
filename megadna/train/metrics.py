"""The numbers of a run: written to metrics.jsonl, TensorBoard, Weights & Biases and a progress line; read back.

In:  what each step and validation measured; or the metrics.jsonl of a run that may still be running, may have been
     killed, or is on a damaged disk.
Out: the sinks; or its lines one at a time as dictionaries of numbers, and curves of bounded size. What is not such a
     line is counted, never raised.

metrics.jsonl and TensorBoard are cut when a run resumes or goes back, so that no step is in them twice. Weights &
Biases cannot delete: repeated steps are there twice.
"""

import importlib.util
import json
import math
import re
import time
import uuid
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadna.config import Config, LogConfig
from megadna.errors import UserError, require
from megadna.files import atomic_file, write_text
from megadna.log import get_logger
from megadna.progress import EVERY_SECONDS, Progress, amount, duration, is_live
from megadna.train.run_folder import beside_guessing

log = get_logger(__name__)

MAX_LINE = 1 << 20
"""Bytes; a longer line is not ours, and is never in memory as a whole."""
NUMBERS = {int, float, type(None)}
MOST_POINTS = 4000
"""Points of a curve, without the last line's."""
BEST_METRICS = ("valid_bits_per_base_macro_unique", "valid_bits_per_base_macro", "valid_bits_per_base")
"""The best checkpoint is the one with the lowest value of the first of these that the run has."""


class MetricLines:
    """Iterate over the lines; the attributes count what was left out so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.num_broken = 0
        """Lines that are not a JSON object of numbers with a step."""
        self.first_broken = 0
        """Number of the first of them, from 1."""
        self.is_cut = False
        """Whether the last line is incomplete: the run is writing it, or was killed doing so."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines in order; UserError if the file cannot be read at all."""
        try:
            opened = self.file.open("rb")
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); move it away") from error
        with opened:
            number = 0
            while text := opened.readline(MAX_LINE):
                number += 1
                part = text
                while part and not part.endswith(b"\n"):  # longer than MAX_LINE, or the last one
                    part = opened.readline(MAX_LINE)
                line = _parsed(text)
                if line is not None:
                    yield line
                elif text.strip():
                    self.is_cut = not part
                    if part:
                        self.num_broken += 1
                        self.first_broken = self.first_broken or number

    def notes(self) -> list[str]:
        """What was left out, one sentence each."""
        found = []
        if self.num_broken:
            found.append(
                f"{self.file}: lines left out: {self.num_broken:,}, not JSON objects of numbers with a step "
                f"(the first is line {self.first_broken:,})"
            )
        if self.is_cut:
            found.append(f"{self.file}: the last line is cut off and was left out")
        return found


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The line as a dictionary; None if it is not one of ours."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return line if NUMBERS.issuperset(map(type, line.values())) else None


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, a half-written last one, and (with a warning) damaged ones."""
    if not path.exists():
        if step:
            log.warning("%s: missing, so the metrics up to step %d are lost", path, step)
        return
    require(path.is_file(), f"{path}: cannot be read (it is not a file); move it away")
    lines = MetricLines(path)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as kept:
        kept.writelines(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
    if lines.num_broken:  # an incomplete last line is normal after a kill
        log.warning("%s", lines.notes()[0])


class Curve:
    """Values over steps, drawn as at most MOST_POINTS points and the last one.

    Of more lines, a point summarises as many neighbours as it takes: their last step and the mean, minimum and maximum
    of their values, so that no extreme is lost; the last line is a point of its own. A point without a value is a gap.
    """

    def __init__(self) -> None:
        self._steps, self._values = array("d"), array("d")

    def add(self, step: int, value: float | None) -> None:
        """Add a line; None or a number that is not finite is no value."""
        self._steps.append(step)
        self._values.append(value if value is not None and math.isfinite(value) else math.nan)

    @property
    def num_lines(self) -> int:
        """Lines that were added."""
        return len(self._steps)

    @property
    def is_thinned(self) -> bool:
        """Whether a point summarises several lines."""
        return self.num_lines > MOST_POINTS

    def points(self) -> tuple[NDArray[np.float64], ...]:
        """Steps, means, lowest and highest values, float64 each; NaN where a point has no value."""
        steps, values = np.array(self._steps), np.array(self._values)
        if not self.is_thinned:
            return steps, values, values, values
        firsts = np.arange(0, len(steps) - 1, -(-len(steps) // MOST_POINTS))
        sums, counts = np.add.reduceat(np.array([np.nan_to_num(values[:-1]), np.isfinite(values[:-1])]), firsts, axis=1)
        means = np.divide(sums, counts, out=np.full(len(firsts), np.nan), where=counts > 0)
        low, high = (edge.reduceat(values[:-1], firsts) for edge in (np.fmin, np.fmax))
        columns = (steps[np.append(firsts[1:], len(steps) - 1) - 1], means, low, high)
        return tuple(np.append(column, last[-1]) for column, last in zip(columns, (steps, *[values] * 3), strict=True))


PLAIN_LINES = 25
"""A run logs about this many progress lines (where a line changes, only in log.txt), and one if there was none for
EVERY_SECONDS."""


class Metrics:
    """The sinks; only the main rank has them."""

    def __init__(self, run: Path, config: Config, *, first_step: int) -> None:
        self.run, self.config, self.steps = run, config.log, config.train.steps
        self.tensorboard: Any = None
        self._open(first_step)
        self.wandb = _wandb(run, config) if config.log.wandb else None
        self.first_step, self.started, self.shown = first_step, time.monotonic(), -math.inf
        self.shown_step = first_step
        self.progress: Progress | None = None
        if is_live():
            self.progress = Progress("training", self.steps, "steps", own_lines=True).__enter__()
            self.progress.skip(first_step)

    def _open(self, step: int) -> None:
        cut_after(self.run / "metrics.jsonl", step)
        self.file = (self.run / "metrics.jsonl").open("a", encoding="utf-8")
        if self.config.tensorboard:
            self.tensorboard = _tensorboard(self.run, step)

    def is_due(self, step: int) -> bool:
        """True for steps that are written: every `log.interval`-th and the last."""
        return step % self.config.interval == 0 or step == self.steps

    def training(self, step: int, numbers: dict[str, Any]) -> None:
        """Show and write a training step that is due."""
        self._show(step, numbers)
        self._write({"step": step, **numbers})

    def validation(self, step: int, numbers: dict[str, Any], protocol: str) -> None:
        """Show and write a validation, whose keys begin with `valid_`; the protocol is that of MaskedScore."""
        bits, error = numbers["valid_bits_per_base"], numbers["valid_bits_per_base_se"]
        spread = "" if error is None else f" ± {error:.4f}"
        text = "step %d, valid %.4f%s bits per base%s, accuracy %.4f%s"
        of_blocks = "" if protocol == "base" else f", protocol {protocol}"
        log.info(text, step, bits, spread, beside_guessing(bits), numbers["valid_accuracy"], of_blocks)
        self._write({"step": step, **numbers})

    def go_back(self, step: int) -> None:
        """Drop what was written after `step`, from which the run continues."""
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
        loss, speed = f"loss {numbers['loss']:.4f}", f"{amount(numbers['tokens_per_second'])} tokens/s"
        if self.progress:
            self.progress.advance(step - self.shown_step)
            self.progress.rate, self.progress.note = speed, loss
        self.shown_step = step
        now = time.monotonic()
        interval = self.config.interval
        every = max(1, self.steps // PLAIN_LINES // interval) * interval
        if step == self.steps or step % every == 0 or now - self.shown >= EVERY_SECONDS:
            self.shown = now
            left = duration((self.steps - step) * (now - self.started) / max(1, step - self.first_step))
            lr = f"{numbers['lr']:.1e}".replace("e-0", "e-").replace("0.0e+00", "0")  # so that the line fits 80 columns
            numbered = (step, self.steps, loss, lr, speed, left)
            (log.debug if self.progress else log.info)("step %d/%d, %s, lr %s, %s, %s left", *numbered)

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


def check_log(config: LogConfig) -> None:
    """UserError if this machine lacks what `log` needs."""
    if config.wandb:
        missing = "log.wandb is true, but wandb is not installed; pip install 'megadna[wandb]', or set it to false"
        require(importlib.util.find_spec("wandb") is not None, missing)
        import wandb

        known = wandb.setup().settings.mode != "online" or wandb.api.api_key
        require(bool(known), "log.wandb is true, but there is no API key; `wandb login`, or set WANDB_MODE=offline")


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
    sink.define_metric("*", step_metric="step")  # not wandb's own counter, which refuses a repeated step
    log.info("Weights & Biases: %s", sink.dir if offline else sink.url)
    return sink


def _identity(file: Path) -> str:
    """The id in `file`, a new one if there is no file; UserError if it contains something else."""
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:8])
    identity = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    remedy = "delete it to start a new run of Weights & Biases"
    require(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity) is not None, f"{file}: not the id of a run; {remedy}")
    return identity
