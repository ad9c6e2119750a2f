"""`megadna mutate`: the effect of every substitution, by a language model or a fine-tuned model."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.mutagenesis_options import MutateOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write tables, arrays, tracks and pictures."""
    parser = new_parser("mutate", "Saturation mutagenesis: the effect of every substitution in sequences or regions.")
    add_options(parser, MutateOptions)
    options = options_from(parse(parser, arguments), MutateOptions)
    options.check_files()
    log.info("reading %s, mutating it with %s", options.input, options.model)
    from megadna.downstream.inputs import check_input

    bases = check_input(options.as_input())
    with Progress("loading the libraries"):
        from megadna.downstream.mutate import Mutagenesis

    for file in Mutagenesis(options).write(bases):
        sys.stdout.write(wrote(file))
