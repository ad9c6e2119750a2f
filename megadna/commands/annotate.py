"""`megadna annotate`: windows of a genome -> clusters of their embeddings, and what these are enriched in."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.annotate_options import AnnotateOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the BED file and what goes with it."""
    description = "Clusters of a genome's windows by their embeddings, without labels."
    options = checked_options("annotate", description, AnnotateOptions, arguments)
    log.info("reading %s, embedding with %s", options.genome, options.model)
    from megadna.downstream.genome_windows import check_windows

    found = check_windows(options)
    features = None
    if options.annotation is not None:
        from megadna.downstream.enrichment import read_track

        with Progress(f"reading {options.annotation}"):
            features = read_track(options.annotation, found.lengths)
    with Progress("loading the libraries"):
        from megadna.downstream.annotate import Annotator

    for path in Annotator(options, features).write(found.bases):
        sys.stdout.write(wrote(path))
