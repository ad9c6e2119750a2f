"""Which windows are train, dev and test, so that no test window overlaps or repeats what was trained on.

chromosome: whole contigs. random: each window by itself, as the DNABERT card did; the leakage is counted. Otherwise:
windows that share a `group` (their gene, their peak), overlap, or have the same sequence (either strand) stay together.

Labelled places on a genome -> labelled windows -> a folder of train, dev and test tables.

Every table has `sequence,label` first, then where the window lies (contig, start, end on the forward strand, 0-based
and half-open; name of its gene or peak; strand of the sequence) and what it is. The folder also holds manifest.json:
every option and count.

Places that are no splice site, and windows that are no peak: what a model must tell from the real ones.

A position is a boundary: it lies between the bases position - 1 and position of the forward strand.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import bioframe
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from megadna import __version__
from megadna.downstream.dataset_options import DatasetOptions
from megadna.downstream.inputs import REGION
from megadna.errors import require
from megadna.files import atomic_folder
from megadna.genome.contigs import nearest
from megadna.genome.records import PLAIN, Genome, as_text, reverse_complement
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

SPLITS = ("train", "dev", "test")
PLACE = ("contig", "start", "end")


def split_windows(
    windows: pd.DataFrame, by: str, fractions: tuple[float, float], contigs: tuple[list[str], list[str]], seed: int
) -> np.ndarray:
    """`train`, `dev` or `test` of each window (columns contig, start, end, group, sequence).

    `fractions` and the named `contigs` are those of dev and test; where contigs are named, they decide.
    """
    dev, test = contigs
    present = windows["contig"].unique().tolist()
    for option, names in (("--dev_contigs", dev), ("--test_contigs", test)):
        for name in names:
            require(name in present, f"{option} {name}: no window lies on it{nearest(name, present)}")
    shared = sorted(set(dev) & set(test))
    require(not shared, f"--dev_contigs and --test_contigs share {', '.join(shared)}; name it once")
    if dev or test:
        require(by == "chromosome", f"--dev_contigs and --test_contigs need --split chromosome, not {by}")
        return np.where(windows["contig"].isin(test), "test", np.where(windows["contig"].isin(dev), "dev", "train"))
    if by == "random":
        groups = np.arange(len(windows))
    else:
        groups = pd.factorize(windows["contig"])[0] if by == "chromosome" else _together(windows)
    found, needed = int(groups.max()) + 1, 1 + sum(fraction > 0 for fraction in fractions)
    require(
        found >= needed, f"--split {by}: {needed} splits, but only {found} of them with windows; try another --split"
    )
    return _share_out(groups, fractions, np.random.default_rng((seed, 1)))


def _share_out(groups: np.ndarray, fractions: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Groups in random order to test, then dev, as long as they fit; at least one each (the smallest) where asked."""
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


def _together(windows: pd.DataFrame) -> np.ndarray:
    """Number of each window's group: joined by group, by overlap, by sequence."""
    overlap = bioframe.cluster(windows, cols=PLACE, min_dist=None, return_cluster_intervals=False)["cluster"].to_numpy()
    links = []
    for keys in (overlap.astype(str), windows["group"].to_numpy(str), _either_strand(windows["sequence"])):
        order = np.argsort(keys, kind="stable")
        same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != "")
        links.append((order[:-1][same], order[1:][same]))
    rows, columns = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(windows), len(windows)))
    return connected_components(graph, directed=False)[1]


def _either_strand(sequences: pd.Series) -> np.ndarray:
    return np.array([min(sequence, reverse_complement(sequence)) for sequence in sequences])


def leakage(windows: pd.DataFrame) -> dict[str, int]:
    """How many dev and test windows (column split) overlap a train window by a base or more, or repeat its sequence."""
    keys, train = _either_strand(windows["sequence"]), (windows["split"] == "train").to_numpy()
    counts = {}
    for split in SPLITS[1:]:
        here = (windows["split"] == split).to_numpy()
        apart = bioframe.setdiff(windows[here], windows[train], cols1=PLACE, cols2=PLACE)
        counts[f"{split} windows that overlap train"] = int(here.sum()) - len(apart)
        counts[f"{split} windows whose sequence is in train"] = int(np.isin(keys[here], keys[train]).sum())
    return counts


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


# What a site's two intron bases read on the forward strand, and where the boundary lies behind their first base.
_MOTIFS = {
    ("donor", "+"): (b"GT", 0),
    ("donor", "-"): (b"AC", 2),
    ("acceptor", "+"): (b"AG", 2),
    ("acceptor", "-"): (b"CT", 0),
}
_CANDIDATES = 50  # stretches of the genome looked at for each positive
_NEAREST = 200
_NONE = np.zeros(0, np.int64)

Sites = dict[tuple[str, str], np.ndarray]
"""Sorted positions of every annotated site by contig and strand."""


def hard_negatives(
    anchors: pd.DataFrame, genes: pd.DataFrame, sites: Sites, genome: Genome, count: int, rng: np.random.Generator
) -> pd.DataFrame:
    """About `count` GT (kind donor) and AG (kind acceptor) each, in the genes of the `anchors` (columns gene, kind) and
    on their strand, that are a site of no isoform; as many in a gene as it has anchors, where it holds that many."""
    found = []
    for kind in ("donor", "acceptor"):
        of_kind = anchors.loc[anchors["kind"] == kind, "gene"].to_numpy()
        wanted = Counter(np.resize(rng.permutation(of_kind), count).tolist())
        for gene in genes[genes["gene"].isin(wanted)].itertuples():
            motif, behind = _MOTIFS[kind, gene.strand]
            letters = genome.bases[gene.contig][gene.start : gene.end] & 0xDF
            here = np.flatnonzero((letters[:-1] == motif[0]) & (letters[1:] == motif[1])) + gene.start + behind
            here = _no_site(here, sites.get((gene.contig, gene.strand), _NONE))
            taken = rng.choice(here, min(len(here), wanted[gene.gene]), replace=False)
            found.append(_rows(gene, taken, kind))
    return pd.concat(found, ignore_index=True)


def random_negatives(genes: pd.DataFrame, sites: Sites, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Up to `count` positions spread evenly over the bodies of the genes that are no annotated site."""
    sizes = (genes["end"] - genes["start"]).to_numpy()
    wanted = Counter(rng.choice(len(genes), count, p=sizes / sizes.sum()).tolist())
    found = []
    for row, gene in enumerate(genes.itertuples()):
        taken = np.unique(rng.integers(gene.start + 1, max(gene.end, gene.start + 2), wanted[row]))
        found.append(_rows(gene, _no_site(taken, sites.get((gene.contig, gene.strand), _NONE)), "random"))
    return pd.concat(found, ignore_index=True).drop_duplicates(["contig", "strand", "position"])


def midpoint_negatives(introns: pd.DataFrame, sites: Sites) -> pd.DataFrame:
    """The middle of every intron, where it is no annotated site."""
    found = introns.assign(position=(introns["start"] + introns["end"]) // 2, kind="midpoint")
    groups = found.groupby(["contig", "strand"], sort=False)
    free = [rows[rows["position"].isin(_no_site(rows["position"].to_numpy(), sites[key]))] for key, rows in groups]
    return pd.concat(free)


def _no_site(positions: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """The positions that are not among the sorted sites."""
    if not len(sites):
        return positions
    nearest = sites[np.searchsorted(sites, positions).clip(max=len(sites) - 1)]
    return positions[nearest != positions]


def _rows(gene: tuple, positions: np.ndarray, kind: str) -> pd.DataFrame:
    shared = {"contig": gene.contig, "strand": gene.strand, "gene": gene.gene, "kind": kind}  # type: ignore[attr-defined]
    return pd.DataFrame({**shared, "position": positions})


def matched_windows(
    positives: pd.DataFrame, taken: pd.DataFrame, genome: Genome, rng: np.random.Generator
) -> pd.DataFrame:
    """For each positive window (contig, start, end, strand) one of the same contig, length and strand, nearest to it in
    GC and soft-masked share, that overlaps neither an interval of `taken` (contig, start, end) nor another negative.
    Columns gc and repeats: the differences in both shares."""
    length = int(positives["end"].iloc[0] - positives["start"].iloc[0])
    found = []
    for contig, rows in positives.groupby("contig"):
        starts = np.arange(rng.integers(length), len(genome.bases[contig]) - length + 1, length)
        grid = pd.DataFrame({"contig": contig, "start": starts, "end": starts + length})
        free = bioframe.setdiff(grid, taken[taken["contig"] == contig], cols1=PLACE, cols2=PLACE)["start"].to_numpy()
        free = rng.permutation(free)[: _CANDIDATES * len(rows)]
        free = free[PLAIN[genome.windows(contig, free, length)].all(axis=1)]
        wanted, offered = (_traits(genome, contig, at, length) for at in (rows["start"].to_numpy(), free))
        for row, offer in _nearest_free(wanted, offered, rng):
            found.append((rows.index[row], free[offer], *abs(wanted[row] - offered[offer])))
    table = pd.DataFrame(found, columns=["positive", "start", "gc", "repeats"]).set_index("positive")
    return positives.drop(columns="start").join(table, how="inner").reset_index(drop=True)


def _traits(genome: Genome, contig: str, starts: np.ndarray, length: int) -> np.ndarray:
    """GC and soft-masked share of each window [N, 2]."""
    windows = genome.windows(contig, starts, length)
    upper = windows & 0xDF
    return np.stack([((upper == 0x43) | (upper == 0x47)).mean(axis=1), (windows > 0x60).mean(axis=1)], axis=1)


def _nearest_free(wanted: np.ndarray, offered: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(wanted row, offered row), each offer given once, in random order to the nearest."""
    if not len(offered):
        return
    near = KDTree(offered).query(wanted, k=np.arange(1, min(_NEAREST, len(offered)) + 1))[1]
    used = np.zeros(len(offered), bool)
    for row in rng.permutation(len(wanted)):
        left = near[row][~used[near[row]]]
        if len(left):
            used[left[0]] = True
            yield int(row), int(left[0])


def shuffle_dinucleotides(sequence: str, rng: np.random.Generator) -> str:
    """A random sequence with the same first and last base and exactly the same counts of every pair of neighbours: a
    random Eulerian path through the pairs (Altschul and Erickson 1985, doi:10.1093/oxfordjournals.molbev.a040370)."""
    edges: dict[str, list[str]] = {}
    for left, right in pairwise(sequence):
        edges.setdefault(left, []).append(right)
    last = sequence[-1]
    while True:  # a last edge out of every base such that all lead to the last base
        exits = {base: after[rng.integers(len(after))] for base, after in edges.items() if base != last}
        if all(_leads_to(base, last, exits) for base in exits):
            break
    for base, after in edges.items():  # the rest in random order, taken from the end
        if base in exits:
            after.remove(exits[base])
        first = [exits[base]] if base in exits else []
        edges[base] = first + [after[at] for at in rng.permutation(len(after))]
    path = [sequence[0]]
    while len(path) < len(sequence):
        path.append(edges[path[-1]].pop())
    return "".join(path)


def _leads_to(base: str, goal: str, exits: dict[str, str]) -> bool:
    for _ in exits:
        if base == goal:
            break
        base = exits[base]
    return base == goal
