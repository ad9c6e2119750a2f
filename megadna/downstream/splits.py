"""Which windows are train, dev and test, so that no test window overlaps or repeats what was trained on.

chromosome: whole contigs. random: each window by itself, as the DNABERT card did; the leakage is counted. Otherwise:
windows that share a `group` (their gene, their peak), overlap, or have the same sequence (either strand) stay together.
"""

import bioframe
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from megadna.downstream.genome import reverse_complement
from megadna.errors import require
from megadna.genome.contig_names import nearest

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
