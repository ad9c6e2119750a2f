"""`megadna embed`: sequences -> embeddings of a Hugging Face encoder."""

import sys

from megadna.arguments import new_parser, parse
from megadna.commands.preprocess import add_options, options_from


def main(arguments: list[str]) -> None:
    """Write the embeddings file."""
    from megadna.downstream.embed import EmbedOptions, embed_to_file

    parser = new_parser("embed", "Embeddings of DNA sequences: a vector a sequence or a nucleotide.")
    add_options(parser, EmbedOptions)
    options = options_from(parse(parser, arguments), EmbedOptions)
    embed_to_file(options)
    sys.stdout.write(f"wrote {options.output}\n")
