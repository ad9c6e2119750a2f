"""`megadna generate`: a masked language model writes or changes DNA, towards what oracles and rules ask for."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.generate_options import GenerateOptions
from megadna.downstream.generate_rules import templates
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the folder and say what is in it."""
    parser = new_parser(
        "generate", "DNA written by a masked language model: new, completed, or changed towards a goal."
    )
    add_options(parser, GenerateOptions)
    options = options_from(parse(parser, arguments), GenerateOptions)
    options.check_files()
    templates(options)
    with Progress("loading the libraries"):
        from megadna.downstream.generate import generate_with

    table = generate_with(options)
    sys.stdout.write(f"wrote {len(table)} sequences: {options.output}\n")
    log.info("run a screening tool (docs/generation.md) before any of them is synthesised")
