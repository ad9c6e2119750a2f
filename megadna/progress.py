"""Progress of long work: share done, rate and time left: a bar on a terminal, a line that changes under the cell of a
notebook, a log line every 30 s elsewhere.

Nested work (an evaluation within a fine-tuning run) is a second bar of the same display, or a second clause of the
line. Ranks above 0 show nothing.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress as rich_progress
from rich.table import Column

from megadna.log import console, get_logger, rank_from_environment

log = get_logger(__name__)

EVERY_SECONDS = 30.0
"""Between two lines where standard error is no terminal."""
CELL_WIDTH = 100
"""Characters of the line in a notebook."""

Item = TypeVar("Item")


class Progress:
    """A context manager around long work; `advance` reports what is done.

    what: the work, as "embedding". total: its amount in `unit` (as "bases"); None where nobody knows. own_lines: the
    caller logs lines itself, and only the bar is wanted.
    """

    def __init__(self, what: str, total: float | None = None, unit: str = "", *, own_lines: bool = False) -> None:
        self.what, self.total, self.unit, self.own_lines = what, total or None, unit, own_lines
        self.note = ""
        """Shown at the end."""
        self.rate = ""
        """Shown instead of the rate in `unit`."""
        self._done = self._skipped = 0.0
        self._started = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        """Add finished work."""
        self._done += amount

    def skip(self, amount: float) -> None:
        """Add work that an earlier command finished; it does not count for the rate."""
        self._skipped += amount

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        if rank_from_environment() == 0:
            _display.add(self)
        return self

    def __exit__(self, *unused: object) -> None:
        _display.remove(self)

    def share(self) -> float | None:
        """Finished share of the total; None where the total is unknown, or was guessed too low."""
        done = self._done + self._skipped
        return done / self.total if self.total and done <= self.total else None

    def numbers(self) -> str:
        """Share, amounts, rate and time left, with commas between."""
        seconds, done, share = time.monotonic() - self._started, self._done + self._skipped, self.share()
        parts = []
        if share is not None:
            parts += [f"{int(100 * share)} %", f"{amount(done)} of {amount(self.total or 0)} {self.unit}".strip()]
        elif done:
            parts.append(f"{amount(done)} {self.unit}".strip())
        if self._done:
            rate = self._done / max(seconds, 1e-9)
            own = f"{amount(rate)} {self.unit}/s" if rate >= 1 else f"{1 / rate:.0f} s each"
            parts.append(self.rate or own)
            if share is not None and self.total:
                parts.append(f"{duration((self.total - done) / rate)} left")
        else:
            parts.append(f"{duration(seconds)} so far")
        return ", ".join([*parts, *filter(None, [self.note])])


def tracked(items: Iterable[Item], what: str, total: float | None = None, unit: str = "") -> Iterator[Item]:
    """The items, one unit of progress each."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def amount(value: float) -> str:
    """Three digits or more, with k, M or G."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if prefix == "k" else size)
            return f"{scaled:.{1 if scaled < 100 else 0}f} {prefix}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """As "45 s", "12 min", "4.5 h" or "30 h"."""
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"


def is_live() -> bool:
    """Whether work is shown in a line that changes: on a terminal or in a notebook."""
    return console.file.isatty() or console.is_jupyter


class _Display:
    """Active work, and the one thread that shows it (rich allows one display at a time)."""

    def __init__(self) -> None:
        self._active: list[Progress] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, progress: Progress) -> None:
        with self._lock:
            self._active.append(progress)
            if len(self._active) == 1:
                self._stop = threading.Event()
                is_terminal = console.file.isatty()  # rich's own answer is yes wherever FORCE_COLOR is set
                run = self._bars if is_terminal else self._cell if console.is_jupyter else self._lines
                self._thread = threading.Thread(target=run, args=(self._stop,), daemon=True, name="progress")
                self._thread.start()

    def remove(self, progress: Progress) -> None:
        thread = None
        with self._lock:
            if progress in self._active:
                self._active.remove(progress)
                if not self._active:
                    self._stop.set()
                    thread = self._thread
        if thread is not None:
            thread.join()  # the bar must be gone before anything else is written

    def _now(self) -> list[Progress]:
        with self._lock:
            return list(self._active)

    def _lines(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY_SECONDS):
            if texts := [f"{each.what}: {each.numbers()}" for each in self._now() if not each.own_lines]:
                log.info("%s", "; ".join(texts))

    def _cell(self, stop: threading.Event) -> None:
        """A notebook shows what follows a carriage return in place of the line before it."""
        while True:
            texts = [f"{each.what}: {each.numbers()}" for each in self._now()]
            sys.stderr.write("\r" + "; ".join(texts)[:CELL_WIDTH].ljust(CELL_WIDTH))
            sys.stderr.flush()
            if stop.wait(1.0):
                sys.stderr.write("\r" + " " * CELL_WIDTH + "\r")
                return

    def _bars(self, stop: threading.Event) -> None:
        columns = (
            rich_progress.TextColumn("{task.description} {task.fields[numbers]}", markup=False),
            rich_progress.BarColumn(None, table_column=Column(ratio=1, min_width=4)),
        )
        tasks: dict[Progress, rich_progress.TaskID] = {}
        with rich_progress.Progress(*columns, console=console, transient=True, auto_refresh=False, expand=True) as bars:
            while True:
                active = self._now()
                for gone in tasks.keys() - set(active):
                    bars.remove_task(tasks.pop(gone))
                for each in active:
                    if each not in tasks:
                        tasks[each] = bars.add_task(each.what, total=None, numbers="")
                    share = each.share()
                    total = None if share is None else 1.0
                    bars.update(tasks[each], total=total, completed=share or 0.0, numbers=each.numbers())
                bars.refresh()
                if stop.wait(0.25):
                    return


_display = _Display()
