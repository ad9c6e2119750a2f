"""`megadna windows`: peaks, start sites or bigWig values -> a dataset of labelled windows."""

from megadna.arguments import new_parser, parse
from megadna.commands.preprocess import add_options, options_from
from megadna.downstream.windows import WindowOptions, windows
from megadna.errors import require


def main(arguments: list[str]) -> None:
    """Write the dataset folder."""
    parser = new_parser("windows", "Windows around peaks or start sites, or with bigWig values, as a labelled dataset.")
    add_options(parser, WindowOptions)
    options = options_from(parse(parser, arguments), WindowOptions)
    require(options.output is not None, "megadna windows: --output is missing: the folder to write")
    windows(**vars(options))
