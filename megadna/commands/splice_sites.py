"""`megadna splice-sites`: genome and annotation -> a splice-site dataset."""

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.dataset_options import SpliceOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the dataset folder."""
    parser = new_parser("splice-sites", "Donors, acceptors and negatives of an annotation as labelled windows.")
    add_options(parser, SpliceOptions)
    options = options_from(parse(parser, arguments), SpliceOptions)
    options.check_files()
    log.info("reading %s and %s", options.annotation, options.genome)
    with Progress("loading the libraries"):
        from megadna.downstream.splice_sites import splice_sites

    splice_sites(**vars(options))
