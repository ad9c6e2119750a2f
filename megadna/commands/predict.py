"""`megadna predict`: a fine-tuned model over sequences, BED regions or a genome."""

import sys

from megadna.arguments import new_parser, parse
from megadna.commands.preprocess import add_options, options_from


def main(arguments: list[str]) -> None:
    """Write the predictions."""
    from megadna.downstream.predict import PredictOptions, predict_to_file

    parser = new_parser("predict", "Run a fine-tuned model over sequences, BED regions or a whole genome.")
    add_options(parser, PredictOptions)
    options = options_from(parse(parser, arguments), PredictOptions)
    for path in predict_to_file(options):
        sys.stdout.write(f"wrote {path}\n")
