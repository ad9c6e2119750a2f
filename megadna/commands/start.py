"""`megadna start`: a folder of genomes -> sample sheet and config of a run that fits, and the next commands."""

import csv
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object

from megadna.arguments import new_parser, parse
from megadna.config import Config
from megadna.errors import require
from megadna.files import atomic_folder
from megadna.ownership import check_folder
from megadna.planning.start import FEW_PASSES, FEW_STEPS, MOST_PASSES, SHAPE, TOKENS_PER_PARAMETER, Start, choose
from megadna.planning.step_time import GPUS, GPUS_PER_NODE
from megadna.planning.survey import Genomes, survey

SHOWN = 5
"""Names in one line; ignored.tsv lists all ignored files."""
MOST_REASONS = 20
MOST_LOST = 0.25
"""Share of the training bases that may be dropped as copies of what is held out, without a warning."""


def main(arguments: list[str]) -> None:
    """Write the folder --output; print findings, choices and the next commands."""
    parser = new_parser("start", "What to train on a folder of genomes: sample sheet, config, plan, next commands.")
    parser.add_argument("genomes", type=Path, help="folder of FASTA files, subfolders included")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, or CPU cores with --gpu cpu")
    parser.add_argument("--hours", type=float, default=24.0, help="time for training")
    parser.add_argument("--gpu", type=str, default="h100", help=f"kind: {', '.join(GPUS)}, or cpu")
    parser.add_argument("--output", type=Path, default=Path("project"), help="new folder to write")
    options = parse(parser, arguments)
    folder, gpus = options.output, options.gpus
    require(options.gpu in (*GPUS, "cpu"), f"--gpu {options.gpu}: not one of {', '.join(GPUS)}, cpu")
    require(gpus > 0 and options.hours > 0, "--gpus and --hours must be positive")
    check_folder(folder, None)
    genomes = survey(options.genomes)
    start = choose(genomes, gpus, options.hours, GPUS.get(options.gpu))
    lines = [
        *_lines(genomes, start),
        f"predicted: {start.hours:.2g} of {options.hours:g} hours on {gpus} {options.gpu}",
    ]
    commands = _commands(shlex.quote(str(folder)), genomes, start, gpus)
    _write(folder, genomes, start, [*lines, commands[2]])
    more = f", {folder}/ignored.tsv" * bool(genomes.ignored)
    wrote = f"wrote {folder}/samples.tsv (check the species){more} and {folder}/config.yaml; next:"
    sys.stdout.write("\n".join([*lines, wrote, *(f"  {command}" for command in commands)]) + "\n")


def _lines(genomes: Genomes, start: Start) -> Iterator[str]:
    """Findings and choices."""
    bases, share, train, layout = genomes.bases, f"{100 * genomes.held_out:g}%", start.config.train, start.layout
    left = [f"{key.removeprefix('contig_')} contigs of {bases[key]:,}" for key in bases if key.startswith("contig_")]
    unknown = f" ({bases['n']:,} N and other ambiguous codes left out)" * bool(bases["n"])
    yield f"found: {len(genomes.rows)} files, {bases['contigs']:,} contigs, {genomes.usable:,} usable bases{unknown}"
    if left or not genomes.ignored:
        yield f"left out: {'; '.join(left) or 'nothing'}"
    yield from _ignored(genomes)
    for group in genomes.relations.groups[:SHOWN]:
        yield f"near-identical, or partly so: {_listed(group)}"
    if more := genomes.relations.groups[SHOWN:]:
        yield f"near-identical, or partly so: {len(more):,} groups more"
    related = "; what resembles them is dropped from train, as there are near-identical or related genomes"
    yield f"held out: {share} for validation, {share} for testing, by regions{related * genomes.are_related}"
    lost = 1 - genomes.relations.share_left(2 * genomes.held_out)
    if lost > MOST_LOST:
        yield (
            f"warning: copies of what is held out are about {lost:.0%} of the training bases: keep one genome of each "
            "near-identical group (by its file, or by preprocess --contigs PATTERN)"
        )
    context = f" (and {start.context_parameters:,} of local context)" if start.context_parameters else ""
    yield f"model: {start.size}, {start.parameters:,} parameters{context}, {start.ratio:,.0f} tokens each"
    yield f"run: {train.steps:,} steps of {start.step_tokens:,} tokens, {start.passes:.1f} passes over the bases"
    if layout:
        yield f"layout: {layout.name}, {layout.memory.total / 1e9:.1f} GB a GPU"
    if start.ratio < TOKENS_PER_PARAMETER:
        next_step = (train.steps + 1) * start.step_tokens
        wanted = "bases" if next_step > MOST_PASSES * genomes.train_bases else "hours"
        yield f"warning: {TOKENS_PER_PARAMETER} tokens a parameter are recommended: this model needs more {wanted}"
    if train.steps < FEW_STEPS:
        yield f"warning: {train.steps:,} steps are too few to be better than composition; {FEW_STEPS:,} were enough"
    if start.passes > FEW_PASSES:
        yield f"warning: beyond {FEW_PASSES} passes repetition is worth less than new genomes: add related ones"


def _ignored(genomes: Genomes) -> Iterator[str]:
    """A line for each reason, with its files."""
    reasons: dict[str, list[str]] = {}
    for name, reason in genomes.ignored:
        reasons.setdefault(reason, []).append(name)
    lines = [f"ignored: {_listed(names)}: {reason}" for reason, names in reasons.items()]
    yield from lines[:MOST_REASONS]
    if more := list(reasons.values())[MOST_REASONS:]:
        yield f"ignored: {sum(map(len, more)):,} files for {len(more):,} other reasons (ignored.tsv)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _commands(folder: str, genomes: Genomes, start: Start, gpus: int) -> list[str]:
    """The next commands, in order."""
    train, share = "train", f"{genomes.held_out:g}"
    if start.layout and gpus > GPUS_PER_NODE:
        per_node = max(size for size in range(1, GPUS_PER_NODE + 1) if gpus % size == 0)
        train = f"launch slurm --nodes {gpus // per_node} --ranks_per_node {per_node}"
    related = "--allow_related --leakage drop_from_train" if genomes.are_related else "--leakage report"
    return [
        f"megadna preprocess --sample_sheet {folder}/samples.tsv --output {folder}/dataset "
        f"--valid_fraction {share} --test_fraction {share} {related}",
        f"megadna inspect {folder}/dataset",
        f"megadna {train} --config {folder}/config.yaml --data.path {folder}/dataset --output {folder}/run",
        f"megadna evaluate --model {folder}/run --split test",
        f"megadna export --model {folder}/run --output {folder}/model",
        f"megadna report {folder}/run",
    ]


def _write(folder: Path, genomes: Genomes, start: Start, comments: list[str]) -> None:
    """Sample sheet, config and the files that were ignored, all or none."""
    tables: dict[str, list[tuple[str, ...]]] = {"samples.tsv": [("path", "genome", "species"), *genomes.rows]}
    if genomes.ignored:
        tables["ignored.tsv"] = [("path", "reason"), *genomes.ignored]
    text = [*(f"# {comment}" for comment in comments), *_yaml(start.config)]
    with atomic_folder(folder) as work:
        for name, rows in tables.items():
            with (work / name).open("w", encoding="utf-8", newline="") as file:  # quoted where a path needs it
                csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
        (work / "config.yaml").write_text("\n".join(text) + "\n", encoding="utf-8")


def _yaml(config: Config) -> Iterator[str]:
    """The model's shape and the keys that are not at their defaults, each with the first sentence of its docstring."""
    default = Config()
    for section in (entry.name for entry in fields(config)):
        chosen, usual = getattr(config, section), getattr(default, section)
        if not is_dataclass(chosen):
            yield f"{section}: {json.dumps(chosen)}"
            continue
        about = {entry.arg_name: entry.description or "" for entry in parse_from_object(type(chosen)).params}
        values = {entry.name: getattr(chosen, entry.name) for entry in fields(chosen)}
        kept = [key for key, value in values.items() if value != getattr(usual, key) or key in SHAPE]
        texts = {key: json.dumps(values[key], default=_changed) for key in kept}
        yield from [f"{section}:"] * bool(kept)
        yield from (
            f"  {key}: {text}  # {' '.join(about[key].split()).partition('. ')[0]}" for key, text in texts.items()
        )


def _changed(part: Any) -> dict[str, Any]:
    """The keys of a part of a section that are not at their defaults."""
    return {name: value for name, value in vars(part).items() if value != getattr(type(part)(), name)}
