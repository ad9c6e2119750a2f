"""Labelled sequences in the field's layouts -> a table a split, with the columns sequence and target.

In:  a folder of train, dev (valid, validation, val) and test tables: GUE's CSV, DNABERT's TSV of blank-separated
     k-mers, Nucleotide Transformer's FASTA (`>name|label`) or Parquet (column task), the folders of
     `megadna splice-sites` and `megadna windows`; or one CSV, TSV or Parquet file, with a column split or without.
Out: sequence (upper-case, U as T) and target: a class number, or numbers; per nucleotide an array [L] or [L, 1]; of
     contacts [L, L].
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from megadna.downstream.sequences import read_records
from megadna.errors import UserError, require
from megadna.genome.tables import join_kmers, open_bounded
from megadna.reading import first_line

Task = Literal["classification", "multilabel", "regression", "base_classification", "base_regression", "contact"]
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
_FILE = re.compile(rf"^({'|'.join(_SPLITS)})\.(csv|tsv|txt|parquet|fna|fa|fasta)(\.gz)?$")
_NUCLEOTIDES = re.compile("[ACGTUNRYKMSWBDHV]+")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and which rows to take."""

    sequence: str = ""
    labels: tuple[str, ...] = ()
    subset: str = ""


def find_tasks(data: Path) -> dict[str, Path]:
    """Folders below `data` (or itself) that hold a train table, by their path relative to it."""
    folders = {path.parent for path in data.rglob("*") if (found := _FILE.match(path.name)) and found[1] == "train"}
    require(bool(folders), f"{data}: no folder with a train table (train.csv, .tsv, .parquet, .fna) in it")
    return {str(folder.relative_to(data)) if folder != data else data.name: folder for folder in sorted(folders)}


def read_task(data: Path, columns: Columns) -> dict[str, pd.DataFrame]:
    """Tables by split: train, and dev and test where there are such; columns sequence, and label_0, label_1 ..."""
    if data.is_file():
        table = read_table(data, columns)
        if "split" not in table:
            return {"train": table}
        names = table["split"].astype(str).str.lower().map(_SPLITS)
        require(names.notna().all(), f"{data}: column split holds {table['split'][names.isna()].iloc[:1].tolist()}")
        tables = {str(name): part.reset_index(drop=True) for name, part in table.groupby(names)}
    else:
        require(data.is_dir(), f"{data}: no such file or folder")
        files = {_SPLITS[found[1]]: path for path in sorted(data.iterdir()) if (found := _FILE.match(path.name))}
        tables = {split: read_table(path, columns) for split, path in files.items()}
    require(bool(tables), f"{data}: no train, dev or test table (train.csv, .tsv, .parquet, .fna)")
    return tables


def read_table(path: Path, columns: Columns) -> pd.DataFrame:
    """One table; UserError names the file and the row or column that does not fit."""
    require(path.is_file(), f"{path}: no such file")
    table = _read(path)
    if ("task" in table and table["task"].nunique() > 1) or columns.subset:
        known = sorted(table["task"].unique()) if "task" in table else []
        require(columns.subset in known, f"{path}: say which task with --subset: {', '.join(known) or 'it has none'}")
        table = table[table["task"] == columns.subset].reset_index(drop=True)
    require(len(table) > 0, f"{path}: holds no row")
    sequence = columns.sequence or next((name for name in ("sequence", "seq") if name in table), "sequence")
    labels = columns.labels or (next((name for name in ("label", "labels") if name in table), "label"),)
    for name in (sequence, *labels):
        require(name in table, f"{path}: no column {name!r}; it has {', '.join(map(str, table.columns))}")
        empty = np.flatnonzero(table[name].isna())
        require(not len(empty), f"{path}: row {empty[0] + 1 if len(empty) else 0}: column {name!r} is empty")
    text = table[sequence].astype(str).str.strip()
    if " " in text.iloc[0]:
        text = pd.Series([join_kmers(t, f"{path}: row {n}") for n, t in enumerate(text, 1)])
    text = text.str.upper()
    wrong = np.flatnonzero(~text.map(lambda letters: bool(_NUCLEOTIDES.fullmatch(letters))))
    require(not len(wrong), f"{path}: row {wrong[0] + 1 if len(wrong) else 0}: no nucleotide sequence")
    kept = {name: table[name] for name in ("split", "strand") if name in table}
    found = {f"label_{place}": table[name] for place, name in enumerate(labels)}
    return pd.DataFrame({"sequence": text.str.replace("U", "T"), **found, **kept})


def _read(path: Path) -> pd.DataFrame:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind in ("fna", "fa", "fasta"):
        rows = [(header.decode().rsplit("|", 1), letters) for header, letters in read_records(path)]
        require(all(len(words) == 2 for words, _ in rows), f"{path}: a header line is no `>name|label`")
        return pd.DataFrame({"sequence": [letters for _, letters in rows], "label": [words[1] for words, _ in rows]})
    try:
        if kind == "parquet":
            from megadna.genome.parquet import refuse_large_table

            refuse_large_table(path)
            return pd.read_parquet(path)
        labels_as_written = {"label": str, "labels": str}
        separator = "\t" if kind in ("tsv", "txt") else ","
        with open_bounded(path, separator) as file:
            return pd.read_csv(file, sep=separator, dtype=labels_as_written)
    except UserError:
        raise
    except Exception as error:  # of pandas, pyarrow, gzip or zlib
        raise UserError(f"{path}: cannot be read as a table ({first_line(error)})") from error


@dataclass(frozen=True)
class Target:
    """What is predicted."""

    task: Task
    names: list[str]
    """Of classes, of the columns of several labels, or of the numbers."""

    @property
    def ragged(self) -> bool:
        """Whether a longer sequence has more targets: one a nucleotide, or one a pair of them."""
        return self.task.startswith("base_") or self.task == "contact"

    @property
    def independent(self) -> bool:
        """Whether each label is a yes or no by itself."""
        return self.task in ("multilabel", "contact")

    @property
    def is_regression(self) -> bool:
        """Whether numbers are predicted."""
        return self.task.endswith("regression")

    @property
    def main_score(self) -> str:
        """By which models are compared where nothing else is said."""
        return "pearson" if self.is_regression else "auprc" if self.task == "contact" else "mcc"


def make_target(task: Task, tables: dict[str, pd.DataFrame], columns: Columns, names: list[str], where: Path) -> Target:
    """The classes of the train table (class i of an integer label is names[i] where `names` are given)."""
    train = tables["train"]
    if task == "contact":
        return Target(task, ["contact"])
    if task in ("multilabel", "regression", "base_regression"):
        return Target(task, list(columns.labels) or ["value"])
    labels = train["label_0"].astype(str)
    found = {letter for text in labels for letter in text} if task == "base_classification" else set(labels)
    present = len(found)
    if all(text.isdigit() for text in found):
        found = {str(number) for number in range(max(map(int, found)) + 1)} if found else found
        names = names or sorted(found, key=int)
        require(len(found) <= len(names), f"--label_names has {len(names)} names for {len(found)} classes")
    else:
        names = names or sorted(found)
        require(found <= set(names), f"--label_names lacks {', '.join(sorted(found - set(names)))}")
    require(present > 1, f"{where}: the train table has one class only: every label is {labels.iloc[0][:40]}")
    return Target(task, names)


def add_targets(table: pd.DataFrame, target: Target, where: str) -> pd.DataFrame:
    """The table with its column target; UserError for a label that the target does not know."""
    columns = [name for name in table if str(name).startswith("label_")]
    if target.task in ("multilabel", "regression"):
        numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
        wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
        require(not len(wrong), f"{where}: row {wrong[0] + 1 if len(wrong) else 0}: a label is no number")
        binary = target.task != "multilabel" or np.isin(numbers, (0, 1)).all()
        require(bool(binary), f"{where}: labels of --task multilabel are 0 or 1; for numbers say --task regression")
        return table.assign(target=list(numbers))
    if not target.ragged:
        return table.assign(target=[_class(text, target, where) for text in table["label_0"].astype(str)])
    rows = []
    for number, (text, letters) in enumerate(zip(table["label_0"], table["sequence"], strict=True), start=1):
        if target.task == "contact":
            values = _contacts(str(text), len(letters), f"{where}: row {number}")
        elif target.is_regression:
            values = _numbers(text, f"{where}: row {number}")
        else:
            values = np.array([_class(letter, target, where) for letter in str(text)])
        require(len(values) == len(letters), f"{where}: row {number}: {len(values)} labels, {len(letters)} bases")
        rows.append(values)
    return table.assign(target=rows)


def _numbers(values: object, where: str) -> np.ndarray:
    """fp32 [L, 1] of an array, or of a text of numbers with blanks between; nan where there is none."""
    try:
        return np.atleast_1d(np.array(values.split() if isinstance(values, str) else values, np.float32))[:, None]
    except ValueError as error:
        raise UserError(f"{where}: labels are numbers with blanks between, got {str(values)[:40]!r}") from error


def _contacts(text: str, size: int, where: str) -> np.ndarray:
    """int8 [L, L]: 1 for each pair of the text (0-based, as 3-17) and its mirror image; "-" stands for no pair."""
    fits = re.fullmatch(r"-|\d+-\d+( \d+-\d+)*", text) is not None
    require(fits, f"{where}: contacts are pairs such as 3-17 9-40, or - for none, got {text[:40]!r}")
    pairs = np.array(re.findall(r"(\d+)-(\d+)", text), np.int64).reshape(-1, 2)
    require(
        bool((pairs < size).all()),
        f"{where}: a contact with base {pairs.max(initial=0)}, but the last one is {size - 1}",
    )
    contacts_LL = np.zeros((size, size), np.int8)
    contacts_LL[pairs[:, 0], pairs[:, 1]] = contacts_LL[pairs[:, 1], pairs[:, 0]] = 1
    return contacts_LL


def _class(text: str, target: Target, where: str) -> int:
    if text in target.names:
        return target.names.index(text)
    if text.isdigit() and int(text) < len(target.names):
        return int(text)
    raise UserError(f"{where}: label {text!r} is none of {', '.join(target.names)}, the classes of the train table")
