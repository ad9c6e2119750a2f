"""metrics.jsonl read line by line, and curves of bounded size.

In:  the file of a run that may still be going on, may have been killed, or lies on a damaged disk.
Out: its lines as dictionaries of numbers, one in memory at a time. What is no such line is counted, never raised.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadna.errors import UserError, require
from megadna.files import atomic_file
from megadna.log import get_logger

log = get_logger(__name__)

MAX_LINE = 1 << 20
"""Bytes; a longer line is none of ours, and is never held whole."""
NUMBERS = {int, float, type(None)}
MOST_POINTS = 4000
"""Points of a curve; an even number."""


class MetricLines:
    """Iterate for the lines; the attributes say what was left out so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.num_broken = 0
        """Lines that are no JSON object of numbers with a step."""
        self.first_broken = 0
        """Number of the first of them, from 1."""
        self.is_cut = False
        """Whether the last line has no end: the run is writing it, or was killed doing so."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines in their order; UserError where the file cannot be read at all."""
        try:
            opened = self.file.open("rb")
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); move away what is there") from error
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
                    self._leave_out(number, is_cut=not part)

    def _leave_out(self, number: int, *, is_cut: bool) -> None:
        self.is_cut = is_cut
        if not is_cut:
            self.num_broken += 1
            self.first_broken = self.first_broken or number

    def notes(self) -> list[str]:
        """What was left out, a sentence each."""
        found = []
        if self.num_broken:
            found.append(
                f"{self.file}: lines left out: {self.num_broken:,}, as they are no JSON objects of numbers with a step "
                f"(the first is line {self.first_broken:,})"
            )
        if self.is_cut:
            found.append(f"{self.file}: the last line is cut off and was left out")
        return found


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The line as a dictionary; None where it is none of ours."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return line if NUMBERS.issuperset(map(type, line.values())) else None


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a half-written last one, so that no step is there twice.

    Damaged lines are left out as well, with a warning.
    """
    if not path.exists():
        if step:
            log.warning("%s: missing, so the numbers up to step %d are lost", path, step)
        return
    require(path.is_file(), f"{path}: cannot be read (it is no file); move away what is there")
    lines = MetricLines(path)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as kept:
        kept.writelines(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
    if lines.num_broken:  # a last line that is cut is what a killed run leaves
        log.warning("%s", lines.notes()[0])


class Curve:
    """Values over steps in at most MOST_POINTS buckets, however long the run.

    The rule: every line has a bucket of its own until there are MOST_POINTS; then neighbouring buckets are joined two
    by two, and from there on a bucket takes twice as many lines. A bucket keeps its last step and the lowest, the
    highest and the mean of its values, so that no extreme is lost; the last line is kept as it is. A bucket without
    any value is a gap.
    """

    def __init__(self) -> None:
        self.num_lines = 0
        self._width = 1  # lines of a full bucket
        self._room = 0  # lines that the last bucket still takes
        self._buckets: list[list[float]] = []  # last step, number of values, their sum, lowest, highest
        self._last: tuple[float, float] = (math.nan, math.nan)  # step and value
        self._before = math.nan  # step of the line before the last

    def add(self, step: int, value: float | None) -> None:
        """One more line; None or a number that is not finite is no value."""
        self.num_lines += 1
        if not self._room:
            if len(self._buckets) == MOST_POINTS:
                pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
                self._buckets = [_joined(first, second) for first, second in pairs]
                self._width *= 2
            self._buckets.append([step, 0, 0.0, math.inf, -math.inf])
            self._room = self._width
        self._room -= 1
        self._before, self._last = self._last[0], (step, math.nan)
        bucket = self._buckets[-1]
        bucket[0] = step
        if value is not None and math.isfinite(value):
            self._last = step, value
            bucket[1] += 1
            bucket[2] += value
            bucket[3] = min(bucket[3], value)
            bucket[4] = max(bucket[4], value)

    @property
    def is_thinned(self) -> bool:
        """Whether a point summarises several lines."""
        return self._width > 1

    def points(self) -> tuple[NDArray[np.float64], ...]:
        """Steps, means, lowest and highest values, float64 each; NaN where a bucket has no value."""
        steps, known, total, low, high = np.array(self._buckets).reshape(-1, 5).T
        gap = known == 0
        columns = [np.where(gap, np.nan, values) for values in (total / np.maximum(1, known), low, high)]
        if self._width - self._room > 1:  # the last bucket holds more than the last line
            steps = np.append(steps[:-1], (self._before, self._last[0]))
            columns = [np.append(values, self._last[1]) for values in columns]
        return steps, *columns


def _joined(first: list[float], second: list[float]) -> list[float]:
    """One bucket of two."""
    low, high = min(first[3], second[3]), max(first[4], second[4])
    return [second[0], first[1] + second[1], first[2] + second[2], low, high]
