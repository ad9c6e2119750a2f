"""`megadna evaluate`: masked bits per base of a checkpoint on a split, beside baselines that see what it sees."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megadna.arguments import new_parser, parse
from megadna.config import Config
from megadna.data.chunks import ChunkPool, open_chunks
from megadna.data.evaluation import EvaluationWindows, evaluation_chunks, evaluation_sample
from megadna.engine.distributed import parallel_world
from megadna.errors import UserError
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.build import build_tokenizer
from megadna.train.baselines import HiddenSamples, baselines


def main(arguments: list[str]) -> None:
    """Print a table and write evaluation-SPLIT.json into the run folder (or --output)."""
    parser = new_parser("evaluate", "Masked bits per base (every chosen base hidden) beside baselines.")
    parser.add_argument("--model", type=Path, required=True, help="run folder (its newest checkpoint) or step folder")
    parser.add_argument("--data.path", type=str, default="", help="dataset; default: the one it was trained on")
    parser.add_argument("--split", type=str, default="test", help="train, valid or test")
    parser.add_argument("--samples", type=int, default=1024, help="samples (windows of the context), spread evenly")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; default: MODEL/evaluation-SPLIT.json")
    options = parse(parser, arguments)
    from megadna.train.checkpoint import checkpoint_model, find_checkpoint, read_config, single_rank
    from megadna.train.validation import evaluate_split

    checkpoint = find_checkpoint(options.model)
    config = single_rank(read_config(checkpoint))
    config = replace(
        config,
        data=replace(config.data, path=options.data.path or config.data.path),
        validation=replace(config.validation, samples=options.samples),
    )
    if not options.data.path and isinstance(config.data.path, str) and not Path(config.data.path).exists():
        raise UserError(f"{config.data.path}: the dataset it was trained on is not here; give it with --data.path")
    dataset = open_chunks(config.data.path, options.split)
    tokenizer = build_tokenizer(config.tokenizer)
    sequence_length = int(config.data.sequence_length)
    with parallel_world(config.engine, config.parallel) as world:
        model = checkpoint_model(checkpoint, tokenizer.vocab_size, world)
        score = evaluate_split([model], dataset, tokenizer, config, world, sequence_length=sequence_length)
    result = {
        "split": options.split,
        "protocol": score.protocol,
        "step": json.loads((checkpoint / "state.json").read_text())["step"],
        "samples": score.samples,
        "hidden_bases": score.hidden_bases,
        "dataset_id": dataset.dataset_id,
        "model": score.to_dict(),
        "baselines": _baselines(config, dataset, tokenizer, sequence_length) if score.protocol == "base" else {},
    }
    output = options.output or options.model / f"evaluation-{options.split}.json"
    _print(result)
    output.write_text(json.dumps(result, indent=2) + "\n")
    if score.protocol != "base":
        sys.stdout.write(f"no baselines: theirs are scores of single bases, not of protocol {score.protocol}\n")
    sys.stdout.write(f"written to {output}\n")


def _baselines(config: Config, dataset: ChunkPool, tokenizer: Tokenizer, sequence_length: int) -> dict[str, Any]:
    """Baselines on the very bases that were hidden from the model; k and smoothing chosen on valid."""

    def hidden(split: ChunkPool) -> HiddenSamples:
        windows = EvaluationWindows(split, tokenizer, sequence_length)
        numbers = evaluation_chunks(len(windows), config.validation.samples)
        samples = (
            evaluation_sample(windows, int(number), tokenizer, sequence_length=sequence_length, seed=config.seed)
            for number in numbers
        )
        return HiddenSamples.stack(samples, windows.chunks(numbers))

    return baselines(
        open_chunks(config.data.path, "train"),
        hidden(open_chunks(config.data.path, "valid")),
        hidden(dataset),
        dataset_id=dataset.dataset_id,
        both_strands=config.data.reverse_complement > 0,
    )


def _print(result: dict[str, Any]) -> None:
    title = f"{result['split']}: {result['samples']} chunks, {result['hidden_bases']:,} hidden bases"
    table = Table(title=title if result["protocol"] == "base" else f"{title}, protocol {result['protocol']}")
    for heading in ("", "bits per base", "standard error", "perplexity", "accuracy"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {f"model, step {result['step']}": result["model"], **result["baselines"]}
    for name, score in rows.items():
        label = f"markov, k = {score['k']}" if name == "markov" else name
        error = score["standard_error"]
        table.add_row(
            label,
            f"{score['bits_per_base']:.4f}",
            "-" if error is None else f"{error:.4f}",
            f"{score['perplexity']:.3f}",
            f"{score['accuracy']:.4f}",
        )
    Console().print(table)
