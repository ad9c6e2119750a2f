"""`megadna evaluate`: masked bits per base of a checkpoint or a Hugging Face model, beside baselines."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from megadna.arguments import new_parser, parse
from megadna.config import Config
from megadna.data.chunks import ChunkPool, open_chunks
from megadna.data.evaluation import WIDTHS, EvaluationSamples
from megadna.errors import UserError, require
from megadna.tokenizer.base import Tokenizer
from megadna.train.baselines import HiddenSamples, baselines, write_json
from megadna.train.scoring import Evaluation, evaluate, names_bases

MICRO_BATCH_SIZE = 8


def main(arguments: list[str]) -> None:
    """Print a table and write evaluation-SPLIT.json into the run folder (or --output)."""
    parser = new_parser("evaluate", "Masked bits per base (every chosen base hidden) beside baselines.")
    parser.add_argument("--model", type=Path, required=True, help="run, step folder, or Hugging Face folder")
    parser.add_argument(
        "--data.path", type=list[str] | str, default="", help="dataset; default: the one the run was trained on"
    )
    parser.add_argument("--split", type=str, default="test", help="train, valid or test")
    parser.add_argument(
        "--protocol",
        type=Literal["as_trained", "base", "block6"],
        default="as_trained",
        help="what is hidden: as when training validates, or the same bases or blocks of six for every tokenizer",
    )
    parser.add_argument("--samples", type=int, default=1024, help="windows (chunks under a protocol), spread evenly")
    parser.add_argument("--seed", type=int | None, default=None, help="of what is hidden; default: the run's, or 1234")
    parser.add_argument("--max_tokens", type=int, default=0, help="tokens a row; default: as trained")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a Hugging Face folder")
    parser.add_argument(
        "--output", type=Path, default=None, help="JSON file; default: MODEL/evaluation-SPLIT[-PROTOCOL].json"
    )
    options = parse(parser, arguments)
    require(options.samples > 0, f"--samples must be positive, got {options.samples}")
    require(options.max_tokens >= 0, f"--max_tokens must not be negative, got {options.max_tokens}")
    shared = options.protocol in WIDTHS
    name = f"evaluation-{options.split}{f'-{options.protocol}' if shared else ''}.json"
    output = options.output or options.model / name
    require(output.parent.is_dir(), f"{output.parent}: no such folder; --output names the JSON file to write")
    run = _hugging_face if (options.model / "config.json").is_file() else _checkpoint
    evaluation, samples, config, model = run(options)
    result = {
        "split": options.split,
        "protocol": evaluation.score.protocol,
        "hides": samples.hides,
        **model,
        "samples": evaluation.score.samples,
        "hidden_bases": evaluation.score.hidden_bases,
        "dataset_id": samples.dataset.dataset_id,
        "model": {**evaluation.score.to_dict(), **evaluation.more},
        "groups": {name: score.to_dict() for name, score in evaluation.groups.items()},
        "baselines": {},
    }
    if shared or names_bases(samples.tokenizer):
        result["baselines"] = _baselines(config, samples, options, output.parent)
    _print(result)
    write_json(output, result)
    if not result["baselines"]:
        protocol = evaluation.score.protocol
        sys.stdout.write(f"no baselines: theirs are scores of single bases, not of protocol {protocol}\n")
    sys.stdout.write(f"written to {output}\n")


Found = tuple[Evaluation, EvaluationSamples, Config, dict[str, Any]]
"""What was found, on which samples, under which settings, and what else tells the model."""


def _checkpoint(options: Namespace) -> Found:
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.checkpoint import checkpoint_model, find_checkpoint, read_config, single_rank
    from megadna.train.validation import evaluate_split

    checkpoint = find_checkpoint(options.model)
    config = single_rank(read_config(checkpoint))
    path = config.data.path
    if not options["data.path"] and isinstance(path, str) and not Path(path).exists():
        raise UserError(f"{path}: the dataset it was trained on is not here; give it with --data.path")
    tokenizer = build_tokenizer(config.tokenizer)
    length = options.max_tokens or int(config.data.sequence_length)
    samples = _samples(options, config, options.split, tokenizer, length)
    with parallel_world(config.engine, config.parallel) as world:
        model = checkpoint_model(checkpoint, tokenizer.vocab_size, world)
        evaluation = evaluate_split([model], samples, world, micro_batch_size=MICRO_BATCH_SIZE)
    return evaluation, samples, config, {"step": json.loads((checkpoint / "state.json").read_text())["step"]}


def _hugging_face(options: Namespace) -> Found:
    from megadna.downstream.masked_lm import load_masked_lm

    require(
        bool(options["data.path"]), "--data.path is missing: a Hugging Face folder does not say on what it was trained"
    )
    forward, tokenizer, length = load_masked_lm(
        str(options.model), max_tokens=options.max_tokens, trust_remote_code=options.trust_remote_code
    )
    samples = _samples(options, Config(), options.split, tokenizer, length)
    evaluation = evaluate(forward, samples, micro_batch_size=MICRO_BATCH_SIZE)
    return evaluation, samples, Config(), {"folder": str(options.model)}


def _samples(
    options: Namespace, config: Config, split: str, tokenizer: Tokenizer, sequence_length: int
) -> EvaluationSamples:
    return EvaluationSamples(
        open_chunks(options["data.path"] or config.data.path, split),
        tokenizer,
        sequence_length=sequence_length,
        samples=options.samples,
        seed=config.seed if options.seed is None else options.seed,
        protocol=options.protocol if options.protocol in WIDTHS else "",
    )


def _baselines(config: Config, samples: EvaluationSamples, options: Namespace, folder: Path) -> dict[str, Any]:
    """Baselines on the very bases that were hidden from the model; k and smoothing chosen on valid.

    Kept in baselines.json of the dataset where it is one and may be written, else in `folder`.
    """

    def hidden(samples: EvaluationSamples) -> HiddenSamples:
        return HiddenSamples.stack(*samples.for_baselines(), block=WIDTHS.get(samples.protocol, 1))

    valid = _samples(options, config, "valid", samples.tokenizer, samples.sequence_length)
    home = samples.dataset.datasets[0].path
    if len(samples.dataset.datasets) > 1 or not os.access(home, os.W_OK):
        home = folder
    train: ChunkPool = _samples(options, config, "train", samples.tokenizer, samples.sequence_length).dataset
    return baselines(
        train,
        hidden(valid),
        hidden(samples),
        dataset_id=samples.dataset.dataset_id,
        both_strands=config.data.reverse_complement > 0,
        cache_file=home / "baselines.json",
    )


def _print(result: dict[str, Any]) -> None:
    title = (
        f"{result['split']}: {result['samples']} chunks, {result['hidden_bases']:,} hidden bases ({result['hides']})"
    )
    table = Table(title=title if result["protocol"] == "base" else f"{title}, protocol {result['protocol']}")
    for heading in ("", "bits per base", "standard error", "perplexity", "accuracy"):
        table.add_column(heading, justify="right" if heading else "left")
    name = f"model, step {result['step']}" if "step" in result else Path(result["folder"]).name
    rows = {name: result["model"], **{f"  {group}": score for group, score in result["groups"].items()}}
    rows |= {f"markov, k = {score['k']}" if "k" in score else key: score for key, score in result["baselines"].items()}
    for label, score in rows.items():
        error = score["standard_error"]
        table.add_row(
            label,
            f"{score['bits_per_base']:.4f}",
            "-" if error is None else f"{error:.4f}",
            f"{score['perplexity']:.3f}",
            f"{score['accuracy']:.4f}",
        )
    Console().print(table)
    for key in (key for key in result["model"] if "macro" in key or "unique" in key or "repeat" in key):
        if not key.endswith("_se"):
            sys.stdout.write(f"{key}: {result['model'][key]:.4f}\n")
    divergence = result["model"].get("reverse_complement_divergence")
    if divergence is not None:
        sys.stdout.write(f"the two strands disagree by {divergence:.4f} bits (Jensen-Shannon)\n")
