"""A suite of tasks over seeds, beside baselines and the figures that others published.

In:  a model's folder; a folder of tasks (GUE, Nucleotide Transformer, splice sites), each with train and test tables.
Out: OUTPUT/results.csv and results.md: a row a task, method and score (mean and standard deviation over seeds, 95 %
     bootstrap interval over test sequences, mean of the seeds'; of the difference to random weights: over seeds);
     OUTPUT/runs/ with every fine-tuning run.
A stopped benchmark goes on where it stood. Published figures are quoted, not measured here, and marked so.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t

import megadna
from megadna.arguments import new_parser, parse
from megadna.downstream.baselines import BASELINES
from megadna.downstream.finetune import FinetuneOptions, finetune_with
from megadna.downstream.metrics import all_scores, with_intervals
from megadna.downstream.options import Options
from megadna.downstream.tasks import add_targets, find_tasks, make_target, read_task
from megadna.errors import UserError, require
from megadna.files import atomic_file, mark, write_text
from megadna.log import get_logger
from megadna.ownership import MARKER, is_unused, read_mark, refuse_occupied, resolved

log = get_logger(__name__)
RECIPES = {"gue": "gue.yaml", "nt": "nt_tasks.yaml", "splice": "splice_bionemo.yaml"}
MEAN = "mean of tasks"
_FILES = ("results.csv", "results.md", "runs")
_CARD = [
    f"class_vs_negative.{site}.{score}" for site in ("donor", "acceptor", "mean") for score in ("accuracy", "f1", "mcc")
]
SCORES = {"gue": ["mcc"], "nt": ["mcc"], "splice": ["accuracy", "f1_macro", "mcc", *_CARD]}
_AIDO = "AIDO.DNA paper, table {} (mean MCC; no seeds, no error bars)"
_BIONEMO = "BioNeMo DNABERT model card (random split, easy negatives: comparison only)"
_CARD_VALUES = (0.9491, 0.9502, 0.8982, 0.9345, 0.9361, 0.8691, 0.9418, 0.9432, 0.8837)
PUBLISHED: dict[str, list[tuple[str, str, str, float, str]]] = {
    "gue": [
        (MEAN, name, "mcc", value, _AIDO.format(2))
        for name, value in (("AIDO.DNA-7B", 0.7333), ("DNABERT-2", 0.6775), ("NT-2.5B", 0.6671), ("DNABERT", 0.6069))
    ],
    "nt": [
        (MEAN, name, "mcc", value, _AIDO.format(3))
        for name, value in (
            ("AIDO.DNA-7B", 0.7283), ("AIDO.DNA-300M", 0.6997), ("NTv2-500M", 0.6996), ("HyenaDNA-1.8M", 0.6936),
            ("NT-2.5B", 0.6898),
        )
    ],
    "splice": [
        ("splice sites", "DNABERT (BioNeMo)", score, value, _BIONEMO)
        for score, value in zip(_CARD, _CARD_VALUES, strict=True)
    ],
}  # fmt: skip

Leakage = Callable[[pd.DataFrame], float]
"""Test table -> share of its sequences that the pretraining dataset contains."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """`megadna benchmark`."""

    suite: Literal["gue", "nt", "splice"]
    """Which recipe, scores and published figures."""
    model: str
    """Hugging Face folder of the encoder."""
    data: Path
    """Folder of the tasks' folders, or of one task."""
    output: Path
    """Folder to write; a stopped benchmark goes on in it."""
    recipe: Path | None = None
    """YAML of fine-tuning options (default: configs/finetune/ of the suite)."""
    tasks: list[str] = field(default_factory=list)
    """Patterns of the tasks to run (default: all)."""
    seeds: list[int] = field(default_factory=list)
    """Seeds (default: 1 2 3)."""
    baseline: list[str] = field(default_factory=list)
    """Words in the names of the baselines to run (default: all): two-letter, weight, logistic, CNN, random; or none."""
    max_steps: int = 0
    """Fine-tuning steps, instead of the recipe's epochs."""
    pretraining_data: Path | None = None
    """Dataset that the model was pretrained on: the share of test sequences in it stands in the table."""
    trust_remote_code: bool = False
    """Run Python files of the model's folder that megadna did not write."""


def benchmark(suite: str, model: Path | str, data: Path | str, output: Path | str, **options: Any) -> pd.DataFrame:
    """Run a suite and return its table; keyword arguments are the fields of BenchmarkOptions."""
    given: Any = {"suite": suite, "model": str(model), "data": data, "output": output}
    return benchmark_with(BenchmarkOptions(**given, **options))


def benchmark_with(options: BenchmarkOptions, leakage: Leakage | None = None) -> pd.DataFrame:
    """What `megadna benchmark` does."""
    require(os.environ.get("WORLD_SIZE", "1") == "1", "benchmark runs as one process; several ranks: megadna finetune")
    require(options.data.is_dir(), f"{options.data}: no such folder of tasks")
    recipe = _recipe(options)
    tasks = {
        name: folder
        for name, folder in find_tasks(options.data).items()
        if not options.tasks or any(fnmatch(name, pattern) for pattern in options.tasks)
    }
    require(bool(tasks), f"--tasks {' '.join(options.tasks)}: fits no task of {options.data}")
    _begin(options)
    try:
        table = pd.concat([_one_task(name, folder, recipe, options, leakage) for name, folder in tasks.items()])
    except UserError:
        if all(path.is_dir() or path.name == MARKER for path in options.output.rglob("*")):
            shutil.rmtree(options.output)
        raise
    mcc = table[table["score"] == "mcc"]
    if mcc["task"].nunique() > 1:
        means = mcc.groupby("method", sort=False)[["mean", "sd"]].mean().reset_index()
        table = pd.concat([table, means.assign(task=MEAN, score="mcc", source="measured")])
    columns = ["task", "method", "score", "mean", "source"]
    table = pd.concat([table, pd.DataFrame(PUBLISHED[options.suite], columns=columns)], ignore_index=True)
    with atomic_file(options.output / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_text(options.output / "results.md", markdown(table))
    return table


def _begin(options: BenchmarkOptions) -> None:
    """Mark the output folder; UserError where it contains something else than this suite, model and tasks' results."""
    output = options.output
    model = str(resolved(Path(options.model))) if Path(options.model).exists() else options.model
    stated = {"kind": "benchmark", "suite": options.suite, "model": model, "data": str(resolved(options.data))}
    before = read_mark(output)
    is_older = not before and is_unused(output, *_FILES)  # new, or from before there were marks
    if not is_older and {key: before.get(key) for key in stated} != stated:
        refuse_occupied(output, " (it contains no benchmark of this suite, model and data)")
    output.mkdir(parents=True, exist_ok=True)
    mark(output, **stated)


def _recipe(options: BenchmarkOptions) -> FinetuneOptions:
    path = options.recipe or Path(megadna.__file__).parents[1] / "configs" / "finetune" / RECIPES[options.suite]
    require(path.is_file(), f"{path}: no such recipe; give one with --recipe")
    parser = new_parser("finetune", "")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(FinetuneOptions)
    stated = parse(parser, ["--config", str(path)])
    recipe = replace(
        FinetuneOptions(**{entry.name: stated[entry.name] for entry in fields(FinetuneOptions)}),
        model=options.model,
        seeds=options.seeds or [1, 2, 3],
        trust_remote_code=options.trust_remote_code,
    )
    if not options.max_steps:
        return recipe
    return replace(recipe, max_steps=options.max_steps, eval_steps=max(1, options.max_steps // 2))


def _one_task(
    name: str, folder: Path, recipe: FinetuneOptions, options: BenchmarkOptions, leakage: Leakage | None
) -> pd.DataFrame:
    log.info("task %s", name)
    tables = read_task(folder, recipe.columns)
    require("test" in tables, f"{folder}: no test table")
    share = leakage(tables["test"]) if leakage is not None else np.nan
    shown = name + (" (comparison only)" if _random_split(folder) else "")
    recipe = replace(recipe, data=folder)
    found = []

    def wanted(word: str) -> bool:
        return not options.baseline or any(part.lower() in word.lower() for part in options.baseline)

    for method, random in (("model", False), ("random weights", True)):
        if not random or wanted(method):
            run = options.output / "runs" / name / method.replace(" ", "_")
            scores = finetune_with(replace(recipe, random_weights=random, output=run))
            found.append(scores[scores["split"] == "test"].assign(method=method))
    found += [_baseline(method, tables, recipe, folder) for method in BASELINES if wanted(method)]
    scores = pd.concat(found)
    scores = scores[scores["score"].isin(SCORES[options.suite])]
    table = scores.groupby(["method", "score"], sort=False).agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        low=("low", "mean"),
        high=("high", "mean"),
        seeds=("seed", "nunique"),
    )
    table = pd.concat([table.reset_index(), _difference(scores)])
    return table.assign(task=shown, leakage=share, source="measured")


def _difference(scores: pd.DataFrame) -> pd.DataFrame:
    """What pretraining gave: model minus random weights, seed by seed, with Student's 95 % interval over seeds."""
    by_seed = scores.pivot_table(values="value", index=["score", "seed"], columns="method")
    if "random weights" not in by_seed:
        return pd.DataFrame()
    difference = by_seed["model"] - by_seed["random weights"]
    found = difference.groupby("score").agg(mean="mean", sd="std", seeds="count").reset_index()
    half = t.ppf(0.975, found["seeds"] - 1) * found["sd"] / np.sqrt(found["seeds"])
    limits = {"low": found["mean"] - half, "high": found["mean"] + half}
    return found.assign(method="model minus random weights", **limits)


def _baseline(method: str, tables: dict[str, pd.DataFrame], recipe: FinetuneOptions, folder: Path) -> pd.DataFrame:
    target = make_target(recipe.task, tables, recipe.columns, recipe.label_names, folder)
    if recipe.task != "classification":
        raise UserError(f"{folder}: baselines are classifiers; say --baseline none for task {recipe.task}")
    train, test = (add_targets(tables[split], target, str(folder)) for split in ("train", "test"))
    rows = []
    for seed in recipe.seeds if "CNN" in method else recipe.seeds[:1]:
        predicted = BASELINES[method](train, test, target, seed)
        if predicted is not None:
            truth = list(test["target"].to_numpy()[:, None])
            found = with_intervals(all_scores, truth, list(predicted[:, None]), target, seed=seed)
            rows += [{"seed": seed, "method": method, "score": score, **values} for score, values in found.items()]
    return pd.DataFrame(rows)


def _random_split(folder: Path) -> bool:
    """Whether `megadna splice-sites` made the folder with a random split or easy negatives, as the card's set."""
    manifest = folder / "manifest.json"
    stated = json.loads(manifest.read_text()).get("options", {}) if manifest.is_file() else {}
    return stated.get("split") == "random" or stated.get("negatives") in ("random", "midpoint")


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [
        "| task | method | score | mean | sd | 95 % interval | leakage | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        interval = "" if pd.isna(row.low) else f"{row.low:.4f} to {row.high:.4f}"
        spread, share = ("" if pd.isna(value) else f"{value:.4f}" for value in (row.sd, row.leakage))
        cells = (row.task, row.method, row.score, f"{row.mean:.4f}", spread, interval, share, row.source)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
