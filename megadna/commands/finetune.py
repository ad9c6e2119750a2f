"""`megadna finetune`: a Hugging Face encoder and labelled sequences -> a fine-tuned model and its scores."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import FinetuneOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

if TYPE_CHECKING:
    import pandas as pd


def main(arguments: list[str]) -> None:
    """Fine-tune; print the scores as means over the runs."""
    parser = new_parser("finetune", "Fine-tune a DNA encoder on labelled sequences.")
    parser.add_argument("--config", action="config", help="YAML file of options (configs/finetune/)")
    add_options(parser, FinetuneOptions)
    options = options_from(parse(parser, arguments), FinetuneOptions)
    options.check_files()
    log.info("reading %s", options.data)
    with Progress("loading the libraries"):
        from megadna.downstream.finetune import finetune_with

    scores = finetune_with(options)
    if scores.empty:
        return
    table = Table("split", "score", "mean", "low", "high", title=f"{options.output}: {scores.seed.nunique()} seeds")
    for (split, score), rows in scores.groupby(["split", "score"], sort=False):
        means = (rows[key].mean(skipna=False) for key in ("value", "low", "high"))
        table.add_row(split, score, *(f"{mean:.4f}" for mean in means))
    console = Console(markup=False)  # names of test sets may contain brackets
    console.print(table)
    for line in remarks(scores):
        console.print(line, soft_wrap=True)


def remarks(scores: "pd.DataFrame") -> list[str]:
    """One line per remark on a split, with its runs unless it applies to all."""
    runs = scores[["seed", "fold", "split", "remark"]].drop_duplicates()
    lines = []
    for (split, remark), rows in runs[runs["remark"] != ""].groupby(["split", "remark"], sort=False):
        some = len(rows) < int((runs["split"] == split).sum())
        of_runs = "; ".join(f"{seed}, {fold}" for seed, fold in zip(rows["seed"], rows["fold"], strict=True))
        lines.append(f"{split}{f' (seed, fold: {of_runs})' if some else ''}: {remark}")
    return lines
