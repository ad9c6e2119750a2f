"""Labelled positions on a genome -> labelled windows -> a folder of train, dev and test tables.

Every table has `sequence,label` first, then the window's coordinates (contig, start, end on the forward strand, 0-based
and half-open; name of its gene or peak; strand of the sequence) and its kind. The folder also has manifest.json: every
option and count.

Splits. chromosome: whole contigs. random: each window independently, as the DNABERT card did; the leakage is counted.
Otherwise windows of one name (their gene, their peak), overlapping windows and windows of the same sequence (on either
strand) stay together: no test window overlaps or repeats what was trained on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megadna import __version__
from megadna.downstream.dataset_options import SpliceOptions, WindowOptions
from megadna.downstream.groups import connected, either_strand, share_out
from megadna.downstream.inputs import REGION
from megadna.errors import require
from megadna.files import atomic_folder
from megadna.genome.contigs import nearest
from megadna.genome.records import PLAIN, Genome, as_text
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

SPLITS = ("train", "dev", "test")


def _split(windows: pd.DataFrame, options: SpliceOptions | WindowOptions) -> np.ndarray:
    """`train`, `dev` or `test` of each window (columns contig, start, end, name, sequence); named contigs decide, else
    the shares."""
    by, dev, test = options.split, options.dev_contigs, options.test_contigs
    present = windows["contig"].unique().tolist()
    for option, names in (("--dev_contigs", dev), ("--test_contigs", test)):
        for name in names:
            require(name in present, f"{option} {name}: no window is on it{nearest(name, present)}")
    shared = sorted(set(dev) & set(test))
    require(not shared, f"--dev_contigs and --test_contigs share {', '.join(shared)}; name it once")
    if dev or test:
        require(by == "chromosome", f"--dev_contigs and --test_contigs need --split chromosome, not {by}")
        return np.where(windows["contig"].isin(test), "test", np.where(windows["contig"].isin(dev), "dev", "train"))
    if by == "random":
        groups = np.arange(len(windows))
    else:
        groups = pd.factorize(windows["contig"])[0] if by == "chromosome" else _together(windows)
    fractions = (options.dev_fraction, options.test_fraction)
    found, needed = int(groups.max()) + 1, 1 + sum(fraction > 0 for fraction in fractions)
    text = f"{needed} splits, but only {found} of them with windows; try another --split"
    require(found >= needed, f"--split {by}: {text}")
    return share_out(groups, fractions, np.random.default_rng((options.seed, 1)))


def _together(windows: pd.DataFrame) -> np.ndarray:
    """Number of each window's group: joined by name, by overlap, by sequence."""
    by = (_clusters(windows).astype(str), windows["name"].to_numpy(str), either_strand(windows["sequence"]))
    return connected([(np.flatnonzero(keys != ""), keys[keys != ""]) for keys in by], len(windows))


def _clusters(windows: pd.DataFrame) -> np.ndarray:
    """Number of each window's cluster of windows that overlap, directly or through others."""
    ordered = windows.reset_index(drop=True).sort_values(["contig", "start"])
    reach = ordered.groupby("contig")["end"].cummax().shift()
    begins = (ordered["contig"] != ordered["contig"].shift()) | (ordered["start"] >= reach)
    return begins.cumsum().sort_index().to_numpy()


def overlap(intervals: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """Whether each interval (contig, start, end) shares a base with one of the others."""
    contigs, starts, ends = (intervals[key].to_numpy() for key in ("contig", "start", "end"))
    found = np.zeros(len(intervals), bool)
    for contig, rows in others.sort_values("start").groupby("contig"):
        here = contigs == contig
        begun = np.searchsorted(rows["start"], ends[here])  # others that begin before the interval's end
        found[here] = np.append(-1, np.maximum.accumulate(rows["end"]))[begun] > starts[here]
    return found


def _leakage(windows: pd.DataFrame) -> dict[str, int]:
    """How many dev and test windows (column split) overlap a train window by a base or more, or repeat its sequence."""
    keys, train = either_strand(windows["sequence"]), (windows["split"] == "train").to_numpy()
    counts = {}
    for split in SPLITS[1:]:
        here = (windows["split"] == split).to_numpy()
        counts[f"{split} windows that overlap train"] = int(overlap(windows[here], windows[train]).sum())
        counts[f"{split} windows whose sequence is in train"] = int(np.isin(keys[here], keys[train]).sum())
    return counts


def cut(windows: pd.DataFrame, genome: Genome, length: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The windows (columns contig, start, reverse) with their sequence and end, and how many were left out because they
    extend beyond a contig's end or contain anything but A, C, G and T. Order and index remain."""
    starts, sizes = windows["start"].to_numpy(), windows["contig"].map(genome.lengths).to_numpy()
    inside = (starts >= 0) & (starts + length <= sizes)
    sequences = pd.Series("", index=windows.index, dtype=object)
    plain = np.zeros(len(windows), bool)
    for contig, rows in windows[inside].groupby("contig", sort=False):
        at = windows.index.get_indexer(rows.index)
        found = genome.windows(str(contig), rows["start"].to_numpy(), length, rows["reverse"].to_numpy(bool))
        plain[at] = PLAIN[found].all(axis=1)
        sequences.iloc[at] = as_text(found)
    left_out = {"past a contig's end": int((~inside).sum()), "not A, C, G or T alone": int((inside & ~plain).sum())}
    return windows.assign(sequence=sequences, end=starts + length)[plain], left_out


def finish(
    examples: pd.DataFrame, options: SpliceOptions | WindowOptions, columns: list[str], counts: dict[str, Any]
) -> pd.DataFrame:
    """Split, shuffle, count and, with --output, write; the table of all splits, the manifest in its `attrs`.
    `columns` follow those that every dataset has."""
    with Progress("splitting"):
        examples = examples.assign(split=_split(examples, options))
    examples = examples.sample(frac=1, random_state=np.random.default_rng((options.seed, 2)), ignore_index=True)
    classes = examples["label" if examples["label"].dtype == np.int64 else "kind"]  # a regression has no classes
    windows = pd.crosstab(examples["split"], classes).to_dict("index")
    with Progress("looking for leakage between the splits"):
        counts = {**counts, "windows": windows, "leakage": _leakage(examples)}
    for what in ("windows", "leakage"):
        log.info("%s: %s", what, "; ".join(f"{name}: {count}" for name, count in counts[what].items()))
    table = examples[["sequence", "label", *REGION, "kind", *columns, "split"]]
    manifest = {"megadna": __version__, "options": asdict(options), "counts": counts}
    table.attrs["manifest"] = json.loads(json.dumps(manifest, default=str))
    if options.output is not None:
        _write(table, options.output)
    return table


def _write(table: pd.DataFrame, output: Path) -> None:
    """The folder, complete or not at all."""
    with atomic_folder(output) as work:
        for split, rows in table.groupby("split"):  # none for a split of share 0
            rows.drop(columns="split").to_csv(work / f"{split}.csv", index=False)
        (work / "manifest.json").write_text(json.dumps(table.attrs["manifest"], indent=1) + "\n", encoding="utf-8")
    log.info("wrote %s (contig, start, end: positions from 0, end not included)", output)
