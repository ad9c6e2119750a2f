"""The regions of a command that computes something for each of their bases: its input, its parts, its files.

In:  the input that RegionOptions name.
Out: stretches with the bases of context that the computation reads, cut into pieces that are parts of the output; and
     a file for each region where a format holds one region.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megadna.downstream.inputs import count_unknown, file_names, read_input
from megadna.downstream.interpretation_options import RegionOptions
from megadna.errors import require
from megadna.genome.records import Stretch

LONGEST_PICTURE = 2000
"""Bases; more are no picture that anyone reads."""
MOST_PICTURES = 500
"""Regions of one command that get files of their own."""


WHOLE = 1 << 62
"""Context: all of a stretch."""


@dataclass(frozen=True)
class Region:
    """One region, or whole record."""

    contig: str
    start: int
    end: int
    strand: str
    """+ or -; "." of a record (read as +)."""
    name: str
    """Column 4 of the BED file; "" where there is none."""
    bases: str
    """As the model reads them, 5' to 3' of the strand, without context."""

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def title(self) -> str:
        """The name, if it has one, and contig:start-end (strand), 0-based and half-open."""
        where = f"{self.contig}:{self.start:,}-{self.end:,}" + (f" ({self.strand})" if self.strand != "." else "")
        return f"{self.name}, {where}" if self.name else where

    @property
    def step(self) -> int:
        """From a base to the next one read: 1, or -1 on the minus strand."""
        return -1 if self.strand == "-" else 1

    def index(self, position: int) -> int:
        """Index in `bases` of a position on the contig."""
        return self.end - 1 - position if self.strand == "-" else position - self.start

    def position(self, index: int) -> int:
        """0-based position on the contig of a base by its index in `bases`."""
        return self.end - 1 - index if self.strand == "-" else self.start + index


def region_of(stretch: Stretch) -> Region:
    """The region that a whole stretch is."""
    name = "" if stretch.region == "." else stretch.region
    return Region(stretch.name, stretch.start, stretch.end, stretch.strand, name, stretch.own)


def pieces(stretch: Stretch, size: int, context: int) -> Iterator[Stretch]:
    """The stretch in pieces of at most `size` bases, in the order of its bases, each with `context` bases around."""
    length = stretch.end - stretch.start
    for first in range(0, length, size):
        last = min(length, first + size)
        low = max(0, stretch.before + first - context)
        high = min(len(stretch.bases), stretch.before + last + context)
        yield stretch.part(first, last, low, high)


def checked_regions(options: RegionOptions, missing: str) -> list[Region]:
    """The regions, without context; UserError where every base is N, or where one is too long for its picture. The log
    counts the N, which have no `missing`."""
    found = list(map(region_of, read_input(options)))
    count_unknown(((region.title, region.bases) for region in found), missing)
    if drawn := options.written(".png", ".html"):
        check_sizes(drawn, found)
    return found


def sidecar(path: Path) -> Path:
    """The JSON file that says what an array is."""
    return path.with_name(path.name + ".json")


def check_sizes(output: Path, regions: list[Region]) -> None:
    """UserError if a region is too long for a picture."""
    for region in regions:
        require(
            len(region) <= LONGEST_PICTURE,
            f"{output}: {region.title} has {len(region):,} bases; a picture shows {LONGEST_PICTURE:,} at most: give "
            "shorter regions with --bed, or write no .png and .html",
        )


def files_of(output: Path, regions: list[Region]) -> list[Path]:
    """The file of each region: OUTPUT itself if there is one region; else with the region's name (its coordinates where
    names are missing or repeated) before the ending. UserError above MOST_PICTURES."""
    if len(regions) == 1:
        return [output]
    many = f"{output}: {len(regions)} regions would each get a file; give {MOST_PICTURES} at most with --bed"
    require(len(regions) <= MOST_PICTURES, many)
    names = [region.name for region in regions]
    if "" in names or len(set(names)) < len(names):
        names = [f"{r.contig}_{r.start}-{r.end}" + "minus" * (r.strand == "-") for r in regions]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    names = [f"{name}.{number}" if name in repeated else name for number, name in enumerate(names, start=1)]
    parts = file_names(names, f"{output.stem}.{{}}{output.suffix}.json")
    return [output.with_name(f"{output.stem}.{parts[name]}{output.suffix}") for name in names]
