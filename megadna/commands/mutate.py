"""`megadna mutate`: the effect of every substitution, by a language model or a fine-tuned model."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.mutagenesis_options import MutateOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write tables, arrays, tracks and pictures."""
    description = "Saturation mutagenesis: the effect of every substitution in sequences or regions."
    options = checked_options("mutate", description, MutateOptions, arguments)
    log.info("reading %s, mutating it with %s", options.input, options.model)
    from megadna.downstream.inputs import check_input
    from megadna.downstream.mutate import Mutagenesis

    bases = check_input(options.as_input())
    for file in Mutagenesis(options).write(bases):
        sys.stdout.write(wrote(file))
