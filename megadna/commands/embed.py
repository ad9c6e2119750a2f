"""`megadna embed`: sequences -> embeddings of a Hugging Face encoder."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.options import EmbedOptions, wrote
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the embeddings file."""
    description = "Embeddings of DNA sequences: one vector per sequence or per nucleotide."
    options = checked_options("embed", description, EmbedOptions, arguments)
    log.info("reading %s, embedding with %s", options.input, options.model)
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    with Progress("loading the libraries"):
        from megadna.downstream.embed import Embedder

    for path in Embedder(options).write(bases):
        sys.stdout.write(wrote(path))
