"""`megadna finetune`: a Hugging Face encoder and labelled sequences -> a fine-tuned model and its scores."""

from rich.console import Console
from rich.table import Table

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import FinetuneOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


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
        table.add_row(split, score, *(f"{rows[key].mean():.4f}" for key in ("value", "low", "high")))
    Console().print(table)
