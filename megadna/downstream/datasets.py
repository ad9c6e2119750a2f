"""Labelled positions on a genome -> labelled windows -> a folder of train, dev and test tables.

Every table has `sequence,label` first, then the window's coordinates (contig, start, end on the forward strand, 0-based
and half-open; name of its gene or peak; strand of the sequence) and its kind. The folder also has manifest.json: every
option and count.

Splits. chromosome: whole contigs. random: each window independently, as the DNABERT card did; the leakage is counted.
Otherwise windows of one name (their gene, their peak), overlapping windows and windows of the same sequence (on either
strand) stay together: no test window overlaps or repeats what was trained on.

Negatives. Positions that are not a splice site, and windows that are not a peak, as similar as possible to the real
ones. A position is a boundary: it is between the bases position - 1 and position of the forward strand.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from megadna import __version__
from megadna.downstream.inputs import REGION
from megadna.downstream.options import SpliceOptions, WindowOptions
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
    return _share_out(groups, fractions, np.random.default_rng((options.seed, 1)))


def _share_out(groups: np.ndarray, fractions: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Groups in random order to test, then dev, as long as they fit; at least one (the smallest) for a share above
    0."""
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
    """Number of each window's group: joined by name, by overlap, by sequence."""
    links = []
    for keys in (_clusters(windows).astype(str), windows["name"].to_numpy(str), _either_strand(windows["sequence"])):
        order = np.argsort(keys, kind="stable")
        same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != "")
        links.append((order[:-1][same], order[1:][same]))
    rows, columns = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(windows), len(windows)))
    return connected_components(graph, directed=False)[1]


def _clusters(windows: pd.DataFrame) -> np.ndarray:
    """Number of each window's cluster of windows that overlap, directly or through others."""
    ordered = windows.reset_index(drop=True).sort_values(["contig", "start"])
    reach = ordered.groupby("contig")["end"].cummax().shift()
    begins = (ordered["contig"] != ordered["contig"].shift()) | (ordered["start"] >= reach)
    return begins.cumsum().sort_index().to_numpy()


def _overlap(intervals: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """Whether each interval (contig, start, end) shares a base with one of the others."""
    contigs, starts, ends = (intervals[key].to_numpy() for key in ("contig", "start", "end"))
    found = np.zeros(len(intervals), bool)
    for contig, rows in others.sort_values("start").groupby("contig"):
        here = contigs == contig
        begun = np.searchsorted(rows["start"], ends[here])  # others that begin before the interval's end
        found[here] = np.append(-1, np.maximum.accumulate(rows["end"]))[begun] > starts[here]
    return found


def _either_strand(sequences: pd.Series) -> np.ndarray:
    return np.array([min(sequence, reverse_complement(sequence)) for sequence in sequences])


def _leakage(windows: pd.DataFrame) -> dict[str, int]:
    """How many dev and test windows (column split) overlap a train window by a base or more, or repeat its sequence."""
    keys, train = _either_strand(windows["sequence"]), (windows["split"] == "train").to_numpy()
    counts = {}
    for split in SPLITS[1:]:
        here = (windows["split"] == split).to_numpy()
        counts[f"{split} windows that overlap train"] = int(_overlap(windows[here], windows[train]).sum())
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
    log.info("wrote %s", output)


# A site's two intron bases on the forward strand, and how many bases the boundary is after the first of them.
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
    on their strand, that are a site of no isoform; as many per gene as it has anchors, if it has that many."""
    found = []
    for kind in ("donor", "acceptor"):
        of_kind = anchors.loc[anchors["kind"] == kind, "gene"].to_numpy()
        wanted = Counter(np.resize(rng.permutation(of_kind), count).tolist())
        for gene in genes[genes["gene"].isin(wanted)].itertuples():
            motif, boundary = _MOTIFS[kind, gene.strand]
            bases = genome.bases[gene.contig][gene.start : gene.end] & 0xDF  # upper case
            here = np.flatnonzero((bases[:-1] == motif[0]) & (bases[1:] == motif[1])) + gene.start + boundary
            here = _no_site(here, sites.get((gene.contig, gene.strand), _NONE))
            taken = rng.choice(here, min(len(here), wanted[gene.gene]), replace=False)
            found.append(_rows(gene, taken, kind))
    return pd.concat(found, ignore_index=True)


def random_negatives(genes: pd.DataFrame, sites: Sites, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Up to `count` positions, spread evenly over the bodies of the genes, that are not an annotated site."""
    sizes = (genes["end"] - genes["start"]).to_numpy()
    wanted = Counter(rng.choice(len(genes), count, p=sizes / sizes.sum()).tolist())
    found = []
    for row, gene in enumerate(genes.itertuples()):
        taken = np.unique(rng.integers(gene.start + 1, max(gene.end, gene.start + 2), wanted[row]))
        found.append(_rows(gene, _no_site(taken, sites.get((gene.contig, gene.strand), _NONE)), "random"))
    return pd.concat(found, ignore_index=True).drop_duplicates(["contig", "strand", "position"])


def midpoint_negatives(introns: pd.DataFrame, sites: Sites) -> pd.DataFrame:
    """The middle of every intron, if it is not an annotated site."""
    found = introns.assign(position=(introns["start"] + introns["end"]) // 2, kind="midpoint")
    groups = found.groupby(["contig", "strand"], sort=False)
    free = [rows[rows["position"].isin(_no_site(rows["position"].to_numpy(), sites[key]))] for key, rows in groups]
    return pd.concat(free)


def _no_site(positions: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """The positions that are not among the sorted sites."""
    if not len(sites):
        return positions
    next_site = sites[np.searchsorted(sites, positions).clip(max=len(sites) - 1)]
    return positions[next_site != positions]


def _rows(gene: tuple, positions: np.ndarray, kind: str) -> pd.DataFrame:
    shared = {"contig": gene.contig, "strand": gene.strand, "gene": gene.gene, "kind": kind}  # type: ignore[attr-defined]
    return pd.DataFrame({**shared, "position": positions})


def matched_windows(
    positives: pd.DataFrame, taken: pd.DataFrame, genome: Genome, rng: np.random.Generator
) -> pd.DataFrame:
    """For each positive window (contig, start, end, strand) one of the same contig, length and strand, nearest to it in
    GC and soft-masked share, that overlaps neither an interval of `taken` (contig, start, end) nor another negative.
    The columns gc and repeats are the differences in both shares."""
    length = int(positives["end"].iloc[0] - positives["start"].iloc[0])
    found = []
    for contig, rows in positives.groupby("contig"):
        starts = np.arange(rng.integers(length), len(genome.bases[contig]) - length + 1, length)
        grid = pd.DataFrame({"contig": contig, "start": starts, "end": starts + length})
        free = rng.permutation(starts[~_overlap(grid, taken[taken["contig"] == contig])])[: _CANDIDATES * len(rows)]
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
    """(wanted row, offered row): in random order each gets the nearest offer that is still free."""
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
