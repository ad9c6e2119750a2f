"""`megadna search`: the nearest windows of a genome to query sequences, by embedding."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.annotate_options import SearchOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the hits."""
    parser = new_parser("search", "The windows of a genome whose embeddings are nearest to those of query sequences.")
    add_options(parser, SearchOptions)
    options = options_from(parse(parser, arguments), SearchOptions)
    options.check_files()
    log.info("reading %s and %s, embedding with %s", options.input, options.genome, options.model)
    from megadna.downstream.genome_windows import queries_of, survey

    queries, window, step = queries_of(options)
    found = survey(options, window, step)
    log.info("%d queries against %d windows of %d bases, %d apart", len(queries), found.windows, window, step)
    with Progress("loading the libraries"):
        from megadna.downstream.search import Searcher

    for path in Searcher(options, queries, window, step).write(found.bases):
        sys.stdout.write(wrote(path))
