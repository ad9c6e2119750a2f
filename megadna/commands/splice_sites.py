"""`megadna splice-sites`: genome and annotation -> a splice-site dataset."""

from megadna.arguments import new_parser, parse
from megadna.commands.preprocess import add_options, options_from
from megadna.downstream.splice_sites import SpliceOptions, splice_sites
from megadna.errors import require


def main(arguments: list[str]) -> None:
    """Write the dataset folder."""
    parser = new_parser("splice-sites", "Donors, acceptors and negatives of an annotation as windows with labels.")
    add_options(parser, SpliceOptions)
    options = options_from(parse(parser, arguments), SpliceOptions)
    require(options.output is not None, "megadna splice-sites: --output is missing: the folder to write")
    splice_sites(**vars(options))
