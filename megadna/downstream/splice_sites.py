"""`megadna splice-sites`: genome and annotation -> windows of donors, acceptors and places that are neither.

Boundaries: the site lies between the bases L/2 - 1 and L/2 of its window, read along the transcript, so a donor's GT
is at L/2 and an acceptor's AG ends at L/2 - 1. `centre: bionemo` puts the exon's edge base at L/2 - 1 instead, as
BioNeMo's classifier reads it (token 255 of 512): for a donor the same window, for an acceptor one base further.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from megadna.downstream.annotation import of_biotypes, read_annotation
from megadna.downstream.contig_names import on_genome
from megadna.downstream.examples import DatasetOptions, cut, finish
from megadna.downstream.genome import Genome, read_genome
from megadna.downstream.negatives import Sites, hard_negatives, midpoint_negatives, random_negatives
from megadna.errors import require, require_share
from megadna.log import get_logger

log = get_logger(__name__)

LABELS = {"donor": 0, "acceptor": 1, "negative": 2}
_ENOUGH_INTRONS = 50
_SPARE = 1.25  # negatives drawn for each one needed: some pass a contig's end or hold an N
_SITE = ["contig", "strand", "position"]


@dataclass(frozen=True, kw_only=True)
class SpliceOptions(DatasetOptions):
    """What `megadna splice-sites` writes."""

    annotation: Path
    """GFF3 or GTF of the genome (gz too)."""
    biotypes: str = "protein_coding"
    """Biotypes of genes to take, comma-separated, or `all`."""
    min_intron: int = 20
    """Shortest intron in bases; shorter gaps are frameshifts and artefacts."""
    min_gt_ag: float = 0.8
    """Share of GT-AG introns under which 50 or more of them are an error; 0 accepts all."""
    negatives: Literal["hard", "random", "midpoint"] = "hard"
    """`hard`: GT and AG of the same genes that are a site of no isoform; `random`: anywhere in gene bodies; `midpoint`:
    middles of introns."""
    per_class: int = 10000
    """Windows of each class; fewer where the smallest class holds fewer."""
    centre: Literal["boundary", "bionemo"] = "boundary"
    """What stands in the middle: the boundary, or the exon's edge base as in BioNeMo."""
    minus_strand: Literal["reverse_complement", "forward"] = "reverse_complement"
    """Windows of the minus strand: read along the transcript, or left on the forward strand as BioNeMo did."""
    split: Literal["gene", "chromosome", "random"] = "gene"
    """`gene`, `chromosome`: no window overlaps one of another split; `random`: the card's split, with its leakage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.per_class > 0, f"--per_class must be positive, got {self.per_class}")
        require(self.min_intron > 0, f"--min_intron must be positive, got {self.min_intron}")
        require_share("--min_gt_ag", self.min_gt_ag)


def splice_sites(options: SpliceOptions) -> pd.DataFrame:
    """The dataset as one table with the columns sequence, label, contig, start, end, strand, position, kind, canonical,
    gene and split; counts in `attrs["manifest"]`. Also written where options.output names a folder."""
    path = options.annotation
    transcripts, exons = read_annotation(path)
    genome = read_genome(options.genome)
    transcripts = on_genome(transcripts, genome, path, options.aliases)
    chosen = of_biotypes(transcripts, options.biotypes, path)
    introns = introns_of(exons, chosen, options.min_intron)
    require(len(introns) > 0, f"{path}: no intron of {options.min_intron} bases or more in what was chosen")
    counts = _intron_counts(introns, genome, options)
    sites = sites_of(introns)
    counts |= {"transcripts": len(chosen), **sites["kind"].value_counts().to_dict()}
    both = sites.duplicated(_SITE, keep=False)
    counts["donor and acceptor at one position, left out"] = int(both.sum())
    positives, counts["positives left out"] = _windows(sites[~both], genome, options)
    every = sites_of(introns_of(exons, transcripts, 1))
    examples = _with_negatives(positives, chosen, introns, every, genome, options, counts)
    counts["labels"] = LABELS
    return finish(examples, options, options.split, ["gene", "position", "canonical"], counts)


def introns_of(exons: pd.DataFrame, transcripts: pd.DataFrame, min_length: int) -> pd.DataFrame:
    """Unique introns of these transcripts: contig, strand, start, end (0-based, half-open), gene (first by name)."""
    exons = exons[exons["transcript"].isin(transcripts.index)]
    before = exons.groupby("transcript")["end"].cummax().shift(fill_value=0)
    inner = exons.assign(end=exons["start"], start=before)[exons["transcript"].eq(exons["transcript"].shift())]
    inner = inner[inner["end"] - inner["start"] >= min_length]
    introns = inner.join(transcripts[["contig", "strand", "gene"]], on="transcript").drop(columns="transcript")
    return introns.sort_values(["contig", "strand", "start", "end", "gene"]).drop_duplicates(
        ["contig", "strand", "start", "end"], ignore_index=True
    )


def sites_of(introns: pd.DataFrame) -> pd.DataFrame:
    """Donors and acceptors, each position once: contig, strand, gene, position, kind.

    A position is a boundary: it lies between the bases position - 1 and position of the forward strand.
    """
    plus = introns["strand"] == "+"
    ends = {
        "donor": introns["start"].where(plus, introns["end"]),
        "acceptor": introns["end"].where(plus, introns["start"]),
    }
    both = [introns[["contig", "strand", "gene"]].assign(position=at, kind=kind) for kind, at in ends.items()]
    return pd.concat(both).drop_duplicates([*_SITE, "kind"], ignore_index=True)


def motifs_of(sites: pd.DataFrame, genome: Genome) -> pd.Series:
    """The two intron bases beside each site, read along the transcript; "" where one of them is not A, C, G or T."""
    minus = sites["strand"] == "-"
    before = (sites["kind"] == "donor") == minus  # the intron lies before the boundary on the forward strand
    pairs, _ = cut(sites.assign(start=sites["position"] - 2 * before, reverse=minus), genome, 2)
    return pairs["sequence"].reindex(sites.index, fill_value="")


def _intron_counts(introns: pd.DataFrame, genome: Genome, options: SpliceOptions) -> dict[str, Any]:
    """Introns by motif; UserError where too few of them are GT-AG."""
    plus = introns["strand"] == "+"
    donors = introns.assign(position=introns["start"].where(plus, introns["end"]), kind="donor")
    acceptors = introns.assign(position=introns["end"].where(plus, introns["start"]), kind="acceptor")
    motifs = (motifs_of(donors, genome) + "-" + motifs_of(acceptors, genome)).value_counts()
    share = motifs.get("GT-AG", 0) / len(introns)
    log.info("%d introns, GT-AG share %.3f, GC-AG %.3f", len(introns), share, motifs.get("GC-AG", 0) / len(introns))
    require(
        len(introns) < _ENOUGH_INTRONS or share >= options.min_gt_ag,
        f"{options.annotation}: only {share:.3f} of {len(introns):,} introns are GT-AG: its strands are wrong, or it "
        f"belongs to another genome build than {options.genome}; --min_gt_ag 0 takes it all the same",
    )
    return {
        "introns": len(introns),
        "GT-AG share": float(share),
        "motifs": {str(pair): int(n) for pair, n in motifs.items()},
    }


def _windows(sites: pd.DataFrame, genome: Genome, options: SpliceOptions) -> tuple[pd.DataFrame, dict[str, int]]:
    """The sites' windows with sequence, label and canonical; and how many were left out."""
    length, minus = options.length, sites["strand"] == "-"
    reverse = minus & (options.minus_strand == "reverse_complement")
    start = sites["position"] - length // 2
    if options.centre == "bionemo":  # the exon's edge base, on the forward strand; what is no site is placed as a donor
        edge = sites["position"] - ((sites["kind"] != "acceptor") != minus)
        start = edge - length // 2 + ~reverse
    canonical = motifs_of(sites, genome) == sites["kind"].map({"donor": "GT", "acceptor": "AG"})
    return cut(sites.assign(start=start, reverse=reverse, canonical=canonical), genome, length)


def _with_negatives(
    positives: pd.DataFrame,
    chosen: pd.DataFrame,
    introns: pd.DataFrame,
    every: pd.DataFrame,
    genome: Genome,
    options: SpliceOptions,
    counts: dict[str, Any],
) -> pd.DataFrame:
    """Balanced classes: as many donors, acceptors and negatives as the smallest of them has, per_class at most."""
    rng = np.random.default_rng(options.seed)
    positives = positives.sample(frac=1, random_state=rng)
    count = min(options.per_class, *(int((positives["kind"] == kind).sum()) for kind in ("donor", "acceptor")))
    anchors = positives.groupby("kind").head(count)
    sites: Sites = {key: np.unique(rows["position"]) for key, rows in every.groupby(["contig", "strand"])}
    genes = chosen.groupby(["contig", "strand", "gene"], as_index=False).agg(start=("start", "min"), end=("end", "max"))
    genes = genes[[key in sites for key in zip(genes["contig"], genes["strand"], strict=True)]]
    drawn = int(_SPARE * count) + 50
    if options.negatives == "hard":
        found = hard_negatives(anchors, genes, sites, genome, drawn // 2 + 1, rng)
    elif options.negatives == "random":
        found = random_negatives(genes, sites, drawn, rng)
    else:
        found = midpoint_negatives(introns, sites)
    found, counts["negatives left out"] = _windows(found.reset_index(drop=True), genome, options)
    found = found.sample(frac=1, random_state=rng).assign(label=LABELS["negative"], canonical=False)
    by_kind = found.groupby("kind").cumcount()  # as many GT as AG, where both are there
    found = found.assign(kind=options.negatives + np.where(options.negatives == "hard", "_" + found["kind"], ""))
    found = found.iloc[np.argsort(by_kind.to_numpy(), kind="stable")].head(count)
    count = min(count, len(found))
    require(count > 0, f"{options.annotation}: no {options.negatives} negative is left; try other --negatives")
    if count < options.per_class:
        log.warning("%d windows of each class, not %d: the smallest class holds no more", count, options.per_class)
    positives = anchors.groupby("kind").head(count)
    return pd.concat([positives.assign(label=positives["kind"].map(LABELS)), found.head(count)], ignore_index=True)
