"""`megadna predict`: a fine-tuned model over sequences, BED regions or a genome."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.options import PredictOptions, wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the predictions."""
    description = "Run a fine-tuned model over sequences, BED regions or a whole genome."
    options = checked_options("predict", description, PredictOptions, arguments)
    log.info("reading %s, predicting with %s", options.input, options.model)
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    with Progress("loading the libraries"):
        from megadna.downstream.predict import Predictor

    for path in Predictor(options).write(bases):
        sys.stdout.write(wrote(path))
