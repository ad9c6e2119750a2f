"""The windows of a genome that `annotate` and `search` embed, counted before a model is loaded.

In:  GenomeWindowOptions; windows of `window` bases, `step` apart, as genome/records.py slides them.
Out: the windows (Stretch), and a Survey of them. Needs no torch.
Windows of which more than half is N (or another ambiguous base) are left out and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megadna.downstream.interpretation_options import AnnotateOptions, GenomeWindowOptions, SearchOptions
from megadna.errors import require
from megadna.genome.records import Stretch, read_stretches, record_lengths, sliding_stretches
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)
_LEAST_FOR_UMAP = 20


@dataclass(frozen=True)
class Survey:
    """What a genome has to embed."""

    lengths: dict[str, int]
    """Bases by contig."""
    windows: int
    bases: int
    """Of all windows together: those in two windows count twice."""


def windows_of(options: GenomeWindowOptions, window: int, step: int) -> Iterator[Stretch]:
    """The windows that are not mostly N, in the order of the genome."""
    for stretch in sliding_stretches(options.genome, window, step, tuple(options.circular)):
        if not _is_mostly_n(stretch):
            yield stretch


def survey(options: GenomeWindowOptions, window: int, step: int) -> Survey:
    """Read the whole genome; UserError if it cannot be read, two contigs share a name, or no window remains."""
    with Progress(f"checking {options.genome}"):
        lengths = record_lengths(options.genome)
        if short := [name for name, length in lengths.items() if length < window]:
            text = "%s shorter than a window (%d bases), one window each: %s"
            log.warning(text, counted(len(short), "contig"), window, ", ".join(short[:10]))
        kept = bases = left_out = 0
        for stretch in sliding_stretches(options.genome, window, step, tuple(options.circular)):
            if _is_mostly_n(stretch):
                left_out += 1
            else:
                kept += 1
                bases += stretch.end - stretch.start
    if left_out:
        text = "%d of %s left out: more than half of the bases are N"
        log.info(text, left_out, counted(left_out + kept, "window"))
    require(kept > 0, f"{options.genome}: more than half of every window is N; give a genome with known bases")
    return Survey(lengths, kept, bases)


def check_windows(options: AnnotateOptions) -> Survey:
    """What will be embedded; UserError if there are too few windows."""
    found = survey(options, options.window, options.step or options.window)
    least = max(options.clusters, 3)
    require(
        found.windows >= least,
        f"{options.genome}: {counted(found.windows, 'window')} of {options.window} bases, and --clusters "
        f"{options.clusters} needs at least {least}; take a smaller --window or --step, or fewer --clusters",
    )
    enough = options.projection != "umap" or found.windows >= _LEAST_FOR_UMAP
    require(
        enough, f"{options.genome}: UMAP needs {_LEAST_FOR_UMAP} windows, not {found.windows}; say --projection pca"
    )
    return found


def queries_of(options: SearchOptions) -> tuple[list[Stretch], int, int]:
    """(queries, bases of a window, bases from one to the next); UserError if a query is longer than a window, or has
    no A, C, G or T."""
    queries = list(read_stretches(options.input, column=options.column))
    window = options.window or max(len(query.bases) for query in queries)
    step = options.step or max(1, window // 4)
    require(step <= window, f"--step {step} is longer than the windows, which have {window} bases; say --window too")
    for query in queries:
        known = len(query.bases) - query.bases.count("N")
        require(known > 0, f"{options.input}: query {query.name} has no A, C, G or T; leave it out")
        require(
            len(query.bases) <= window,
            f"{options.input}: query {query.name} has {len(query.bases):,} bases, more than --window {window}; cut it, "
            "or give a longer --window",
        )
    if short := sum(2 * len(query.bases) < window for query in queries):
        text = "%d of %s with less than half the bases of a window (%d): compare like with like, by --window"
        log.warning(text, short, counted(len(queries), "query", "queries"), window)
    return queries, window, step


def _is_mostly_n(stretch: Stretch) -> bool:
    return 2 * stretch.bases.count("N") > len(stretch.bases)
