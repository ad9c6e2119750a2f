"""A suite of tasks over several seeds, next to baselines and published figures.

In:  a model's folder; a folder of tasks (GUE, Nucleotide Transformer, splice sites, expression), each with train and
     test tables.
Out: OUTPUT/results.csv and results.md: one row per task, method and score (mean and standard deviation over seeds, 95 %
     bootstrap interval over test sequences or their groups, averaged over seeds; of the difference to random weights:
     over seeds); OUTPUT/runs/ with every fine-tuning run.
A stopped benchmark is resumed. Published figures are quoted with their source, not measured here.
Baselines learn from the labelled sequences alone: each gives probabilities, or numbers, [N, C] of the test table's
rows, or None if it does not apply. torch and scikit-learn are imported inside them, after options and tables have been
checked.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megadna.alphabet import base_codes, dna_of
from megadna.arguments import parsed_options
from megadna.data.leakage import sequence_overlap
from megadna.downstream.finetune import finetune, read_data
from megadna.downstream.options import BenchmarkOptions, FinetuneOptions
from megadna.downstream.tasks import SPLICE_NAMES, Target, find_tasks
from megadna.errors import UserError, require
from megadna.files import atomic_file, mark, write_text
from megadna.log import get_logger
from megadna.ownership import MARKER, is_unused, read_mark, refuse_occupied, resolved
from megadna.packaged import CONFIGS
from megadna.progress import Progress, tracked
from megadna.reading import read_json

log = get_logger(__name__)

Baseline = Callable[[pd.DataFrame, pd.DataFrame, Target, int], np.ndarray | None]
"""(train, test, target, seed) -> probabilities, or numbers, [N, C]."""
K = 5
CNN_EPOCHS, CNN_BATCH, CNN_LR = 10, 64, 1e-3
_PENALTIES = [10.0**exponent for exponent in range(-2, 5)]


def two_letters(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """For splice sites: donor if GT follows the window's middle, acceptor if AG precedes it, else negative."""
    if set(target.names) != set(SPLICE_NAMES):
        return None
    called = []
    for text in test["sequence"]:
        middle = len(text) // 2
        donor, acceptor = text[middle : middle + 2] == "GT", text[middle - 2 : middle] == "AG"
        called.append(target.names.index("donor" if donor else "acceptor" if acceptor else "negative"))
    return np.eye(len(target.names))[called]


def position_weights(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """One position-weight matrix per class (one pseudocount), compared by Bayes' rule; for sequences of one length."""
    if target.is_regression or pd.concat([train["sequence"], test["sequence"]]).str.len().nunique() > 1:
        return None
    from sklearn.naive_bayes import CategoricalNB

    model = CategoricalNB(min_categories=5).fit(_codes(train["sequence"]), train["target"])
    return _all_classes(model.predict_proba(_codes(test["sequence"])), model.classes_, target)


def kmer_logistic(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Logistic regression on counts of all k-mers of 1 to K bases."""
    from sklearn.linear_model import LogisticRegression

    if target.is_regression:
        return None
    train_NF, test_NF = _kmer_counts(train, test)
    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged to the last digit
        model.fit(train_NF, train["target"])
    return _all_classes(model.predict_proba(test_NF), model.classes_, target)


def kmer_ridge(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Ridge regression on counts of all k-mers of 1 to K bases, so on GC too; its penalty is the best of _PENALTIES in
    five folds of train's groups (of its rows, if there is one group)."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold

    if not target.is_regression:
        return None
    groups = train["group"] if train["group"].nunique() > 1 else np.arange(len(train))
    folds = GroupKFold(min(5, len(np.unique(groups))))
    train_NF, test_NF = _kmer_counts(train, test)
    z_NC = (np.vstack(train["target"].to_list()) - target.means) / target.scales
    search = GridSearchCV(Ridge(), {"alpha": _PENALTIES}, scoring="r2", cv=folds).fit(train_NF, z_NC, groups=groups)
    return search.predict(test_NF).reshape(len(test), -1) * target.scales + target.means


def _kmer_counts(train: pd.DataFrame, test: pd.DataFrame) -> tuple[Any, Any]:
    """Sparse counts [N, F] of train's k-mers of 1 to K bases, each divided by its largest in train."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    counts = make_pipeline(CountVectorizer(analyzer="char", ngram_range=(1, K), lowercase=False), MaxAbsScaler())
    return counts.fit_transform(train["sequence"]), counts.transform(test["sequence"])


def small_cnn(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Two convolutions over one-hot bases, trained from scratch; a ramp channel marks the window's middle."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Sequential(
        nn.Conv1d(5, 64, 11, padding=5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(64, 64, 7, padding=3), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, len(target.names)),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=CNN_LR)
    inputs, truth = torch.from_numpy(_one_hot(train["sequence"])), np.stack(train["target"].to_list())
    if target.is_regression:
        truth = ((truth - target.means) / target.scales).astype(np.float32)
    loss_of = nn.functional.mse_loss if target.is_regression else nn.functional.cross_entropy
    labels = torch.from_numpy(truth)
    for _ in range(CNN_EPOCHS):
        for rows in torch.randperm(len(inputs)).split(CNN_BATCH):
            loss = loss_of(model(inputs[rows].to(device)), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        batches = torch.from_numpy(_one_hot(test["sequence"])).split(256)
        outputs_NC = torch.cat([model(rows.to(device)).cpu() for rows in batches])
    if target.is_regression:
        return outputs_NC.double().numpy() * target.scales + target.means
    return outputs_NC.softmax(-1).numpy()


BASELINES: dict[str, Baseline] = {
    "two-letter rule": two_letters,
    "position-weight matrix": position_weights,
    f"{K}-mer logistic regression": kmer_logistic,
    f"GC and {K}-mer ridge": kmer_ridge,
    "small CNN from scratch": small_cnn,
}


def _codes(sequences: pd.Series) -> np.ndarray:
    return base_codes(dna_of("".join(sequences))).reshape(len(sequences), -1)


def _all_classes(found: np.ndarray, classes: np.ndarray, target: Target) -> np.ndarray:
    full = np.zeros((len(found), len(target.names)))
    full[:, classes] = found
    return full


def _one_hot(sequences: pd.Series) -> np.ndarray:
    """[N, 5, longest]: A, C, G, T and the distance from the middle; shorter sequences are centred."""
    longest = int(sequences.str.len().max())
    codes = _codes(sequences.map(lambda text: text.center(longest, "N")))
    ramp = np.broadcast_to(np.abs(np.linspace(-1, 1, longest)), (len(codes), 1, longest))
    bases = np.eye(5, dtype=np.float32)[codes][:, :, :4].transpose(0, 2, 1)
    return np.concatenate([bases, ramp.astype(np.float32)], axis=1)


RECIPES = {
    "gue": "gue.yaml",
    "nt": "nt_tasks.yaml",
    "splice": "splice_bionemo.yaml",
    "expression": "promoter_expression.yaml",
}
MEAN = "mean of tasks"
MAX_CONTAINMENT = 0.2
_FILES = ("results.csv", "results.md", "runs")
_CARD = [
    f"class_vs_negative.{site}.{score}" for site in ("donor", "acceptor", "mean") for score in ("accuracy", "f1", "mcc")
]
SCORES = {"gue": ["mcc"], "nt": ["mcc"], "splice": ["accuracy", "f1_macro", "mcc", *_CARD]}
"""Of a suite; all of them, if it is not there."""
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


def benchmark(suite: str, model: Path | str, data: Path | str, output: Path | str, **options: Any) -> pd.DataFrame:
    """Run a suite and return its table; keyword arguments are the fields of BenchmarkOptions."""
    given: Any = {"suite": suite, "model": str(model), "data": data, "output": output}
    chosen = BenchmarkOptions(**given, **options)
    require(os.environ.get("WORLD_SIZE", "1") == "1", "benchmark runs as one process; several ranks: megadna finetune")
    chosen.check_files()
    recipe = _recipe(chosen)
    for word in chosen.baseline:
        known = word == "none" or any(word.lower() in method.lower() for method in [*BASELINES, "random weights"])
        names = ", ".join([*BASELINES, "random weights"])
        require(known, f"--baseline {word}: is in no baseline's name; there are {names}, or none")
    tasks = find_tasks(chosen.data)
    require(MEAN not in tasks, f"{chosen.data}: a task is called {MEAN!r}, as the mean's row is; rename the folder")
    for folder in tasks.values():  # all, before the first model is loaded
        _read(folder, recipe, chosen)
    _begin(chosen)
    try:
        each = tracked(tasks.items(), "benchmark", len(tasks), "tasks")
        table = pd.concat([_one_task(name, folder, recipe, chosen) for name, folder in each])
    except UserError:
        if all(path.is_dir() or path.name == MARKER for path in chosen.output.rglob("*")):
            shutil.rmtree(chosen.output)
        raise
    mcc = table[table["score"] == "mcc"]
    if mcc["task"].nunique() > 1:
        means = mcc.groupby("method", sort=False)[["mean", "sd"]].agg(_mean).reset_index()
        table = pd.concat([table, means.assign(task=MEAN, score="mcc", source="measured")])
    columns = ["task", "method", "score", "mean", "source"]
    table = pd.concat([table, pd.DataFrame(PUBLISHED.get(chosen.suite, []), columns=columns)], ignore_index=True)
    table["remark"] = table["remark"].fillna("")
    with atomic_file(chosen.output / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_text(chosen.output / "results.md", markdown(table))
    return table


def _begin(options: BenchmarkOptions) -> None:
    """Mark the output folder; UserError if it contains anything but results of this suite, model and data."""
    output = options.output
    model = str(resolved(Path(options.model))) if Path(options.model).exists() else options.model
    stated = {"kind": "benchmark", "suite": options.suite, "model": model, "data": str(resolved(options.data))}
    before = read_mark(output)
    is_unmarked = not before and is_unused(output, *_FILES)  # new, or from a version that did not mark it
    if not is_unmarked and {key: before.get(key) for key in stated} != stated:
        refuse_occupied(output, " (it contains no benchmark of this suite, model and data)")
    output.mkdir(parents=True, exist_ok=True)
    mark(output, **stated)


def _recipe(options: BenchmarkOptions) -> FinetuneOptions:
    path = options.recipe or CONFIGS / "finetune" / RECIPES[options.suite]
    recipe = replace(
        parsed_options("finetune", "", FinetuneOptions, ["--config", str(path)], config="recipe"),
        model=options.model,
        seeds=options.seeds or [1, 2, 3],
        trust_remote_code=options.trust_remote_code,
    )
    if not options.max_steps:
        return recipe
    return replace(recipe, max_steps=options.max_steps, eval_steps=max(1, options.max_steps // 2))


def _wanted(word: str, options: BenchmarkOptions) -> bool:
    return not options.baseline or any(part.lower() in word.lower() for part in options.baseline)


def _read(
    folder: Path, recipe: FinetuneOptions, options: BenchmarkOptions
) -> tuple[dict[str, pd.DataFrame], Target, list[str]]:
    """A task's tables with their targets, and the names of its baselines."""
    baselines = [name for name in BASELINES if _wanted(name, options)]
    tables, target = read_data(replace(recipe, data=folder))
    require("test" in tables, f"{folder}: no test table")
    if baselines and target.task not in ("classification", "regression"):
        raise UserError(f"{folder}: baselines give a class or numbers; say --baseline none for task {target.task}")
    return tables, target, baselines


def _one_task(name: str, folder: Path, recipe: FinetuneOptions, options: BenchmarkOptions) -> pd.DataFrame:
    log.info("task %s", name)
    tables, target, baselines = _read(folder, recipe, options)
    share = np.nan if options.pretraining_data is None else _leaked_share(options.pretraining_data, tables["test"])
    shown = name + (" (comparison only)" if _random_split(folder) else "")
    recipe = replace(recipe, data=folder)
    found = []
    for method, random in (("model", False), ("random weights", True)):
        if not random or _wanted(method, options):
            run = options.output / "runs" / name / method.replace(" ", "_")
            scores = finetune(**vars(replace(recipe, random_weights=random, output=run)))
            found.append(scores[scores["split"] == "test"].assign(method=method))
    found += [_baseline(method, tables, target, recipe.seeds) for method in baselines]
    scores = pd.concat(found)
    scores = scores[scores["score"].isin(SCORES.get(options.suite, scores["score"]))]
    table = scores.groupby(["method", "score"], sort=False).agg(
        mean=("value", _mean),
        sd=("value", "std"),
        low=("low", _mean),
        high=("high", _mean),
        seeds=("seed", "nunique"),
        remark=("remark", lambda remarks: " | ".join(filter(None, dict.fromkeys(remarks)))),
    )
    table = pd.concat([table.reset_index(), _difference(scores)])
    return table.assign(task=shown, leakage=share, source="measured")


def _leaked_share(dataset: Path, test: pd.DataFrame) -> float:
    """Share of the test sequences of which the dataset's training split contains more than MAX_CONTAINMENT."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "test.csv")
        test[["sequence"]].to_csv(path, index=False)
        shares = sequence_overlap(dataset, "train", path, "sequence").shares
    known = shares[~np.isnan(shares)]
    return float((known > MAX_CONTAINMENT).mean()) if len(known) else float("nan")


def _mean(values: pd.Series) -> float:
    """NaN if one of them is: a mean over the other seeds or tasks would hide it."""
    return float(values.mean(skipna=False))


def _difference(scores: pd.DataFrame) -> pd.DataFrame:
    """What pretraining gained: model minus random weights, seed by seed, with Student's 95 % interval over seeds."""
    by_seed = scores.pivot_table(values="value", index=["score", "seed"], columns="method")
    if "random weights" not in by_seed:
        return pd.DataFrame()
    difference = by_seed["model"] - by_seed["random weights"]
    found = difference.groupby("score").agg(mean="mean", sd="std", seeds="count").reset_index()
    from scipy.stats import t

    half = t.ppf(0.975, found["seeds"] - 1) * found["sd"] / np.sqrt(found["seeds"])
    limits = {"low": found["mean"] - half, "high": found["mean"] + half}
    return found.assign(method="model minus random weights", **limits)


def _baseline(method: str, tables: dict[str, pd.DataFrame], target: Target, seeds: list[int]) -> pd.DataFrame:
    from megadna.downstream.metrics import scored  # after the data: scipy is slow to import

    rows = []
    for seed in seeds if "CNN" in method else seeds[:1]:
        with Progress(method):
            predicted = BASELINES[method](tables["train"], tables["test"], target, seed)
        if predicted is not None:
            truth = np.stack(tables["test"]["target"].to_list())[:, None]
            groups = tables["test"]["group"].to_numpy() if target.is_regression else None
            found = scored(list(truth), list(predicted[:, None]), target, seed=seed, groups=groups)
            rows += [{"seed": seed, "method": method, "score": score, **values} for score, values in found.items()]
    return pd.DataFrame(rows)


def _random_split(folder: Path) -> bool:
    """Whether `megadna splice-sites` made the folder with a random split or easy negatives, as the card's set."""
    manifest = folder / "manifest.json"
    stated: Any = read_json(manifest).get("options") if manifest.is_file() else {}
    require(isinstance(stated, dict), f"{manifest}: its options are not an object; make the folder again")
    return stated.get("split") == "random" or stated.get("negatives") in ("random", "midpoint")


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, and its remarks below."""
    lines = [
        "| task | method | score | mean | sd | 95 % interval | leakage | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        interval = "" if pd.isna(row.low) else f"{row.low:.4f} to {row.high:.4f}"
        spread, share = ("" if pd.isna(value) else f"{value:.4f}" for value in (row.sd, row.leakage))
        cells = (row.task, row.method, row.score, f"{row.mean:.4f}", spread, interval, share, row.source)
        lines.append("| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |")
    remarks = dict.fromkeys(f"- {row.task}, {row.method}: {row.remark}" for row in table.itertuples() if row.remark)
    return "\n".join([*lines, *([""] if remarks else []), *remarks]) + "\n"
