"""Progress bar in bases, with rate and time left, on a terminal; nothing elsewhere."""

import sys
from types import TracebackType

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megadna.data.inputs import SourceFile
from megadna.log import console

_BASES_PER_BYTE = {
    "gzip": 4.0,
    "bgzf": 3.6,
    "zstd": 4.2,
    "2bit": 4.0,
}  # first guess of the total; corrected source by source


class Progress:
    """Bases read so far out of an estimate of the total."""

    def __init__(self, sources: list[SourceFile], finished: int) -> None:
        self._expected = [int(source.size * _BASES_PER_BYTE.get(source.kind, 0.98)) for source in sources]
        self._names = [source.name for source in sources]
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[bases]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not sys.stderr.isatty(),
        )
        self._done = 0
        self._task = self._bar.add_task("reading", total=sum(self._expected[finished:]) or None, bases="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, number: int) -> None:
        """A source starts."""
        self._bar.update(self._task, description=self._names[number][:24])

    def advance(self, bases: int) -> None:
        """So many more bases are done."""
        self._done += bases
        speed = self._bar.tasks[0].speed or 0.0
        text = f"{self._done / 1e6:,.0f} Mb, {speed / 1e6:,.0f} Mb/s"
        self._bar.update(self._task, advance=bases, bases=text)
