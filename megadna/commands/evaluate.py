"""`megadna evaluate`: masked bits per base of a checkpoint or a Hugging Face model, next to baselines."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from megadna.arguments import new_parser, parse
from megadna.config import Config
from megadna.data.manifest import leakage_line
from megadna.errors import require
from megadna.files import write_json
from megadna.log import get_logger
from megadna.ownership import refuse_foreign
from megadna.progress import Progress
from megadna.train.run_folder import verdict

if TYPE_CHECKING:  # they take seconds to import
    from megadna.data.evaluation import EvaluationSamples
    from megadna.tokenizer.base import Tokenizer
    from megadna.train.evaluation import Evaluation

log = get_logger(__name__)
MICRO_BATCH_SIZE = 8


def main(arguments: list[str]) -> None:
    """Print a table and write evaluation-SPLIT.json into the model's folder (or --output)."""
    result, output = evaluation(parsed(arguments))
    _print(result)
    if not result["baselines"]:
        sys.stdout.write(f"no baselines: they score single bases, not protocol {result['protocol']}\n")
    sys.stdout.write(f"written to {output}\n")


def evaluation(options: Namespace) -> tuple[dict[str, Any], Path]:
    """What `megadna evaluate` finds, and the JSON file that has it now."""
    protocol = "" if options.protocol == "as_trained" else options.protocol
    output = options.output or options.model / f"evaluation-{options.split}{protocol and f'-{protocol}'}.json"
    require(output.parent.is_dir(), f"{output.parent}: no such folder; --output names the JSON file to write")
    refuse_foreign(output, "evaluation", "split", "samples", "hidden_bases", "model", "baselines")
    log.info("evaluating %s on %s", options.model, options.split)
    with Progress("loading the libraries"):
        from megadna.data.dataset import open_chunks
        from megadna.data.evaluation import EvaluationSamples
        from megadna.train.evaluation import names_bases
    is_export = (options.model / "config.json").is_file()
    measure, tokenizer, length, config, facts = (_hugging_face if is_export else _checkpoint)(options)
    path = options["data.path"] or config.data.path
    is_here = bool(path) and all(Path(one).exists() for one in ([path] if isinstance(path, str) else path))
    gone = f"{options.model}: the dataset it was trained on ({path}) is not here; name one with --data.path"
    require(is_here or bool(options["data.path"]), gone)
    samples = EvaluationSamples(
        open_chunks(path, options.split),
        tokenizer,
        sequence_length=length,
        samples=options.samples,
        seed=config.seed if options.seed is None else options.seed,
        protocol=protocol,
    )
    evaluation = measure(samples)
    score = evaluation.score
    scores: dict[str, Any] = {}
    if protocol or names_bases(tokenizer):
        scores = _baselines(samples, path, both_strands=config.data.reverse_complement > 0, folder=output.parent)
    datasets = samples.dataset.datasets
    leakage = [line for dataset in datasets if (line := leakage_line(dataset.manifest, options.split))]
    result = {
        "split": options.split,
        "protocol": score.protocol,
        "hides": samples.hides,
        **facts,
        "samples": score.samples,
        "hidden_bases": score.hidden_bases,
        "dataset_id": samples.dataset.dataset_id,
        "model": {**score.to_dict(), **evaluation.more},
        "groups": {name: one.to_dict() for name, one in evaluation.groups.items()},
        "baselines": scores,
        "leakage": leakage,
    }
    write_json(output, result)
    return result, output


def parsed(arguments: list[str]) -> Namespace:
    """The parsed options; UserError if the model is not there."""
    parser = new_parser("evaluate", "Masked bits per base (every chosen base hidden) next to baselines.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="run, step folder, or Hugging Face folder")
    what = "dataset (or --data); default: the one the run was trained on"
    add("--data.path", type=list[str] | str, default="", help=what)
    add("--split", type=str, default="test", help="train, valid or test")
    what = "what is hidden: as in the run's validation, or the same bases or blocks of six for every tokenizer"
    add("--protocol", type=Literal["as_trained", "base", "block6"], default="as_trained", help=what)
    add("--samples", type=int, default=1024, help="windows of the context (chunks under a protocol), spread evenly")
    add("--seed", type=int | None, default=None, help="seed that chooses what is hidden; default: the run's, or 1234")
    add("--trust_remote_code", action="store_true", help="run the code of a Hugging Face folder")
    add("--output", type=Path | None, default=None, help="JSON file; default: MODEL/evaluation-SPLIT[-PROTOCOL].json")
    options = parse(parser, arguments)
    require(options.samples > 0, f"--samples must be positive, got {options.samples}")
    require(options.model.is_dir(), f"{options.model}: no such run, checkpoint or Hugging Face folder")
    return options


Model = tuple[Callable[["EvaluationSamples"], "Evaluation"], "Tokenizer", int, Config, dict[str, Any]]
"""How to evaluate it, its tokenizer, tokens per row, the config of its run, what identifies it in the JSON file."""


def _checkpoint(options: Namespace) -> Model:
    with Progress("loading the engine"):
        from megadna.engine.distributed import parallel_world
        from megadna.tokenizer.build import build_tokenizer
        from megadna.train.checkpoint import checkpoint_model, find_checkpoint, read_config, read_numbers, single_rank
        from megadna.train.step import evaluate_split

    checkpoint = find_checkpoint(options.model)
    config = single_rank(read_config(checkpoint))
    tokenizer = build_tokenizer(config.tokenizer)

    def measure(samples: "EvaluationSamples") -> "Evaluation":
        with parallel_world(config.engine, config.parallel) as world:
            with Progress(f"loading {checkpoint}"):
                model = checkpoint_model(checkpoint, tokenizer.vocab_size, world)
            return evaluate_split([model], samples, world, micro_batch_size=MICRO_BATCH_SIZE)

    facts = {"step": read_numbers(checkpoint)["step"]}
    return measure, tokenizer, int(config.data.sequence_length), config, facts


def _hugging_face(options: Namespace) -> Model:
    from megadna.train.evaluation import evaluate

    with Progress(f"loading {options.model}"):
        from megadna.downstream.encoder import load_masked_lm

        trust = options.trust_remote_code
        forward, tokenizer, length = load_masked_lm(str(options.model), trust_remote_code=trust)

    def measure(samples: "EvaluationSamples") -> "Evaluation":
        return evaluate(forward, samples, micro_batch_size=MICRO_BATCH_SIZE)

    return measure, tokenizer, length, Config(), {"folder": str(options.model)}


def _baselines(samples: "EvaluationSamples", path: Any, *, both_strands: bool, folder: Path) -> dict[str, Any]:
    """Baselines on the bases that were hidden from the model; k and smoothing are chosen on valid.

    Kept in baselines.json of the dataset if there is one dataset and it can be written, else in `folder`.
    """
    from megadna.data.dataset import open_chunks
    from megadna.data.evaluation import WIDTHS
    from megadna.train.baselines import HiddenSamples, baselines

    with Progress("hiding bases for the baselines"):
        valid, hidden = (
            HiddenSamples.stack(*one.for_baselines(), block=WIDTHS.get(one.protocol, 1))
            for one in (replace(samples, dataset=open_chunks(path, "valid")), samples)
        )
    assert hidden.chunk_C is not None
    species = dict(zip(samples.chunks.tolist(), samples.groups(), strict=True))
    datasets = samples.dataset.datasets
    home = datasets[0].path if len(datasets) == 1 and os.access(datasets[0].path, os.W_OK) else folder
    return baselines(
        open_chunks(path, "train"),
        valid,
        hidden,
        dataset_id=samples.dataset.dataset_id,
        both_strands=both_strands,
        groups=[species[chunk] for chunk in hidden.chunk_C.tolist()],
        cache_file=home / "baselines.json",
    )


def _print(result: dict[str, Any]) -> None:
    counts = f"{result['samples']} chunks, {result['hidden_bases']:,} hidden bases ({result['hides']})"
    table = Table(title=f"{result['split']}: {counts}, protocol {result['protocol']}")
    for heading in ("", "bits per base", "standard error", "perplexity", "accuracy"):
        table.add_column(heading, justify="right" if heading else "left")
    model, groups = result["model"], result["groups"]
    rows = {f"model, step {result['step']}" if "step" in result else Path(result["folder"]).name: model}
    rows |= {f"  {name}": score for name, score in groups.items()}
    rows |= {f"markov, k = {score['k']}" if "k" in score else key: score for key, score in result["baselines"].items()}
    for label, score in rows.items():
        values = [f"{score['bits_per_base']:.4f}", _shown(score["standard_error"])]
        table.add_row(label, *values, f"{score['perplexity']:.3f}", f"{score['accuracy']:.4f}")
    Console(markup=False).print(table)  # names of species may have brackets
    if text := verdict(model, result["baselines"]):
        sys.stdout.write(text + "\n")
    for key in (key for key in model if f"{key}_se" in model and (groups or "macro" not in key)):
        beside = result["baselines"].get("markov", {}).get(key)
        beside = "" if beside is None else f"; markov {beside:.4f}"
        sys.stdout.write(f"{key}: {model[key]:.4f} (standard error {_shown(model[f'{key}_se'])}){beside}\n")
    if "reverse_complement_divergence" in model:
        divergence = model["reverse_complement_divergence"]
        sys.stdout.write(f"forward/reverse-complement divergence: {divergence:.4f} bits (Jensen-Shannon)\n")
    for line in result["leakage"]:
        sys.stdout.write(line + "\n")


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"
