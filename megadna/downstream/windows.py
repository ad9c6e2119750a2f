"""`megadna windows`: peaks, transcription start sites or bigWig values -> windows of one length with labels.

Peaks (BED: their middle; narrowPeak: the summit) and start sites are positives (label 1), with one negative (label 0)
each. With a bigWig file the label is its mean over the window, at the peaks or start sites, or everywhere.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from megadna.downstream.dataset_options import WindowOptions
from megadna.downstream.datasets import cut, finish, overlap
from megadna.errors import require
from megadna.genome.annotation import of_biotypes, on_genome, read_annotation
from megadna.genome.bed import BedLine, read_bed
from megadna.genome.bigwig import with_values
from megadna.genome.records import PLAIN, Genome, read_genome
from megadna.log import get_logger
from megadna.progress import Progress, tracked

log = get_logger(__name__)
_CANDIDATES = 50  # stretches of the genome looked at for each positive
_NEAREST = 200


def windows(**keys: Any) -> pd.DataFrame:
    """The dataset of these WindowOptions as one table: sequence, label, contig, start, end, name, strand, kind, split;
    the manifest in `attrs`. Also written if `output` names a folder."""
    options = WindowOptions(**keys)
    rng = np.random.default_rng(options.seed)
    genome = read_genome(options.genome)
    anchors = _tiles if options.positives is None and options.annotation is None else _anchors
    taken = anchors(options, genome)
    minus = taken["strand"] == "-"
    before = np.where(minus, options.length - 1 - options.before, options.before)
    chosen = taken.assign(start=taken["anchor"] - before, reverse=minus)
    chosen = chosen.drop_duplicates(["contig", "start", "strand"], ignore_index=True)
    counts: dict[str, Any] = {"candidates": len(taken)}
    repeated = len(taken) - len(chosen)
    if 0 < options.count < len(chosen):
        chosen = chosen.sample(options.count, random_state=rng)
    examples, left_out = cut(chosen, genome, options.length)
    left_out = {"same position as another": repeated, **left_out}
    counts["left out"] = left_out
    require(len(examples) > 0, f"no window of {options.length} bases is left: {left_out}")
    if options.bigwig is not None:
        examples, found = with_values(examples, options.bigwig, genome, options.aliases, options.uncovered)
        counts |= found
    else:
        intervals = pd.concat([taken, chosen.assign(end=chosen["start"] + options.length)])
        negatives = _negatives(examples, intervals, genome, options.negatives, rng)
        traits = {trait: negatives[trait].mean() for trait in ("gc", "repeats") if trait in negatives}
        counts |= {"negatives": len(negatives), "mean difference to the matched positive": traits}
        examples = pd.concat([examples.assign(label=1), negatives.assign(label=0)], ignore_index=True)
    for what in ("left out", "left out for the bigWig"):
        if any(counts.get(what, {}).values()):
            log.info("windows %s: %s", what, counts[what])
    return finish(examples, options, [], counts)


def _anchors(options: WindowOptions, genome: Genome) -> pd.DataFrame:
    """contig, start, end, strand, anchor (the base that the window is placed by), kind and name of each positive: a
    peak has its BED name (column 4) if no other has it, else its coordinates."""
    if options.annotation is not None:
        with Progress(f"reading {options.annotation}"):
            found = of_biotypes(read_annotation(options.annotation)[0], options.biotypes, options.annotation)
        found = on_genome(found, genome, options.annotation, options.aliases)
        anchor = found["start"].where(found["strand"] == "+", found["end"] - 1)
        # start and end are those of the site itself, so that negatives may be in the gene's body
        return found.assign(anchor=anchor, start=anchor, end=anchor + 1, kind="tss", name=found["gene"])
    assert options.positives is not None
    summits = ".narrowPeak" in options.positives.name
    lines = list(read_bed(options.positives, stranded=True, summits=summits))
    found = pd.DataFrame(lines, columns=BedLine._fields).drop(columns=["score"])
    found = on_genome(found, genome, options.positives, options.aliases)
    anchor = (found["start"] + found["end"] - (found["strand"] == "-")) // 2
    if summits:  # -1: the caller of the peaks gave none
        anchor = anchor.where(found["summit"] < 0, found["start"] + found["summit"])
    peak = found["contig"] + ":" + found["start"].astype(str) + "-" + found["end"].astype(str)
    name = found["name"].mask(found["name"].isin(["", "."]) | found["name"].duplicated(keep=False), peak)
    strand = found["strand"].where(found["strand"] == "-", "+")
    return found.assign(anchor=anchor, strand=strand, kind="peak", name=name).drop(columns=["line", "summit"])


def _tiles(options: WindowOptions, genome: Genome) -> pd.DataFrame:
    """Adjacent windows over every contig, in the form of `_anchors`."""
    starts = {name: range(0, size - options.length + 1, options.length) for name, size in genome.lengths.items()}
    found = pd.DataFrame([(name, start) for name in starts for start in starts[name]], columns=["contig", "start"])
    return found.assign(strand="+", anchor=found["start"] + options.before, kind="signal", name="")


def _negatives(
    positives: pd.DataFrame, taken: pd.DataFrame, genome: Genome, kind: str, rng: np.random.Generator
) -> pd.DataFrame:
    """One for each positive, as far as they exist."""
    if kind == "none":
        return positives[:0]
    if kind == "shuffled":
        each = tracked(positives["sequence"], "shuffling", len(positives), "windows")
        shuffled = [shuffle_dinucleotides(sequence, rng) for sequence in each]
        return positives.assign(sequence=shuffled, kind=kind)
    with Progress("matching negatives"):
        matched = _matched_windows(positives, taken, genome, rng)
    if len(matched) < len(positives):
        log.warning(
            "%d of %d positives: no negative is left on their contig", len(positives) - len(matched), len(positives)
        )
    return cut(matched, genome, len(positives["sequence"].iloc[0]))[0].assign(kind=kind)


def _matched_windows(
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
        free = rng.permutation(starts[~overlap(grid, taken[taken["contig"] == contig])])[: _CANDIDATES * len(rows)]
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
