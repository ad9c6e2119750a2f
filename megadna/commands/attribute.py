"""`megadna attribute`: importance of every base for a model."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.attribution_options import AttributeOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the importances."""
    parser = new_parser("attribute", "How much each base contributes to what a model predicts.")
    add_options(parser, AttributeOptions)
    options = options_from(parse(parser, arguments), AttributeOptions)
    options.check_files()
    log.info("reading %s, explaining %s by %s", options.input, options.model, ", ".join(options.methods))
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    with Progress("loading the libraries"):
        from megadna.downstream.attribute import Attributor

    for path in Attributor(options).write(bases):
        sys.stdout.write(wrote(path))
