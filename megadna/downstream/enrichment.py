"""Is an annotation's feature more frequent in a cluster of windows than elsewhere?

In:  a GFF3, GTF or BED file; windows in the order of the genome with their clusters.
Out: a table: cluster, feature, windows, with_feature, in_cluster, expected, odds_ratio, p, p_adjusted.

A window has a feature if the feature covers at least half of it, or if the middle of one such interval is in it. (So
every feature is in a window, however short, and a long one is in those that it fills.) Strands are not looked at.
odds_ratio: a d / (b c) of the 2 x 2 table of windows (a: in the cluster with the feature, b: in the cluster without it,
c: elsewhere with it, d: elsewhere without it), with 0.5 added to each if one is zero (Haldane 1956, Anscombe 1956).
p: neighbouring windows are alike, in cluster and in feature, so that a test which takes windows for independent
(Fisher's, shuffled windows) finds far too much. The labels of all windows are therefore rotated along the genome, its
contigs joined end to end to a ring, by every number of windows from 1 to N - 1: runs of labels keep their lengths. p is
two-sided: twice the smaller of the shares of the N placements (the true one included) with at least, or with at most,
the true a; at most 1. p_adjusted: Benjamini-Hochberg over all rows. The smallest possible p is 2 / N.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from megadna.errors import UserError, require
from megadna.genome.annotation import attribute, read_features
from megadna.genome.bed import bases_before, merged, read_bed
from megadna.genome.contigs import match_contigs, renamed
from megadna.log import get_logger
from megadna.progress import tracked

# Shapes: N windows, I intervals.
log = get_logger(__name__)

COLUMNS = ("cluster", "feature", "windows", "with_feature", "in_cluster", "expected", "odds_ratio", "p", "p_adjusted")
_BIOTYPES = ("gene_biotype", "gene_type", "biotype")
_MOST_NAMES = 50
_BED = (".bed", ".narrowpeak", ".broadpeak", ".bedgraph")


def read_track(path: Path, lengths: dict[str, int]) -> pd.DataFrame:
    """contig (the genome's name), start, end, feature of every interval that is on the genome; the log counts others.

    feature: the type of a GFF3 or GTF line, and for genes with a biotype also `BIOTYPE gene`; of a BED file its names
    (column 4) if there are at most 50, else the file's name. UserError if no contig is the genome's, or if an interval
    passes the end of one.
    """
    is_bed = path.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(_BED)
    table = _bed_features(path) if is_bed else _gff_features(path)
    names = match_contigs(dict.fromkeys(table["contig"]), lengths)
    known = table["contig"].isin(names.keys())
    if not known.any():
        theirs, ours = ", ".join(table["contig"].unique()[:5]), ", ".join([*lengths][:5])
        raise UserError(f"{path}: its contigs ({theirs}) are none of the genome's ({ours}); give the matching file")
    if matched := renamed(names):
        log.info("contig names matched: %s", matched)
    if not known.all():
        missing = ", ".join(table["contig"][~known].unique()[:20])
        log.warning("%s: %d of %d features left out: the genome lacks %s", path, (~known).sum(), len(table), missing)
    table = table[known].assign(contig=table.loc[known, "contig"].map(names))
    return _inside(path, table, lengths)[["contig", "start", "end", "feature"]]


def _inside(path: Path, table: pd.DataFrame, lengths: dict[str, int]) -> pd.DataFrame:
    """The rows, those across the origin of a contig that the GFF3 file calls circular in two parts."""
    size = table["contig"].map(lengths)
    past = table["end"] > size
    if not past.any():
        return table
    rings = set(table["contig"][table["is_ring"]])
    too_long = table["is_ring"] | (table["start"] >= size) | (table["end"] > 2 * size)
    wrong = past & (~table["contig"].isin(rings) | too_long)
    if wrong.any():
        row = table[wrong].iloc[0]
        raise UserError(
            f"{path}: {row['contig']} ends at {lengths[row['contig']]:,}, a {row['feature']} of it at {row['end']:,}; "
            "does the file belong to another genome build?"
        )
    beyond = table[past].assign(start=0, end=table["end"] - size)
    return pd.concat([table.assign(end=table["end"].where(~past, size)), beyond], ignore_index=True)


def _bed_features(path: Path) -> pd.DataFrame:
    rows = [(one.contig, one.start, one.end, one.name) for one in read_bed(path)]
    table = pd.DataFrame(rows, columns=["contig", "start", "end", "feature"]).assign(is_ring=False)
    stem = path.name.split(".")[0]
    names = table["feature"].unique()
    if len(names) > _MOST_NAMES:
        log.info("%s: %d names, taken together as the feature %s", path, len(names), stem)
        return table.assign(feature=stem)
    return table.assign(feature=table["feature"].where(table["feature"] != "", stem))


def _gff_features(path: Path) -> pd.DataFrame:
    table, is_gff3 = read_features(path)
    genes = table[table["feature"].str.endswith("gene")]
    biotypes = attribute(genes["attributes"], is_gff3, *_BIOTYPES)
    by_biotype = genes[biotypes != ""].assign(feature=biotypes[biotypes != ""] + " gene")
    found = pd.concat([table, by_biotype], ignore_index=True)
    return found.assign(is_ring=found["attributes"].str.contains("Is_circular=true", regex=False))


def own_parts(windows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) [N] of the part of each window that is its own: the border between two that overlap is the middle
    of their overlap. windows: contig, start, end, in the order of the genome."""
    starts, ends = windows["start"].to_numpy().copy(), windows["end"].to_numpy().copy()
    contigs = windows["contig"].to_numpy()
    meet = (contigs[:-1] == contigs[1:]) & (starts[1:] < ends[:-1])
    border = (starts[1:] + ends[:-1]) // 2
    starts[1:][meet], ends[:-1][meet] = border[meet], border[meet]
    return starts, ends


def windows_with(windows: pd.DataFrame, intervals: pd.DataFrame) -> np.ndarray:
    """bool [N]: which windows have the feature of these intervals (contig, start, end)."""
    starts, ends = own_parts(windows)
    found = np.zeros(len(windows), bool)
    of_contig = dict(iter(intervals.groupby("contig", sort=False)))
    contigs = windows["contig"].to_numpy()
    edges = np.flatnonzero(np.append(True, contigs[1:] != contigs[:-1]))
    for first, last in zip(edges, np.append(edges[1:], len(windows)), strict=True):
        if contigs[first] not in of_contig:
            continue
        own = of_contig[contigs[first]]
        left, right = own["start"].to_numpy(), own["end"].to_numpy()
        joined = np.array(merged(zip(left.tolist(), right.tolist(), strict=True)))
        one, other = starts[first:last], ends[first:last]
        covered = bases_before(joined[:, 0], joined[:, 1], other) - bases_before(joined[:, 0], joined[:, 1], one)
        found[first:last] = 2 * covered >= other - one
        middle_I = (left + right) // 2
        at_I = np.searchsorted(one, middle_I, "right") - 1
        inside = (at_I >= 0) & (middle_I < other[at_I])
        found[first + at_I[inside]] = True
    return found


def enrichment(windows: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """The table above, most significant first. windows: contig, start, end, cluster, in the order of the genome;
    features: contig, start, end, feature."""
    labels = windows["cluster"].to_numpy()
    clusters = np.unique(labels)
    require(len(clusters) > 1, "all windows are in one cluster: nothing to compare; take more --clusters")
    rows, left_out = [], []
    groups = features.groupby("feature", sort=True)
    for feature, intervals in tracked(groups, "testing features", groups.ngroups, "features"):
        has_N = windows_with(windows, intervals)
        if has_N.all() or not has_N.any():
            left_out.append(str(feature))
            continue
        spectrum = np.fft.rfft(has_N)
        for cluster in clusters.tolist():
            is_in_N = labels == cluster
            shared = np.conj(np.fft.rfft(is_in_N)) * spectrum  # of all rotations: a circular cross-correlation
            counts_N = np.rint(np.fft.irfft(shared, len(labels))).astype(np.int64)
            rows.append((cluster, str(feature), *_test(counts_N, int(is_in_N.sum()), int(has_N.sum()))))
    if left_out:
        log.info("features not tested, as every window has them or none: %s", ", ".join(left_out))
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    adjusted = false_discovery_control(table["p"]) if len(table) else table["p"]
    return table.assign(p_adjusted=adjusted).sort_values(["p", "cluster", "feature"], ignore_index=True)


def _test(counts_N: np.ndarray, in_cluster: int, with_feature: int) -> tuple[int, int, int, float, float, float]:
    """windows, with_feature, in_cluster, expected, odds_ratio, p; counts_N: windows of the cluster with the feature,
    by rotation, the first of 0."""
    num_windows, true = len(counts_N), int(counts_N[0])
    cells = np.array([true, in_cluster - true, with_feature - true, num_windows - in_cluster - with_feature + true])
    a, b, c, d = (cells + 0.5 * (cells == 0).any()).tolist()
    tail = min(int((counts_N >= true).sum()), int((counts_N <= true).sum())) / num_windows
    expected = in_cluster * with_feature / num_windows
    return in_cluster, with_feature, true, expected, a * d / (b * c), min(1.0, 2 * tail)
