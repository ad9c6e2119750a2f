"""`megadna windows`: peaks, start sites or bigWig values -> a dataset of labelled windows."""

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.dataset_options import WindowOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the dataset folder."""
    parser = new_parser("windows", "Windows around peaks or start sites, or with bigWig values, as a labelled dataset.")
    add_options(parser, WindowOptions)
    options = options_from(parse(parser, arguments), WindowOptions)
    options.check_files()
    log.info("reading %s", options.genome)
    with Progress("loading the libraries"):
        from megadna.downstream.windows import windows

    windows(**vars(options))
