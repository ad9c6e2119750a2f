"""Labelled rows: which must not be parted, splits that keep them together, and the folder of a dataset of windows.

Groups: rows are of one group if they share a stretch of 31 bases on either strand (copies, reverse complements,
overlapping windows, variants of one promoter), the whole sequence or a name (column `family`): directly, or through
other rows. The codes of all 31-mers are in memory at once: about 40 bytes a base.

A dataset of windows: tables of train, dev and test with `sequence,label` first, then the window's coordinates (contig,
start, end on the forward strand, 0-based and half-open; name of its gene or peak; strand of the sequence) and its kind;
and manifest.json: every option and count. Splits. chromosome: whole contigs. random: each window independently, as the
DNABERT card did; the leakage is counted. Otherwise windows of one name (their gene, their peak), overlapping windows
and windows of the same sequence (on either strand) stay together: no test window overlaps or repeats what was trained
on.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megadna import __version__
from megadna.alphabet import dna_of
from megadna.data.leakage import K, kmer_codes
from megadna.downstream.dataset_options import SpliceOptions, WindowOptions
from megadna.downstream.inputs import REGION
from megadna.errors import require
from megadna.files import atomic_folder
from megadna.genome.contigs import nearest
from megadna.genome.records import PLAIN, Genome, as_text, reverse_complement
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


Keys = tuple[np.ndarray, np.ndarray]
"""Numbers of rows, and a key of each; a row may come several times, or never."""
_BATCH = 1 << 17  # bases whose codes are computed at a time: the arrays stay in the cache


def connected(keys: Iterable[Keys], count: int) -> np.ndarray:
    """Group [count] of each row, numbered by first row: those with an equal key are joined, directly or through
    others."""
    from scipy.sparse import coo_array  # after tables have been read: scipy is slow to import
    from scipy.sparse.csgraph import connected_components

    links = []
    for rows, values in keys:
        order = np.argsort(values, kind="stable")
        same = values[order][1:] == values[order][:-1]
        links.append((rows[order][:-1][same], rows[order][1:][same]))
    ends, others = (np.concatenate(parts) for parts in zip(*links, strict=True))
    graph = coo_array((np.ones(len(ends), bool), (ends, others)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def either_strand(sequences: Iterable[str]) -> np.ndarray:
    """The sequence or its reverse complement, whichever is first in the alphabet."""
    return np.array([min(sequence, reverse_complement(sequence)) for sequence in sequences])


def share_out(groups: np.ndarray, fractions: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """`train`, `dev` or `test` of each row, for the shares of dev and test: groups in random order to test, then dev,
    as long as they fit; at least one (the smallest) for a share above 0."""
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    chosen = np.full(len(sizes), "train", dtype="<U5")
    for split, fraction in (("test", fractions[1]), ("dev", fractions[0])):
        left = round(fraction * len(groups))
        free = order[chosen[order] == "train"]
        for group in free[sizes[free] <= left]:
            if sizes[group] <= left:
                chosen[group] = split
                left -= sizes[group]
        if fraction and not (chosen == split).any():
            chosen[free[np.argmin(sizes[free])]] = split
    return chosen[groups]


def grouped(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with their column `group`, numbered over all of them; how many there are is logged."""
    rows = pd.concat(tables.values(), ignore_index=True)
    keys = [*_shared_stretches(rows["sequence"]), (np.arange(len(rows)), either_strand(rows["sequence"]))]
    if "family" in rows:
        keys.append((np.arange(len(rows)), rows["family"].to_numpy(str)))
    groups = connected(keys, len(rows))
    sizes = np.bincount(groups)
    text = "%d rows form %d groups (rows that share %d bases on either strand%s); the largest has %d"
    log.info(text, len(rows), len(sizes), K, ", or a name" if "family" in rows else "", sizes.max())
    ends = np.cumsum([len(table) for table in tables.values()])
    parts = np.split(groups, ends[:-1])
    return {name: table.assign(group=part) for (name, table), part in zip(tables.items(), parts, strict=True)}


def _shared_stretches(sequences: Sequence[str]) -> Iterator[Keys]:
    """The canonical code of every 31-mer of A, C, G and T, and the row that it is of."""
    rows, codes, start = [], [], 0
    lengths = np.array([len(sequence) for sequence in sequences])
    batches = np.cumsum(lengths) // _BATCH
    for stop in [*(np.flatnonzero(np.diff(batches)) + 1), len(lengths)]:
        owners = np.repeat(np.arange(start, stop, dtype=np.int32), lengths[start:stop])
        found, known = kmer_codes(dna_of("".join(sequences[start:stop])))
        whole = known & (owners[: len(found)] == owners[K - 1 :])
        rows.append(owners[: len(found)][whole])
        codes.append(found[whole])
        start = stop
    yield np.concatenate(rows), np.concatenate(codes)


def without_leakage(tables: dict[str, pd.DataFrame], policy: str, where: str) -> dict[str, pd.DataFrame]:
    """The tables, no row of train in a group of dev or of a test set, and none of dev in a group of a test set, as
    `policy` wants: UserError (refuse), those rows left out (drop_from_train), or no more than a warning (report)."""
    kept = dict(tables)
    for split, later in (("dev", ("train", "dev")), ("train", ("train",))):
        if split not in tables:
            continue
        others = {name: table for name, table in tables.items() if name not in later}
        shared = np.zeros(len(tables[split]), bool)
        for name, table in others.items():
            found = tables[split]["group"].isin(table["group"]).to_numpy()
            _tell(tables[split][found], table, f"{where}: {name}", split, policy)
            shared |= found
        if policy == "drop_from_train":
            kept[split] = tables[split][~shared]
            text = f"{where}: every row of {split} is of a group that is held out; make other splits"
            require(not shared.all(), text)
    return kept


def _tell(parted: pd.DataFrame, held: pd.DataFrame, where: str, split: str, policy: str) -> None:
    """Count the rows of `held` and those of train or dev (`parted`) that are of one group."""
    if not len(parted):
        return
    found = held[held["group"].isin(parted["group"])]
    first = parted.index[(parted["group"] == found["group"].iloc[0]).to_numpy()][0] + 1
    text = (
        f"{where}: {len(found)} of {len(held)} rows are of a group (rows that share {K} bases, on either strand) that "
        f"{split} has {len(parted)} rows of, as its row {found.index[0] + 1} and row {first} of {split}"
    )
    remedy = f"leave out those of {split} with --leakage drop_from_train, or say --leakage report"
    require(policy != "refuse", f"{text}; {remedy}")
    log.warning("%s%s", text, f"; left out of {split}" if policy == "drop_from_train" else "")


def require_groups(table: pd.DataFrame, parts: int, option: str, where: str) -> None:
    """UserError unless the table has this number of groups, a part of its own for each."""
    groups = table["group"].nunique()
    require(
        groups >= parts,
        f"{where}: {option} needs {parts} groups of rows, and the {len(table)} rows of train form {groups} (rows that "
        f"share {K} bases on either strand stay together); give more families",
    )
