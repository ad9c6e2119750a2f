"""Labelled sequences in the field's layouts -> one table per split, with the columns sequence and target.

In:  a folder of train, dev (valid, validation, val) and test tables: GUE's CSV, DNABERT's TSV of blank-separated
     k-mers, Nucleotide Transformer's FASTA (`>name|label`) or Parquet (column task), the folders of
     `megadna splice-sites` and `megadna windows`; or one CSV, TSV or Parquet file, with a column split or without.
Out: sequence (upper-case, U as T) and target: a class number, or numbers; per nucleotide an array [L] or [L, 1]; of
     contacts [L, L].
Every cell is read as text: a label is a name, even if it is 9606, 01, NA or None. Only an empty cell is an error.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.downstream.inputs import in_natural_order, require_names
from megadna.downstream.options import Task
from megadna.errors import UserError, require
from megadna.genome.records import read_records
from megadna.genome.tables import join_kmers, open_bounded
from megadna.reading import first_line

NUMBER_SCORES = ("pearson", "spearman", "r2", "mse")
SPLICE_NAMES = ("donor", "acceptor", "negative")
CLASS_SCORES = ("accuracy", "f1_macro", "mcc", "auroc", "auprc")

_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
_FILE = re.compile(rf"^({'|'.join(_SPLITS)})\.(csv|tsv|txt|parquet|fna|fa|fasta)(\.gz)?$")
_NUCLEOTIDES = re.compile("[ACGTUNRYKMSWBDHV]+")


def find_tasks(data: Path) -> dict[str, Path]:
    """Folders below `data` (or itself) with a train table, by their path relative to it."""
    folders = {path.parent for path in data.rglob("*") if (found := _FILE.match(path.name)) and found[1] == "train"}
    require(bool(folders), f"{data}: no folder with a train table (train.csv, .tsv, .parquet, .fna) in it")
    own = data.resolve().name
    tasks = {str(folder.relative_to(data)) if folder != data else own: folder for folder in sorted(folders)}
    require(len(tasks) == len(folders), f"{data}: it and the folder {own} in it are both a task; move one of them")
    return tasks


def read_task(data: Path, labels: Sequence[str] = (), subset: str = "", groups: str = "") -> dict[str, pd.DataFrame]:
    """Tables by split: train, dev and test if they exist; columns sequence, and label_0, label_1 ... (read_table)."""
    if data.is_file():
        table = read_table(data, labels, subset, groups)
        if "split" not in table:
            return {"train": table}
        names = table["split"].str.strip().str.lower().map(_SPLITS)
        wrong = np.flatnonzero(names.isna())
        if len(wrong):
            stated = table["split"].iloc[wrong[0]]
            row = table.index[wrong[0]] + 1
            raise UserError(f"{data}: row {row}: split {stated!r} is not one of {', '.join(_SPLITS)}")
        tables = {str(name): part for name, part in table.groupby(names)}
    else:
        require(data.is_dir(), f"{data}: no such file or folder")
        files: dict[str, Path] = {}
        for path in sorted(data.iterdir()):
            if found := _FILE.match(path.name):
                first = files.setdefault(_SPLITS[found[1]], path)
                require(first == path, f"{data}: {first.name} and {path.name} are both its {_SPLITS[found[1]]} table")
        tables = {split: read_table(path, labels, subset, groups) for split, path in files.items()}
    require(bool(tables), f"{data}: no train, dev or test table (train.csv, .tsv, .parquet, .fna)")
    return tables


def read_table(path: Path, labels: Sequence[str] = (), subset: str = "", groups: str = "") -> pd.DataFrame:
    """One table, its index the rows of the file from 0 on, its column `family` the column `groups` of the file;
    UserError with the file and the row or column that does not fit."""
    require(path.is_file(), f"{path}: no such file")
    table = read_cells(path)
    require(len(table) > 0, f"{path}: has no rows")
    for name in ("task", "split"):
        if name in table:
            _require_filled(table, name, path)
    if ("task" in table and table["task"].nunique() > 1) or subset:
        known = sorted(table["task"].unique()) if "task" in table else []
        require(subset in known, f"{path}: say which task with --subset: {', '.join(known) or 'it has none'}")
        table = table[table["task"] == subset]
    usual = ("sequence", "seq", *(name for name in table if str(name).lower() in ("sequence", "seq")))
    sequence = next((name for name in usual if name in table), "sequence")
    labels = labels or _usual_labels(table)
    for name in (sequence, *labels, *([groups] if groups else [])):
        require(name in table, f"{path}: no column {name!r}; it has {', '.join(map(str, table.columns))}")
        _require_filled(table, name, path)
    text = table[sequence].map(str).str.strip()
    if " " in text.iloc[0]:
        rows = zip(text.index, text, strict=True)
        text = pd.Series([join_kmers(words, f"{path}: row {row + 1}") for row, words in rows], text.index)
    text = text.str.upper()
    for row, bases in text.items():
        require(_NUCLEOTIDES.fullmatch(bases) is not None, f"{path}: row {row + 1}: not a nucleotide sequence")
    kept = {name: table[name] for name in ("split", "strand") if name in table}
    if groups:
        kept["family"] = table[groups].map(str).str.strip()
    found = {f"label_{number}": table[name] for number, name in enumerate(labels)}
    return pd.DataFrame({"sequence": text.str.replace("U", "T"), **found, **kept})


def _usual_labels(table: pd.DataFrame) -> list[str]:
    """label, labels, or label_1, label_2 ..."""
    several = [name for name in table if re.fullmatch(r"label_\d+", name)]
    return next(([name] for name in ("label", "labels") if name in table), several or ["label"])


def _require_filled(table: pd.DataFrame, name: str, path: Path) -> None:
    """UserError if the column has an empty cell."""
    for row, cell in zip(table.index, table[name], strict=True):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise UserError(f"{path}: row {row + 1}: column {name!r} is empty")


def read_cells(path: Path) -> pd.DataFrame:
    """Cells as text, "" if empty; columns of lists (Parquet) as they are."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind in ("fna", "fa", "fasta"):
        return _read_fasta(path)
    try:
        if kind == "parquet":
            from megadna.genome.tables import refuse_large_table

            refuse_large_table(path)
            found = parquet.read_table(path)
            names, cells = found.column_names, [_as_text(column) for column in found.columns]
        else:
            separator = "\t" if kind in ("tsv", "txt") else ","
            with open_bounded(path, separator) as file:
                rows = pd.read_csv(file, sep=separator, header=None, dtype=str, na_filter=False)
            names, cells = rows.iloc[0].tolist(), [rows[column].iloc[1:] for column in rows]
    except UserError:
        raise
    except Exception as error:  # of pandas, pyarrow, gzip or zlib
        raise UserError(f"{path}: cannot be read as a table ({first_line(error)})") from error
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    require(not twice, f"{path}: two columns are called {twice[0] if twice else ''!r}; rename one")
    return pd.DataFrame({name: column.to_numpy(object) for name, column in zip(names, cells, strict=True)})


def _as_text(column: pa.ChunkedArray) -> pd.Series:
    """The cells as pandas writes them to CSV, but whole numbers without ".0" (a null makes pandas widen integers to
    floats)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_nested(kind):
        return column.to_pandas()
    if pa.types.is_floating(kind):
        return pd.Series(list(map(_number_as_text, column.to_pylist())), dtype=object)
    texts = column.cast(pa.large_string()).fill_null("").to_pandas()
    return texts.str.title() if pa.types.is_boolean(kind) else texts


def _number_as_text(number: float | None) -> str:
    if number is None or number != number:
        return ""
    return str(int(number)) if float(number).is_integer() else repr(number)


def _read_fasta(path: Path) -> pd.DataFrame:
    """`>name|label`, or `>name|label|label ...`: every field after the first bar is a label in its own column."""
    rows = [(header.decode(errors="replace").split("|"), bases) for header, bases in read_records(path)]
    num_labels = len(rows[0][0]) - 1
    for number, (words, _) in enumerate(rows, start=1):
        if len(words) - 1 != num_labels or num_labels < 1:
            raise UserError(
                f"{path}: record {number}: its header >{'|'.join(words)[:60]} has {len(words) - 1} labels "
                f"(>name|label), the first record {num_labels}; give every record the same number, one or more"
            )
    names = ["label"] if num_labels == 1 else [f"label_{number}" for number in range(1, num_labels + 1)]
    cells = zip(*(words[1:] for words, _ in rows), strict=True)
    return pd.DataFrame({"sequence": [bases for _, bases in rows], **dict(zip(names, cells, strict=True))})


@dataclass(frozen=True)
class Target:
    """What is predicted."""

    task: Task
    names: list[str]
    """Of the classes, of the columns of several labels, or of the numbers."""
    labels: list[str] = field(default_factory=list)
    """How the tables write the classes, if not by their names."""
    means: list[float] = field(default_factory=list)
    """Of the numbers of the train table: with `scales` the z-scores that a model learns (with_scale)."""
    scales: list[float] = field(default_factory=list)
    """Standard deviations."""

    @property
    def ragged(self) -> bool:
        """Whether a longer sequence has more targets: one per nucleotide, or one per pair of them."""
        return self.task.startswith("base_") or self.task == "contact"

    @property
    def independent(self) -> bool:
        """Whether each label is a separate yes or no."""
        return self.task in ("multilabel", "contact")

    @property
    def has_classes(self) -> bool:
        """Whether one class of several is predicted."""
        return self.task in ("classification", "base_classification")

    @property
    def is_regression(self) -> bool:
        """Whether numbers are predicted."""
        return self.task.endswith("regression")

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of its scores."""
        return NUMBER_SCORES if self.is_regression else CLASS_SCORES

    @property
    def main_score(self) -> str:
        """By which the best model is chosen."""
        return "pearson" if self.is_regression else "auprc" if self.task == "contact" else "mcc"

    @property
    def unit(self) -> str:
        """What has one target."""
        return "pair" if self.task == "contact" else "base" if self.ragged else "row"


def make_target(task: Task, train: pd.DataFrame, labels: Sequence[str], names: list[str], where: Path) -> Target:
    """Its names: of a classification the distinct labels of the train table, or `names` for them (_named)."""
    count = sum(str(name).startswith("label_") for name in train)
    if task in ("multilabel", "regression"):
        own = list(labels) or (["value"] if count == 1 else [f"label_{n}" for n in range(1, count + 1)])
        require_names(own, f"{where}: --label_columns")
        return Target(task, own)
    require(
        count == 1,
        f"{where}: {count} labels per row, and task {task} has one; say --task multilabel or regression, or the one "
        f"column with --label_columns (of a FASTA file: label_1 to label_{count})",
    )
    if task == "contact":
        return Target(task, ["contact"])
    if task == "base_regression":
        return Target(task, list(labels) or ["value"])
    _require_text(train, str(where))
    texts = train["label_0"]
    found = set("".join(texts)) if task == "base_classification" else set(texts.str.strip())
    require(len(found) > 1, f"{where}: the train table has one class only: every label is {texts.iloc[0][:40]}")
    target = _named(task, in_natural_order(found), names)
    require_names(target.names, f"{where}: the classes" if not names else "--label_names")
    return target


def _require_text(table: pd.DataFrame, where: str) -> None:
    """UserError if a label is a list (of a Parquet file)."""
    for column in table.columns[table.columns.str.startswith("label_")]:
        for row, cell in zip(table.index, table[column], strict=True):
            if not isinstance(cell, str):
                raise UserError(f"{where}: row {row + 1}: the label is a list; give each label its own column")


def _named(task: Task, found: list[str], names: list[str]) -> Target:
    """Classes for the labels found: these; or `names`, if they are the same texts in another order, else as names of
    the labels 0, 1, ..., else as names of equally many labels in natural order."""
    if not names or set(found) <= set(names):
        return Target(task, names or found)
    numbers = [str(number) for number in range(len(names))]
    if set(found) <= set(numbers):
        return Target(task, names, numbers)
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    require(len(found) == len(names), f"--label_names has {len(names)} names for {len(found)} classes: {shown}")
    foreign = set(found) & set(names)
    require(not foreign, f"--label_names lacks {', '.join(n for n in found if n not in names)}")
    return Target(task, names, found)


def add_targets(table: pd.DataFrame, target: Target, where: str) -> pd.DataFrame:
    """The table with its column target; UserError for a label that the target does not have."""
    columns = [name for name in table if str(name).startswith("label_")]
    rows = table.index + 1
    if target.task != "base_regression":
        _require_text(table, where)
    if target.task in ("multilabel", "regression"):
        fits = len(columns) == len(target.names)
        require(fits, f"{where}: {len(columns)} labels per row, and the train table has {len(target.names)}")
        texts = table[columns].replace({"True": "1", "False": "0"})
        numbers = texts.apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
        for row, column in np.argwhere(~np.isfinite(numbers))[:1]:
            text = f"{texts.iloc[row, column]!r} of {target.names[column]}"
            raise UserError(f"{where}: row {rows[row]}: {text} is not a number; leave out rows without one")
        binary = target.task != "multilabel" or np.isin(numbers, (0, 1)).all()
        require(bool(binary), f"{where}: labels of --task multilabel are 0 or 1; for numbers say --task regression")
        return table.assign(target=list(numbers))
    classes = {name: number for given in (target.names, target.labels) for number, name in enumerate(given)}
    if not target.ragged:
        texts = zip(rows, table["label_0"], strict=True)
        return table.assign(target=[_class(text.strip(), classes, f"{where}: row {row}") for row, text in texts])
    found = []
    for row, text, bases in zip(rows, table["label_0"], table["sequence"], strict=True):
        if target.task == "contact":
            values = _contacts(text, len(bases), f"{where}: row {row}")
        elif target.is_regression:
            values = _numbers(text, f"{where}: row {row}")
        else:
            values = np.array([_class(character, classes, f"{where}: row {row}") for character in text])
        require(len(values) == len(bases), f"{where}: row {row}: {len(values)} labels, {len(bases)} bases")
        found.append(values)
    return table.assign(target=found)


def is_constant(numbers: np.ndarray) -> bool:
    """Whether they are equal, up to the order in which fp32 adds."""
    return bool(np.ptp(numbers) <= 1e-6 * np.abs(numbers).max())


def with_scale(target: Target, train: pd.DataFrame, where: object) -> Target:
    """The target with the mean and the standard deviation of each number in this table (NaN left out); any other target
    as it is. UserError for a number that is the same everywhere."""
    if not target.is_regression:
        return target
    numbers_NC = np.vstack(train["target"].to_list()).astype(np.float64)
    columns = [column[~np.isnan(column)] for column in numbers_NC.T]
    for name, column in zip(target.names, columns, strict=True):
        same = not len(column) or is_constant(column)
        what = f"{column[0]:.6g}" if len(column) else "missing"
        require(not same, f"{where}: {name} is {what} in every {target.unit} of train; there is nothing to learn")
    means, scales = ([float(of(column)) for column in columns] for of in (np.mean, np.std))
    return replace(target, means=means, scales=scales)


def missing_classes(table: pd.DataFrame, target: Target) -> list[str]:
    """Classes that no row (or base) of the table has."""
    if not target.has_classes:
        return []
    counts = np.bincount(np.concatenate(list(map(np.atleast_1d, table["target"]))), minlength=len(target.names))
    return [name for name, count in zip(target.names, counts, strict=True) if not count]


def _numbers(values: object, where: str) -> np.ndarray:
    """fp32 [L, 1] of an array, or of a text of numbers separated by spaces; nan: no value."""
    try:
        return np.atleast_1d(np.array(values.split() if isinstance(values, str) else values, np.float32))[:, None]
    except ValueError as error:
        raise UserError(f"{where}: labels are numbers separated by spaces, got {str(values)[:40]!r}") from error


def _contacts(text: str, size: int, where: str) -> np.ndarray:
    """int8 [L, L]: 1 for each pair of the text (0-based, as 3-17) and its mirror image; "-" means no pair."""
    fits = re.fullmatch(r"-|\d+-\d+( \d+-\d+)*", text) is not None
    require(fits, f"{where}: contacts are pairs such as 3-17 9-40, or - for none, got {text[:40]!r}")
    pairs = np.array(re.findall(r"(\d+)-(\d+)", text), np.int64).reshape(-1, 2)
    last = pairs.max(initial=0)
    require(last < size, f"{where}: a contact with base {last}, but the last one is {size - 1}")
    contacts_LL = np.zeros((size, size), np.int8)
    contacts_LL[pairs[:, 0], pairs[:, 1]] = contacts_LL[pairs[:, 1], pairs[:, 0]] = 1
    return contacts_LL


def _class(text: str, classes: dict[str, int], where: str) -> int:
    if text not in classes:
        known = ", ".join(list(classes)[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
        raise UserError(f"{where}: label {text!r} is not one of {known}, the classes of the train table")
    return classes[text]
