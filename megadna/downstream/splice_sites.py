"""`megadna splice-sites`: genome and annotation -> windows of donors, acceptors and positions that are neither.

A site is between the bases L/2 - 1 and L/2 of its window, read along the transcript: a donor's GT is at L/2, an
acceptor's AG ends at L/2 - 1. A `position` is a boundary too: between the bases position - 1 and position of the
forward strand.
"""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from megadna.downstream.dataset_options import SpliceOptions
from megadna.downstream.datasets import cut, finish
from megadna.errors import require
from megadna.genome.annotation import of_biotypes, on_genome, read_annotation
from megadna.genome.records import Genome, read_genome
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

LABELS = {"donor": 0, "acceptor": 1, "negative": 2}
_ENOUGH_INTRONS = 50
_SPARE = 1.25  # negatives drawn for each one needed: some extend beyond a contig's end or contain an N
_SITE = ["contig", "strand", "position"]
# A site's two intron bases on the forward strand, and how many bases the boundary is after the first of them.
_MOTIFS = {
    ("donor", "+"): (b"GT", 0),
    ("donor", "-"): (b"AC", 2),
    ("acceptor", "+"): (b"AG", 2),
    ("acceptor", "-"): (b"CT", 0),
}
_NONE = np.zeros(0, np.int64)

Sites = dict[tuple[str, str], np.ndarray]
"""Sorted positions of every annotated site by contig and strand."""


def splice_sites(**options: Any) -> pd.DataFrame:
    """The dataset of these SpliceOptions as one table: sequence, label, contig, start, end, name (the gene's), strand,
    kind, position, canonical, split; the manifest in `attrs`. Also written if `output` names a folder."""
    chosen = SpliceOptions(**options)
    with Progress(f"reading {chosen.annotation}"):
        transcripts, exons = read_annotation(chosen.annotation)
    genome = read_genome(chosen.genome)
    transcripts = on_genome(transcripts, genome, chosen.annotation, chosen.aliases)
    taken = of_biotypes(transcripts, chosen.biotypes, chosen.annotation)
    introns = introns_of(exons, taken, chosen.min_intron)
    require(
        len(introns) > 0,
        f"{chosen.annotation}: no intron of {chosen.min_intron} bases or more among the chosen transcripts",
    )
    counts = _intron_counts(introns, genome, chosen)
    sites = sites_of(introns)
    counts |= {"transcripts": len(taken), **sites["kind"].value_counts().to_dict()}
    both = sites.duplicated(_SITE, keep=False)
    counts["donor and acceptor at one position, left out"] = int(both.sum())
    positives, counts["positives left out"] = _windows(sites[~both], genome, chosen)
    every = sites_of(introns_of(exons, transcripts, 1)).groupby(["contig", "strand"])["position"]
    forbidden = {key: np.unique(positions) for key, positions in every}
    positives = positives.sample(frac=1, random_state=np.random.default_rng((chosen.seed, 3)))
    count = min(chosen.per_class, *(int((positives["kind"] == kind).sum()) for kind in ("donor", "acceptor")))
    left_out = counts["positives left out"]
    require(count > 0, f"{chosen.genome}: no donor and acceptor with a window of {chosen.length} bases: {left_out}")
    positives = positives.groupby("kind").head(count)
    with Progress("drawing negatives"):
        drawn = _negatives(positives, taken, introns, forbidden, genome, chosen)
    negatives, counts["negatives left out"] = _windows(drawn, genome, chosen)
    examples = _balanced(positives, negatives, chosen).rename(columns={"gene": "name"})
    return finish(examples, chosen, ["position", "canonical"], {**counts, "labels": LABELS})


def introns_of(exons: pd.DataFrame, transcripts: pd.DataFrame, min_length: int) -> pd.DataFrame:
    """Unique introns of these transcripts: contig, strand, start, end (0-based, half-open), gene (first by name)."""
    exons = exons[exons["transcript"].isin(transcripts.index)]
    before = exons.groupby("transcript")["end"].cummax().shift(fill_value=0)
    inner = exons.assign(end=exons["start"], start=before)[exons["transcript"].eq(exons["transcript"].shift())]
    inner = inner[inner["end"] - inner["start"] >= min_length]
    introns = inner.join(transcripts[["contig", "strand", "gene"]], on="transcript").drop(columns="transcript")
    key = ["contig", "strand", "start", "end"]
    return introns.sort_values([*key, "gene"]).drop_duplicates(key, ignore_index=True)


def _ends_of(introns: pd.DataFrame) -> list[pd.DataFrame]:
    """[donors, acceptors] of the introns, row by row: contig, strand, gene, position (a boundary), kind."""
    plus = introns["strand"] == "+"
    first, last = introns["start"].where(plus, introns["end"]), introns["end"].where(plus, introns["start"])
    shared = introns[["contig", "strand", "gene"]]
    return [shared.assign(position=first, kind="donor"), shared.assign(position=last, kind="acceptor")]


def sites_of(introns: pd.DataFrame) -> pd.DataFrame:
    """Donors and acceptors, each position once: contig, strand, gene, position, kind."""
    return pd.concat(_ends_of(introns)).drop_duplicates([*_SITE, "kind"], ignore_index=True)


def _motifs(sites: pd.DataFrame, genome: Genome) -> pd.Series:
    """The two intron bases next to each site, read along the transcript; "" if one of them is not A, C, G or T."""
    minus = sites["strand"] == "-"
    before = (sites["kind"] == "donor") == minus  # the intron is before the boundary on the forward strand
    pairs, _ = cut(sites.assign(start=sites["position"] - 2 * before, reverse=minus), genome, 2)
    return pairs["sequence"].reindex(sites.index, fill_value="")


def _intron_counts(introns: pd.DataFrame, genome: Genome, options: SpliceOptions) -> dict[str, Any]:
    """Introns by motif; UserError if too few of them are GT-AG."""
    donors, acceptors = (_motifs(ends, genome) for ends in _ends_of(introns))
    motifs = {str(pair): int(count) for pair, count in (donors + "-" + acceptors).value_counts().items()}
    share = motifs.get("GT-AG", 0) / len(introns)
    log.info("%d introns, GT-AG share %.3f, GC-AG %.3f", len(introns), share, motifs.get("GC-AG", 0) / len(introns))
    require(
        len(introns) < _ENOUGH_INTRONS or share >= options.min_gt_ag,
        f"{options.annotation}: only {share:.3f} of {len(introns):,} introns are GT-AG: its strands are wrong, or it "
        f"belongs to another genome build than {options.genome}; --min_gt_ag 0 accepts it",
    )
    return {"introns": len(introns), "GT-AG share": share, "motifs": motifs}


def _windows(sites: pd.DataFrame, genome: Genome, options: SpliceOptions) -> tuple[pd.DataFrame, dict[str, int]]:
    """The sites' windows with sequence and canonical; and how many were left out."""
    start, reverse = sites["position"] - options.length // 2, sites["strand"] == "-"
    canonical = _motifs(sites, genome) == sites["kind"].map({"donor": "GT", "acceptor": "AG"})
    return cut(sites.assign(start=start, reverse=reverse, canonical=canonical), genome, options.length)


def _negatives(
    anchors: pd.DataFrame,
    transcripts: pd.DataFrame,
    introns: pd.DataFrame,
    sites: Sites,
    genome: Genome,
    options: SpliceOptions,
) -> pd.DataFrame:
    """Positions that are not a site, with some to spare: contig, strand, gene, position, kind."""
    rng = np.random.default_rng((options.seed, 4))
    wanted = int(_SPARE * len(anchors) / 2) + 50
    by_gene = transcripts.groupby(["contig", "strand", "gene"], as_index=False)
    genes = by_gene.agg(start=("start", "min"), end=("end", "max"))
    if options.negatives == "hard":
        found = _hard_negatives(anchors, genes, sites, genome, wanted // 2, rng)
    elif options.negatives == "random":
        found = _random_negatives(genes, sites, wanted, rng)
    else:
        found = _midpoint_negatives(introns, sites)
    return found.sample(frac=1, random_state=rng, ignore_index=True)


def _hard_negatives(
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


def _random_negatives(genes: pd.DataFrame, sites: Sites, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Up to `count` positions, spread evenly over the bodies of the genes, that are not an annotated site."""
    sizes = (genes["end"] - genes["start"]).to_numpy()
    wanted = Counter(rng.choice(len(genes), count, p=sizes / sizes.sum()).tolist())
    found = []
    for row, gene in enumerate(genes.itertuples()):
        taken = np.unique(rng.integers(gene.start + 1, max(gene.end, gene.start + 2), wanted[row]))
        found.append(_rows(gene, _no_site(taken, sites.get((gene.contig, gene.strand), _NONE)), "random"))
    return pd.concat(found, ignore_index=True).drop_duplicates(["contig", "strand", "position"])


def _midpoint_negatives(introns: pd.DataFrame, sites: Sites) -> pd.DataFrame:
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


def _balanced(positives: pd.DataFrame, negatives: pd.DataFrame, options: SpliceOptions) -> pd.DataFrame:
    """Equal numbers of donors, acceptors and negatives, with their labels; of hard negatives as many GT as AG."""
    order = np.argsort(negatives.groupby("kind").cumcount().to_numpy(), kind="stable")
    count = min(len(positives) // 2, len(negatives))
    require(count > 0, f"{options.annotation}: no {options.negatives} negative is left; try other --negatives")
    if count < options.per_class:
        log.warning("%d windows per class, not %d: the smallest class has no more", count, options.per_class)
    positives = positives.groupby("kind").head(count)
    positives = positives.assign(label=positives["kind"].map(LABELS))
    negatives = negatives.iloc[order].head(count).assign(label=LABELS["negative"], canonical=False)
    if options.negatives == "hard":
        negatives["kind"] = "hard_" + negatives["kind"]
    return pd.concat([positives, negatives], ignore_index=True)
