"""Labelled places on a genome -> labelled windows -> a folder of train, dev and test tables.

Every table has `sequence,label` first, then where the window lies (contig, start, end on the forward strand, 0-based
and half-open; name of its gene or peak; strand of the sequence) and what it is. The folder also holds manifest.json:
every option and count.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megadna import __version__
from megadna.downstream.dataset_options import DatasetOptions
from megadna.downstream.genome import PLAIN, Genome, as_text
from megadna.downstream.names import REGION
from megadna.downstream.splits import leakage, split_windows
from megadna.files import atomic_folder
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def cut(places: pd.DataFrame, genome: Genome, length: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The windows (columns contig, start, reverse of `places`) with their sequence and end, and how many were left out
    because they pass a contig's end or hold something else than A, C, G and T. Order and index stay."""
    starts, sizes = places["start"].to_numpy(), places["contig"].map(genome.lengths).to_numpy()
    inside = (starts >= 0) & (starts + length <= sizes)
    sequences = pd.Series("", index=places.index, dtype=object)
    plain = np.zeros(len(places), bool)
    for contig, rows in places[inside].groupby("contig", sort=False):
        at = places.index.get_indexer(rows.index)
        windows = genome.windows(str(contig), rows["start"].to_numpy(), length, rows["reverse"].to_numpy(bool))
        plain[at] = PLAIN[windows].all(axis=1)
        sequences.iloc[at] = as_text(windows)
    left_out = {"past a contig's end": int((~inside).sum()), "not A, C, G or T alone": int((inside & ~plain).sum())}
    return places.assign(sequence=sequences, end=starts + length)[plain], left_out


def finish(
    examples: pd.DataFrame, options: DatasetOptions, by: str, columns: list[str], counts: dict[str, Any]
) -> pd.DataFrame:
    """Split, shuffle, count and, with --output, write; the table of all splits, the manifest in its `attrs`.

    A split by group keeps whole what has one name. `columns` are written after those that every dataset has.
    """
    fractions, contigs = (options.dev_fraction, options.test_fraction), (options.dev_contigs, options.test_contigs)
    examples = examples.assign(group=examples["name"])
    with Progress("splitting"):
        examples["split"] = split_windows(examples, by, fractions, contigs, options.seed)
    examples = examples.sample(frac=1, random_state=np.random.default_rng((options.seed, 2)), ignore_index=True)
    classes = examples["label" if examples["label"].dtype == np.int64 else "kind"]  # a regression has no classes
    windows = pd.crosstab(examples["split"], classes).to_dict("index")
    with Progress("looking for leakage between the splits"):
        counts = {**counts, "windows": windows, "leakage": leakage(examples)}
    for what in ("windows", "leakage"):
        log.info("%s: %s", what, "; ".join(f"{name}: {count}" for name, count in counts[what].items()))
    table = examples[["sequence", "label", *REGION, "kind", *columns, "split"]]
    manifest = {"megadna": __version__, "options": asdict(options), "counts": counts}
    table.attrs["manifest"] = json.loads(json.dumps(manifest, default=str))
    if options.output is not None:
        _write(table, options.output, options.format)
    return table


def _write(table: pd.DataFrame, output: Path, kind: str) -> None:
    """The folder, whole or not at all."""
    with atomic_folder(output) as work:
        for split, rows in table.groupby("split"):  # none for a split of share 0
            rows = rows.drop(columns="split")
            if kind == "csv":
                rows.to_csv(work / f"{split}.csv", index=False)
            else:
                rows.to_parquet(work / f"{split}.parquet", index=False)
        (work / "manifest.json").write_text(json.dumps(table.attrs["manifest"], indent=1) + "\n", encoding="utf-8")
    log.info("wrote %s", output)
