"""`megadna benchmark`: a suite of tasks over seeds, next to baselines and published figures."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import BenchmarkOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Run the suite and print its table."""
    parser = new_parser("benchmark", "A suite of tasks over seeds, next to baselines and published figures.")
    add_options(parser, BenchmarkOptions)
    options = options_from(parse(parser, arguments), BenchmarkOptions)
    options.check_files()
    log.info("suite %s: reading %s", options.suite, options.data)
    with Progress("loading the libraries"):
        from megadna.downstream.benchmark import benchmark_with, markdown

    table = benchmark_with(options)
    sys.stdout.write(markdown(table) + f"written to {options.output}/results.md and results.csv\n")
