"""Places that are no splice site, and windows that are no peak: what a model must tell from the real ones.

A position is a boundary: it lies between the bases position - 1 and position of the forward strand.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import bioframe
import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from megadna.downstream.genome import PLAIN, Genome
from megadna.downstream.splits import PLACE

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
            letters = genome.letters[gene.contig][gene.start : gene.end] & 0xDF
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
        starts = np.arange(rng.integers(length), len(genome.letters[contig]) - length + 1, length)
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
