"""GFF3 and GTF (plain or gzip; Ensembl, NCBI, GENCODE and plainer dialects) -> transcripts and their exons.

Coordinates come out 0-based and half-open. A transcript is one name on one contig and strand. bioframe (pandas) reads
the table. 41,606 lines of GTF take 0.4 s (pyranges 0.1.7: 0.4 s for the table alone; gffutils 0.14: 2.3 s), 2.9 million
lines 37 s and 5.3 GB (CPU time, 2-core AMD EPYC VM, 2026-11-21).
"""

import csv
import re
import warnings
import zlib
from pathlib import Path
from urllib.parse import unquote

import bioframe
import numpy as np
import pandas as pd

from megadna.errors import UserError, require
from megadna.log import get_logger

log = get_logger(__name__)

_COLUMNS = ["chrom", "feature", "start", "end", "strand", "attributes"]
_PARTS = {"exon", "CDS", "start_codon", "stop_codon", "Selenocysteine", "UTR", "intron"}
_PARTS |= {f"{end}_prime_{utr}" for end in ("five", "three") for utr in ("utr", "UTR")}
_COORDINATE = "[0-9]{1,15}"  # more digits would overflow


def _read_features(path: Path) -> pd.DataFrame:
    """contig, feature, start, end, strand and attributes of a GFF or GTF file; start and end int64, the rest text (""
    where it is missing). The index is the line number. UserError with the line where the coordinates are none."""
    require(path.is_file(), f"{path}: no such file")
    with path.open("rb") as file:
        packed = "gzip" if file.read(2) == b"\x1f\x8b" else None
    options = {"quoting": csv.QUOTE_NONE, "skip_blank_lines": False, "keep_default_na": False, "dtype": str}
    options |= {"encoding_errors": "replace"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a line may have more columns, or fewer
            table = bioframe.read_table(str(path), schema="gff", compression=packed, **options)[_COLUMNS]
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path}: empty: holds no line") from error
    except (ValueError, EOFError, OSError, zlib.error) as error:  # pandas' ParserError is a ValueError
        raise UserError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    table.index += 1
    table = table.fillna("")
    fasta = np.flatnonzero(table["chrom"].str.startswith("##FASTA"))
    table = table.iloc[: fasta[0]] if len(fasta) else table
    table = table[~table["chrom"].str.match(r"#|\s*$")]
    texts = table[["start", "end"]]
    good = texts.apply(lambda column: column.str.fullmatch(_COORDINATE)).all(axis=1)
    numbers = texts.where(good, "0").astype(np.int64)
    bad = ~((numbers["start"] >= 1) & (numbers["end"] >= numbers["start"]))
    if bad.any():
        words = " ".join(value for value in table[bad].iloc[0].tolist() if value)[:80]
        raise UserError(
            f"{path}: line {table.index[bad][0]}: no tab-separated gff line with a start and an end: {words!r}"
        )
    require(len(table) > 0, f"{path}: empty: holds no feature")
    table = table.assign(start=numbers["start"] - 1, end=numbers["end"])
    return table.rename(columns={"chrom": "contig"})


def read_annotation(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(transcripts, exons); UserError where there is none.

    transcripts: gene, biotype (of the gene), contig, strand (+ or -), start, end. exons, sorted: transcript (index of
    its row there), start, end. Trans-spliced and unstranded transcripts are left out.
    """
    features = _read_features(path)
    gff3 = bool(features["attributes"].iloc[:1000].str.match(r"\s*\w+=").any())
    exons = _parts(features, "exon" if (features["feature"] == "exon").any() else "CDS", gff3)
    require(len(exons) > 0, f"{path}: no exon or CDS feature that names its transcript")
    exons["transcript"] = exons.groupby(["contig", "strand", "name"], sort=False).ngroup()
    firsts = {key: (key, "first") for key in ("name", "contig", "strand", "attributes")}
    transcripts = exons.groupby("transcript").agg(**firsts, start=("start", "min"), end=("end", "max"))
    names = exons.loc[exons["attributes"].str.contains("trans-splicing", regex=False), "name"]
    odd = transcripts.duplicated(["contig", "name"], keep=False) | transcripts["name"].isin(names)
    odd |= ~transcripts["strand"].isin(["+", "-"])
    require(not odd.all(), f"{path}: no transcript has one strand, + or - (column 7)")
    if odd.any():
        log.info("%d transcripts left out: trans-spliced or without a strand", odd.sum())
    transcripts = _with_genes(transcripts[~odd], features, gff3)
    exons = exons.loc[exons["transcript"].isin(transcripts.index), ["transcript", "start", "end"]]
    return transcripts, exons.sort_values(["transcript", "start", "end"], ignore_index=True)


def of_biotypes(transcripts: pd.DataFrame, biotypes: str, path: Path) -> pd.DataFrame:
    """The transcripts of genes of one of the comma-separated biotypes, or `all`; UserError where one has none."""
    if biotypes == "all":
        return transcripts
    names, present = biotypes.split(","), sorted(set(transcripts["biotype"]))
    for name in names:
        known = ", ".join(present) or "genes that state none"
        require(name in present, f"{path}: no gene of --biotypes {name}; it has {known}; `all` takes every one")
    return transcripts[transcripts["biotype"].isin(names)]


def _attribute(texts: pd.Series, *names: str) -> pd.Series:
    """Value (`key=value` or `key "value"`) of the first of the attributes that a line has; "" where it has none."""
    found = pd.Series("", index=texts.index, dtype=str)
    for name in names:
        empty = found == ""
        pattern = rf'(?:^|;)\s*{re.escape(name)}(?:=|\s+)"?([^";]*)'
        found[empty] = texts[empty].str.extract(pattern, expand=False).fillna("").str.strip()
    coded = found.str.contains("%", regex=False)
    found[coded] = found[coded].map(unquote)
    return found


def _parts(features: pd.DataFrame, feature: str, gff3: bool) -> pd.DataFrame:
    """One row for each exon (or CDS) of each transcript, with the transcript's name."""
    parts = features[features["feature"] == feature]
    names = _attribute(parts["attributes"], "Parent" if gff3 else "transcript_id")
    if gff3:  # an exon of several transcripts stands there once
        parts = parts.assign(name=names.str.split(",")).explode("name", ignore_index=True)
    else:
        parts = parts.assign(name=names)
    return parts[parts["name"] != ""].copy()


def _with_genes(transcripts: pd.DataFrame, features: pd.DataFrame, gff3: bool) -> pd.DataFrame:
    """Adds gene and its biotype. A gene that states none is protein_coding if a transcript is an mRNA or has a CDS."""
    owners = features[~features["feature"].isin(_PARTS)]
    ids = _attribute(owners["attributes"], *(("ID",) if gff3 else ("transcript_id", "gene_id")))
    owners = owners.set_axis(ids)[~ids.duplicated().to_numpy()]
    own = owners.reindex(transcripts["name"]).fillna("").set_axis(transcripts.index)
    texts = own["attributes"].where(own["attributes"] != "", transcripts["attributes"])
    gene = _attribute(texts, "Parent").str.split(",").str[0] if gff3 else _attribute(texts, "gene_id")
    gene = gene.where(gene != "", transcripts["name"])
    of_gene = owners["attributes"].reindex(gene).fillna("").set_axis(transcripts.index)
    biotype = _attribute(of_gene + ";" + texts, "gene_biotype", "gene_type", "biotype")
    coding = gene[(own["feature"] == "mRNA") | transcripts["name"].isin(_parts(features, "CDS", gff3)["name"])]
    biotype = biotype.mask((biotype == "") & gene.isin(coding), "protein_coding")
    biotype = biotype.where(biotype != "", own["feature"])
    return transcripts.assign(gene=gene, biotype=biotype)[["gene", "biotype", "contig", "strand", "start", "end"]]
