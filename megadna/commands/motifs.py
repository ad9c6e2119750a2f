"""`megadna motifs`: bases of high importance -> motifs that are enriched against negatives."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.attribution_options import MotifOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the folder of motifs and print their table."""
    description = "Motifs in the bases of high importance, enriched against negative sequences."
    options = checked_options("motifs", description, MotifOptions, arguments)
    log.info("reading %s and %s", options.input, options.negatives)
    with Progress("loading the libraries"):
        from megadna.downstream.motifs import motifs_with

    table = motifs_with(options)
    sys.stdout.write(f"{table.to_string(index=False)}\n" if len(table) else "no motif\n")
    sys.stdout.write(f"wrote {options.output}\n")
