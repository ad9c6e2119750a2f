"""`megadna predict`: a fine-tuned model over sequences, BED regions or a genome."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import PredictOptions


def main(arguments: list[str]) -> None:
    """Write the predictions."""
    parser = new_parser("predict", "Run a fine-tuned model over sequences, BED regions or a whole genome.")
    add_options(parser, PredictOptions)
    options = options_from(parse(parser, arguments), PredictOptions)
    from megadna.downstream.input_checks import PREDICTION_ENDINGS, check_files

    check_files(options, PREDICTION_ENDINGS)
    from megadna.downstream.predict import predict_to_file  # after the input is checked: it takes seconds to import

    for path in predict_to_file(options):
        sys.stdout.write(f"wrote {path}\n")
