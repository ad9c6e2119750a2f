"""`megadna search`: the nearest windows of a genome to query sequences, by embedding."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.annotate_options import SearchOptions
from megadna.downstream.options import wrote
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the hits."""
    description = "The windows of a genome whose embeddings are nearest to those of query sequences."
    options = checked_options("search", description, SearchOptions, arguments)
    log.info("reading %s and %s, embedding with %s", options.input, options.genome, options.model)
    from megadna.downstream.genome_windows import queries_of, survey

    queries, window, step = queries_of(options)
    found = survey(options, window, step)
    both = counted(len(queries), "query", "queries"), counted(found.windows, "window")
    log.info("%s against %s of %d bases, %d apart", *both, window, step)
    with Progress("loading the libraries"):
        from megadna.downstream.search import Searcher

    for path in Searcher(options, queries, window, step).write(found.bases):
        sys.stdout.write(wrote(path))
