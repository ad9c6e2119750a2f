"""`megadna generate`: a masked language model writes or changes DNA, towards what oracles and rules ask for."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.generate_options import GenerateOptions
from megadna.downstream.generate_rules import templates
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the folder and say what is in it."""
    description = "DNA written by a masked language model: new, completed, or changed towards a goal."
    options = checked_options("generate", description, GenerateOptions, arguments)
    log.info("writing sequences by %s with %s", options.method, options.model)
    templates(options)
    with Progress("loading the libraries"):
        from megadna.downstream.generate import generate_with

    table = generate_with(options)
    sys.stdout.write(f"wrote {len(table)} sequences: {options.output}\n")
    log.info("run a screening tool (docs/generation.md) before any of them is synthesised")
