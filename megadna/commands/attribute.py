"""`megadna attribute`: importance of every base for a model."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.attribution_options import AttributeOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the importances."""
    description = "How much each base contributes to what a model predicts."
    options = checked_options("attribute", description, AttributeOptions, arguments)
    log.info("reading %s, explaining %s by %s", options.input, options.model, ", ".join(options.methods))
    from megadna.downstream.attribution_input import check_attribution

    bases = check_attribution(options)
    with Progress("loading the libraries"):
        from megadna.downstream.attribute import Attributor

    for path in Attributor(options).write(bases):
        sys.stdout.write(wrote(path))
