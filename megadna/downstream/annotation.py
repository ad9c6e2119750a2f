"""GFF3 and GTF (plain, gzip, BGZF or zstd; Ensembl, NCBI, GENCODE and plainer dialects) -> transcripts and exons.

Coordinates come out 0-based and half-open. A transcript is one name on one contig and strand. Its exons are its exon
features (also noncoding_exon and the like); where it has none, its coding parts and UTRs. What is left out is counted.
41,606 lines of GTF take 0.4 s (pyranges 0.1.7: 0.4 s for the table alone; gffutils 0.14: 2.3 s), 2.9 million
lines 37 s and 5.3 GB (CPU time, 2-core AMD EPYC VM, 2026-11-21).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from megadna.downstream.gff import attribute, parents, read_features
from megadna.errors import require
from megadna.log import get_logger

log = get_logger(__name__)

_BESIDE_CDS = {"start_codon", "stop_codon", "5UTR", "3UTR", "UTR"}  # in GTF the stop codon is no part of the CDS
_BESIDE_CDS |= {f"{end}_prime_{utr}" for end in ("five", "three") for utr in ("utr", "UTR")}
_NO_OWNERS = {"exon", "CDS", "Selenocysteine", "intron", *_BESIDE_CDS}


def read_annotation(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(transcripts, exons); UserError where there is none.

    transcripts: gene, biotype (of the gene), contig, strand (+ or -), start, end. exons, sorted: transcript (index of
    its row there), start, end. Trans-spliced and unstranded transcripts, and those that cross the origin of a ring, are
    left out and counted.
    """
    features, gff3 = read_features(path)
    is_exon = (features["feature"] == "exon") | features["feature"].str.endswith("_exon")
    exons, cds = _named(features[is_exon], gff3), _named(features[features["feature"] == "CDS"], gff3)
    translated = set(cds["name"])
    without_exons = translated - set(exons["name"])
    parts = exons
    if without_exons:
        coding = pd.concat([cds, _named(features[features["feature"].isin(_BESIDE_CDS)], gff3)])
        parts = pd.concat([exons, coding[coding["name"].isin(without_exons)]], ignore_index=True)
    require(len(parts) > 0, f"{path}: no exon or CDS feature that names its transcript")
    parts["transcript"] = parts.groupby(["contig", "strand", "name"], sort=False).ngroup()
    firsts = {key: (key, "first") for key in ("name", "contig", "strand", "attributes")}
    transcripts = parts.groupby("transcript").agg(**firsts, start=("start", "min"), end=("end", "max"))
    transcripts["coding"] = transcripts["name"].isin(translated)
    transcripts = _with_genes(transcripts, features, gff3)
    transcripts = _chosen(transcripts, parts, features, without_exons)
    require(len(transcripts) > 0, f"{path}: no transcript has one strand, + or - (column 7)")
    parts = parts.loc[parts["transcript"].isin(transcripts.index), ["transcript", "start", "end"]]
    columns = ["gene", "biotype", "contig", "strand", "start", "end"]
    transcripts = transcripts[columns].astype({"gene": str, "biotype": str})
    return transcripts, parts.sort_values(["transcript", "start", "end"], ignore_index=True)


def of_biotypes(transcripts: pd.DataFrame, biotypes: str, path: Path) -> pd.DataFrame:
    """The transcripts of genes of one of the comma-separated biotypes, or `all`; UserError where one has none."""
    if biotypes == "all":
        return transcripts
    names, present = biotypes.split(","), sorted({*transcripts["biotype"]} - {""})
    for name in names:
        known = ", ".join(present) or "genes that state none"
        require(name in present, f"{path}: no gene of --biotypes {name}; it has {known}; `all` takes every one")
    return transcripts[transcripts["biotype"].isin(names)]


def _named(parts: pd.DataFrame, gff3: bool) -> pd.DataFrame:
    """One row for each exon (or coding part) of each transcript, with the transcript's `name`; what names none is
    counted."""
    if gff3:  # an exon of several transcripts is one line
        named = parts.assign(name=parents(parts["attributes"])).explode("name").fillna({"name": ""})
    else:
        named = parts.assign(name=attribute(parts["attributes"], gff3, "transcript_id"))
    nameless = named["name"] == ""
    if nameless.any():
        key = "Parent" if gff3 else "transcript_id"
        first = named.index[nameless][0]
        log.warning("%d exon or CDS lines left out: no %s (the first: line %d)", nameless.sum(), key, first)
    return named[~nameless].reset_index(drop=True)


def _chosen(
    transcripts: pd.DataFrame, parts: pd.DataFrame, features: pd.DataFrame, without_exons: set[str]
) -> pd.DataFrame:
    """The transcripts that can be used; says how many are left out, and why."""
    trans = transcripts.duplicated(["contig", "name"], keep=False)
    trans |= transcripts["name"].isin(
        parts.loc[parts["attributes"].str.contains("trans-splicing", regex=False), "name"]
    )
    ring = features[features["attributes"].str.contains("Is_circular=true", regex=False)].groupby("contig")["end"].max()
    from_coding = transcripts["name"].isin(without_exons)
    reasons = {
        "trans-spliced": trans,
        "without a strand": ~transcripts["strand"].isin(["+", "-"]),
        "across the origin of a ring": transcripts["end"] > transcripts["contig"].map(ring).fillna(np.inf),
        # A gene may own the CDS beside transcripts that own the exons.
        "coding parts of genes whose transcripts have exons": from_coding
        & transcripts["name"].isin(transcripts.loc[~from_coding, "gene"]),
    }
    kept = pd.Series(True, index=transcripts.index)
    for reason, odd in reasons.items():
        if (kept & odd).any():
            log.info("%d transcripts left out: %s", (kept & odd).sum(), reason)
        kept &= ~odd
    if (kept & from_coding).any():
        log.info(
            "%d transcripts have no exon feature: they are their coding parts and UTRs, and begin there",
            (kept & from_coding).sum(),
        )
    return transcripts[kept]


def _with_genes(transcripts: pd.DataFrame, features: pd.DataFrame, gff3: bool) -> pd.DataFrame:
    """Adds gene and its biotype. A gene that states none is protein_coding if a transcript is an mRNA or has a CDS."""
    no_owner = features["feature"].isin(_NO_OWNERS) | features["feature"].str.endswith("_exon")
    owners = features[~no_owner]
    ids = attribute(owners["attributes"], gff3, *(("ID",) if gff3 else ("transcript_id", "gene_id")))
    owners = owners.set_axis(ids)[~ids.duplicated().to_numpy()]
    own = owners.reindex(transcripts["name"]).fillna("").set_axis(transcripts.index)
    texts = own["attributes"].where(own["attributes"] != "", transcripts["attributes"])
    if gff3:
        gene = _gene_above(transcripts["name"], owners)
    else:
        gene = attribute(texts, gff3, "gene_id")
        gene = gene.where(gene != "", transcripts["name"])
    of_gene = owners["attributes"].reindex(gene).fillna("").set_axis(transcripts.index)
    biotype = pd.Series("", index=transcripts.index, dtype=object)
    for key in ("gene_biotype", "gene_type", "biotype"):
        for lines in (of_gene, texts):
            biotype = biotype.where(biotype != "", attribute(lines, gff3, key))
    coding = gene[(own["feature"] == "mRNA") | transcripts["coding"]]
    biotype = biotype.mask((biotype == "") & gene.isin(set(coding)), "protein_coding")
    biotype = biotype.where(biotype != "", own["feature"])
    genes = owners.index[owners["feature"].str.endswith("gene")]
    empty = ~genes.isin(set(gene)) & (genes != "")
    if empty.any():
        log.info("%d of %d genes have no exon or CDS feature and are left out", empty.sum(), len(genes))
    return transcripts.assign(gene=gene, biotype=biotype)


def _gene_above(names: pd.Series, owners: pd.DataFrame) -> pd.Series:
    """The gene that each of the GFF3 features with these IDs belongs to: up the Parents (an miRNA's is its primary
    transcript) to one whose type ends in `gene`, or that has none."""
    gene = names
    for _ in range(4):
        row = owners.reindex(gene).fillna("").set_axis(gene.index)
        above = parents(row["attributes"]).str[0].fillna("")
        # A Parent without a line of its own ends the climb as well.
        upward = (above != "") & ~row["feature"].str.endswith("gene")
        if not upward.any():
            break
        gene = gene.mask(upward, above)
    return gene
