"""Progress bar in bases, with rate and time left, on a terminal; nothing elsewhere."""

import sys

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megadna.data.inputs import SourceFile
from megadna.log import console

_BASES_PER_BYTE = {"gzip": 4.0, "bgzf": 3.6, "zstd": 4.2, "2bit": 4.0}  # a guess


class Progress(Bar):
    """Bases read so far out of an estimate of the total."""

    def __init__(self, sources: list[SourceFile], finished: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[bases]}"),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console, disable=not sys.stderr.isatty())
        expected = [int(source.size * _BASES_PER_BYTE.get(source.kind, 0.98)) for source in sources[finished:]]
        self._done = 0
        self._task = self.add_task("reading", total=sum(expected) or None, bases="")

    def report(self, name: str, bases: int) -> None:
        """So many more bases are done, of the source of this name."""
        self._done += bases
        speed = self.tasks[0].speed or 0.0
        text = f"{self._done / 1e6:,.0f} Mb, {speed / 1e6:,.0f} Mb/s"
        self.update(self._task, advance=bases, bases=text, description=name[:24])
