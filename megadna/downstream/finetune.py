"""Fine-tuning of any Hugging Face DNA encoder through transformers' Trainer and peft.

In:  an encoder's folder, labelled sequences (megadna.downstream.tasks).
Out: RUN/ (RUN/seed-1/, RUN/seed-1-fold-0/ ...): model/ (a Hugging Face folder that pipeline() runs),
     options.json, metrics.json, predictions-SPLIT.parquet, and plots. metrics.csv has every score of every run.
A run folder appears under its name only when it is complete; a command that is started again skips complete runs.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from megadna.downstream.datasets import grouped, require_groups, share_out, without_leakage
from megadna.downstream.inputs import count_unknown, file_names, require_names
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.stated import content_of
from megadna.downstream.tasks import Target, add_targets, make_target, missing_classes, read_task, with_scale
from megadna.errors import UserError, require
from megadna.files import atomic_file, atomic_folder, work_folder
from megadna.log import get_logger, rank_from_environment
from megadna.ownership import clear_folder, is_unused, refuse_occupied
from megadna.progress import Progress
from megadna.reading import read_json

log = get_logger(__name__)
_TEST_SEED = 1234  # the same rows are test in every run


def finetune(model: Path | str, data: Path | str, output: Path | str, **options: Any) -> pd.DataFrame:
    """Fine-tune, write `output`, return every score: seed, fold, split, score, value, low, high, remark. Keyword
    arguments are the fields of FinetuneOptions."""
    chosen = FinetuneOptions(model=str(model), data=Path(data), output=Path(output), **options)
    chosen.check_files()
    assert chosen.output is not None
    with Progress(f"reading {chosen.data}"):
        tables, target = read_data(chosen)
    for name, table in tables.items():
        if absent := missing_classes(table, target):
            log.warning("%s: no %s of class %s", name, target.unit, ", ".join(absent))
    stranded = chosen.stranded or "strand" in tables["train"]
    require(not (chosen.augment and stranded), "--augment: the label of this task depends on the strand; leave it out")
    is_main = rank_from_environment() == 0
    is_new = is_main and _begin(chosen, _stated(chosen, tables, target))
    try:
        found = [
            _one_run(chosen, tables, target, seed, fold)
            for seed in chosen.seeds or [1]
            for fold in range(max(1, chosen.folds))
        ]
    except UserError:
        if is_new and [entry.name for entry in chosen.output.iterdir()] == ["options.json"]:
            clear_folder(chosen.output)
            chosen.output.rmdir()
        raise
    frame = pd.concat(found, ignore_index=True)
    if is_main:
        with atomic_file(chosen.output / "metrics.csv") as temporary:
            frame.to_csv(temporary, index=False)
    return frame


def read_data(options: FinetuneOptions) -> tuple[dict[str, pd.DataFrame], Target]:
    """The tables by split, those of --test too, with their targets; UserError if options and data do not fit."""
    tables = read_task(options.data, options.label_columns, options.subset, options.groups)
    require("train" in tables, f"{options.data}: no train table (train.csv, .tsv, .parquet, .fna)")
    writes = options.task == "generation"
    labels: Any = {"label": "classification", "number": "regression"}[options.condition] if writes else options.task
    target = make_target(labels, tables["train"], options.label_columns, options.label_names, options.data)
    if writes:
        several, what = len(target.names), f"{options.data}: {len(target.names)}"
        require(several == 1 or target.has_classes, f"{what} numbers a row; name one of them with --label_columns")
        fits = 2 * several <= len(tables["train"])
        require(fits, f"{what} labels in {len(tables['train'])} rows; if they are numbers say --condition number")
    weighted = target.has_classes or target.task == "contact"
    require(weighted or not options.class_weights, f"--class_weights: task {target.task} has no classes")
    where = dict.fromkeys(tables, options.data)
    for entry in options.test:
        name, _, path = entry.partition("=")
        free = bool(path) and name not in (*tables, "train", "dev")
        require(free, f"--test {entry}: must be name=path, each name once, none of them train or dev")
        tables[name], where[name] = _test_table(Path(path), options), Path(path)
    require_names(list(tables), "--test")
    file_names(list(tables), "predictions-{}.parquet")
    tables = {name: add_targets(table, target, f"{where[name]} ({name})") for name, table in tables.items()}
    for name in tables if writes else ():
        rows = tables[name]["sequence"].items()
        count_unknown(((f"{where[name]} ({name}): row {row + 1}", text) for row, text in rows), "bound")
    if writes or target.task == "regression":
        tables = _grouped(tables, options)
    return tables, with_scale(target, tables["train"], options.data)


def _grouped(tables: dict[str, pd.DataFrame], options: FinetuneOptions) -> dict[str, pd.DataFrame]:
    """The tables with their groups, a test part of train if one is wanted, without leakage as far as --leakage says."""
    found, where = grouped(tables), str(options.data)
    if share := options.test_fraction:
        require("test" not in found, f"{where}: has a test table; leave out --test_fraction")
        train = found["train"]
        require_groups(train, 2, "--test_fraction", where)
        parts = share_out(pd.factorize(train["group"])[0], (0.0, share), np.random.default_rng(_TEST_SEED))
        found = {**found, "train": train[parts != "test"], "test": train[parts == "test"]}
        require(len(found["train"]) > 0, f"{where}: --test_fraction {share:g} leaves nothing to train on; lower it")
    return without_leakage(found, options.leakage, where)


def _test_table(path: Path, options: FinetuneOptions) -> pd.DataFrame:
    """The test table of a folder, or its only one."""
    found = read_task(path, options.label_columns, options.subset, options.groups)
    known = "test" in found or len(found) == 1
    require(known, f"--test {path}: has {', '.join(found)}, and no test table; name a file")
    return found["test"] if "test" in found else next(iter(found.values()))


def _stated(options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target) -> str:
    """What a stopped run must have in common with the one that resumes it: options, model, and the rows read."""
    rows = xxhash.xxh3_128(f"{target}\n{sorted(tables['train'])}\n".encode())
    for name, table in tables.items():
        rows.update(f"{name} {len(table)}\n".encode())
        for cells in table[["sequence", "target", *table.columns.intersection(["group"])]].itertuples(index=False):
            rows.update(cells[0].encode())
            rows.update(b"".join(np.asarray(cell).tobytes() for cell in cells[1:]))
    content = {"model": content_of(options.model), "rows": rows.hexdigest()}
    return json.dumps(asdict(replace(options, seeds=[0])) | {"content": content}, default=str, indent=1)


def _begin(options: FinetuneOptions, stated: str) -> bool:
    """Write what is stated to the output folder; False if a stopped run of the same did. UserError if the folder
    contains anything else."""
    assert options.output is not None
    output, note = options.output, options.output / "options.json"
    if note.is_file() and note.read_text(encoding="utf-8") == stated:
        return False
    if not is_unused(output):
        refuse_occupied(output, " (it contains no stopped run of these options, data and model)")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(note, replace=False) as temporary:
        temporary.write_text(stated, encoding="utf-8")
    return True


def _one_run(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, fold: int
) -> pd.DataFrame:
    """Train, score and write one run, or only read it back if it is complete."""
    assert options.output is not None
    folder = options.output / (f"seed-{seed}" + (f"-fold-{fold}" if options.folds else ""))
    if not (folder / "metrics.json").is_file():
        with_dev = _with_dev(tables, options, target, seed, fold)
        target = with_scale(target, with_dev["train"], options.data)
        if options.task == "generation":
            from megadna.downstream.diffusion import train_generator as train
        else:
            from megadna.downstream.task_training import train_and_score as train  # after the data: torch is slow

        is_main = rank_from_environment() == 0
        with atomic_folder(folder) if is_main else nullcontext(work_folder(folder)) as work:
            train(options, with_dev, target, seed, work)
    if rank_from_environment() > 0:
        return pd.DataFrame()
    rows = [
        {"seed": seed, "fold": fold, "split": split, "score": score, "remark": "", **values}
        for split, found in read_json(folder / "metrics.json").items()
        for score, values in found.items()
    ]
    order = ["seed", "fold", "split", "score", "value", "low", "high", "remark"]
    return pd.DataFrame(rows)[order].astype(dict.fromkeys(order[4:7], float))


def _parted_by_group(train: pd.DataFrame, options: FinetuneOptions, seed: int, fold: int) -> dict[str, pd.DataFrame]:
    """train and dev, no group in both: the fold, or a share drawn by the seed."""
    from sklearn.model_selection import GroupKFold

    option = f"--folds {options.folds}" if options.folds else "a dev part"
    require_groups(train, options.folds or 2, option, str(options.data))
    groups = pd.factorize(train["group"])[0]
    if options.folds:
        splitter = GroupKFold(options.folds, shuffle=True, random_state=seed)
        dev = np.isin(np.arange(len(train)), list(splitter.split(train, groups=groups))[fold][1])
    else:
        dev = share_out(groups, (options.dev_fraction, 0.0), np.random.default_rng(seed)) == "dev"
    some = 0 < dev.sum() < len(train)
    require(
        some, f"{options.data}: --dev_fraction {options.dev_fraction:g} of {len(train)} rows leaves train or dev empty"
    )
    return {"train": train[~dev], "dev": train[dev]}


def _with_dev(
    tables: dict[str, pd.DataFrame], options: FinetuneOptions, target: Target, seed: int, fold: int
) -> dict[str, pd.DataFrame]:
    """The tables with a dev part of train: the fold, or a share drawn by the seed if there is no dev table."""
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

    if "dev" in tables and not options.folds:
        return tables
    train = tables["train"]
    if "group" in train:
        return {**tables, **_parted_by_group(train, options, seed, fold)}
    labels = train["target"].to_numpy() if target.task == "classification" else None
    try:
        if options.folds:
            splitter = (KFold if labels is None else StratifiedKFold)(options.folds, shuffle=True, random_state=seed)
            chosen, dev = list(splitter.split(train, labels))[fold]
        else:
            rare = labels is None or np.bincount(labels)[np.unique(labels)].min() < 2
            chosen, dev = train_test_split(
                np.arange(len(train)),
                test_size=options.dev_fraction,
                random_state=seed,
                stratify=None if rare else labels,
            )
    except ValueError as error:
        raise UserError(f"{options.data}: {len(train)} train rows cannot give a dev part ({error})") from error
    return {**tables, "train": train.iloc[chosen], "dev": train.iloc[dev]}
