"""`megadna dependencies`: which bases of a region depend on which others."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.mutagenesis_options import DependencyOptions
from megadna.downstream.options import wrote
from megadna.log import get_logger

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write maps and pictures; print the stems and repeats found."""
    description = "Dependency maps: how much each base's prediction depends on each other base."
    options = checked_options("dependencies", description, DependencyOptions, arguments)
    log.info("reading %s, mapping it with %s", options.input, options.model)
    from megadna.downstream.dependencies import Dependencies
    from megadna.downstream.inputs import check_input

    bases = check_input(options.as_input())
    work = Dependencies(options)
    files = work.write(bases)
    if work.found is not None:
        text = work.found.to_string(index=False, float_format="%.3g") if len(work.found) else "no stem or repeat found"
        sys.stdout.write(text + "\n")
    for file in files:
        sys.stdout.write(wrote(file))
