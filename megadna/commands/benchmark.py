"""`megadna benchmark`: a suite of tasks over seeds, beside baselines and published figures."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import BenchmarkOptions
from megadna.log import get_logger
from megadna.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

log = get_logger(__name__)
MAX_CONTAINMENT = 0.2


def main(arguments: list[str]) -> None:
    """Run the suite and print its table."""
    parser = new_parser("benchmark", "A suite of tasks over seeds, beside baselines and published figures.")
    add_options(parser, BenchmarkOptions)
    options = options_from(parse(parser, arguments), BenchmarkOptions)
    options.check_files()
    log.info("suite %s: reading %s", options.suite, options.data)
    with Progress("loading the libraries"):
        from megadna.downstream.benchmark import benchmark_with, markdown

    dataset = options.pretraining_data
    table = benchmark_with(options, None if dataset is None else lambda test: leaked_share(dataset, test))
    sys.stdout.write(markdown(table) + f"written to {options.output}/results.md and results.csv\n")


def leaked_share(dataset: Path, test: "pd.DataFrame") -> float:
    """Share of the test sequences of which the dataset's training split contains more than MAX_CONTAINMENT."""
    import numpy as np

    from megadna.data.leakage import sequence_overlap

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "test.csv")
        test[["sequence"]].to_csv(path, index=False)
        shares = sequence_overlap(dataset, "train", path, "sequence").shares
    known = shares[~np.isnan(shares)]
    return float((known > MAX_CONTAINMENT).mean()) if len(known) else float("nan")
