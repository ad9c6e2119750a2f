"""`megadna start`: a folder of genomes -> sample sheet and config of a run that fits, and the next commands."""

import csv
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

from docstring_parser import parse_from_object

from megadna.arguments import new_parser, parse
from megadna.config import Config
from megadna.errors import require
from megadna.files import atomic_folder
from megadna.ownership import check_folder
from megadna.planning.hardware import GPUS, GPUS_PER_NODE
from megadna.planning.start import FEW_PASSES, MOST_PASSES, SHAPE, TOKENS_PER_PARAMETER, Genomes, Start, choose, survey


def main(arguments: list[str]) -> None:
    """Write the folder --output; print what was found and chosen, and what to do next."""
    parser = new_parser("start", "What to train on a folder of genomes: sample sheet, config, plan, next commands.")
    parser.add_argument("genomes", type=Path, help="folder of FASTA files, subfolders included")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, or CPU cores with --gpu cpu")
    parser.add_argument("--hours", type=float, default=24.0, help="how long they may train")
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
    told = f"wrote {folder}/samples.tsv (see whether the species are right) and {folder}/config.yaml; next:"
    sys.stdout.write("\n".join([*lines, told, *(f"  {command}" for command in commands)]) + "\n")


def _lines(genomes: Genomes, start: Start) -> Iterator[str]:
    """What was found and chosen."""
    bases, share, train, layout = genomes.bases, f"{genomes.held_out:.0%}", start.config.train, start.layout
    left = [f"{key.removeprefix('contig_')} contigs of {bases[key]:,}" for key in bases if key.startswith("contig_")]
    left += [f"transcripts ({', '.join(genomes.transcripts)})"] * bool(genomes.transcripts)
    yield f"found: {len(genomes.rows)} files, {bases['contigs']:,} contigs, {bases['kept']:,} bases"
    yield f"left out: {'; '.join(left) or 'nothing'}"
    related = "; what resembles them goes from train, as several files are of one species" * genomes.are_related
    yield f"held out: {share} for validation, {share} for testing, by regions{related}"
    yield f"model: {start.size}, {start.parameters:,} parameters, {start.ratio:,.0f} tokens each"
    yield f"run: {train.steps:,} steps of {start.step_tokens:,} tokens, {start.passes:.1f} passes over the bases"
    if layout:
        yield f"layout: {layout.name}, {layout.memory.total / 1e9:.1f} GB a GPU"
    if start.ratio < TOKENS_PER_PARAMETER:
        next_step = (train.steps + 1) * start.step_tokens
        wanted = "bases" if next_step > MOST_PASSES * genomes.train_bases else "hours"
        yield f"warning: {TOKENS_PER_PARAMETER} tokens a parameter are wanted: this model needs more {wanted}"
    if start.passes > FEW_PASSES:
        yield f"warning: beyond {FEW_PASSES} passes repeats are worth less than new genomes: add related ones"


def _commands(folder: str, genomes: Genomes, start: Start, gpus: int) -> list[str]:
    """What comes next, in its order."""
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
        f"megadna export --checkpoint {folder}/run --output {folder}/model",
        f"megadna report {folder}/run",
    ]


def _write(folder: Path, genomes: Genomes, start: Start, comments: list[str]) -> None:
    """Sample sheet and config, both or none."""
    rows = [("path", "genome", "species"), *genomes.rows]
    text = [*(f"# {comment}" for comment in comments), *_yaml(start.config)]
    with atomic_folder(folder) as work:
        with (work / "samples.tsv").open("w", encoding="utf-8", newline="") as file:  # quoted where a path needs it
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
        yield from [f"{section}:"] * bool(kept)
        yield from (
            f"  {key}: {json.dumps(values[key])}  # {' '.join(about[key].split()).partition('. ')[0]}" for key in kept
        )
