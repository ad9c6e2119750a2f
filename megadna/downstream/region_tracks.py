"""What is drawn beside the effects of a region: variants and features of an annotation.

In:  VCF (plain, gzip or BGZF; MEGADNA_LLR of INFO, if scored), or a TSV with columns contig (or chrom), pos (1-based),
     ref, alt and, if scored, llr; GFF3 or GTF as megadna/genome/annotation.py reads them.
Out: Variant for each alternative allele, and features, of the contigs of the genome: names are matched as those of any
     file. What lies in no region is left out.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pandas as pd

from megadna.errors import UserError, require
from megadna.genome.annotation import attribute, read_features
from megadna.genome.contigs import match_contigs
from megadna.genome.packed import open_bytes
from megadna.log import get_logger

log = get_logger(__name__)

_WHOLE_CONTIGS = ("region", "chromosome", "contig", "scaffold", "supercontig", "source")
"""Features of GFF that say what a contig is."""
_LLR = "MEGADNA_LLR="


@dataclass(frozen=True, slots=True)
class Variant:
    """One alternative allele."""

    contig: str
    position: int
    """0-based, of the first base of `ref`."""
    ref: str
    alt: str
    value: float | None
    """ln p(alt) - ln p(ref); None where it was not scored."""


def read_variants(path: Path, contigs: Collection[str]) -> list[Variant]:
    """The variants on these contigs; UserError with the line that is none, or if none is on them."""
    with open_bytes(path) as file:
        first = file.readline()
        rows = list(_of_vcf(path, file) if first.startswith(b"##fileformat=VCF") else _of_table(path, first, file))
    names = match_contigs(dict.fromkeys(row.contig for row in rows), contigs)
    found = [
        Variant(names[row.contig], row.position, row.ref, row.alt, row.value) for row in rows if row.contig in names
    ]
    require(bool(found), f"{path}: no variant on {', '.join(list(contigs)[:5])}; does it belong to another genome?")
    return found


def _of_vcf(path: Path, file: IO[bytes]) -> Iterator[Variant]:
    for number, line in enumerate(file, start=2):
        if line.startswith(b"#") or not line.strip():
            continue
        columns = line.decode(errors="replace").rstrip("\r\n").split("\t")
        require(len(columns) >= 8, f"{path}: line {number}: {len(columns)} columns; a VCF record has 8 or more")
        info = next((entry[len(_LLR) :] for entry in columns[7].split(";") if entry.startswith(_LLR)), "")
        alts = columns[4].split(",")
        values = info.split(",") if info else ["."] * len(alts)
        require(len(values) == len(alts), f"{path}: line {number}: {len(values)} MEGADNA_LLR for {len(alts)} alleles")
        for alt, value in zip(alts, values, strict=True):
            if alt not in (".", "*"):
                yield _variant(path, number, columns[0], columns[1], columns[3], alt, value)


def _of_table(path: Path, header: bytes, file: IO[bytes]) -> Iterator[Variant]:
    names = header.decode(errors="replace").rstrip("\r\n").split("\t")
    wanted = ["contig" if "contig" in names else "chrom", "pos", "ref", "alt"]
    for name in wanted:
        remedy = "give a VCF, or a TSV with contig, pos, ref, alt and llr"
        require(name in names, f"{path}: no column {name!r}; it has {', '.join(names)[:200]}; {remedy}")
    for number, line in enumerate(file, start=2):
        columns = line.decode(errors="replace").rstrip("\r\n").split("\t")
        if not any(columns):
            continue
        require(len(columns) == len(names), f"{path}: line {number}: {len(columns)} columns of {len(names)}")
        row = dict(zip(names, columns, strict=True))
        contig, pos, ref, alt = (row[name] for name in wanted)
        yield _variant(path, number, contig, pos, ref, alt, row.get("llr", ""))


def _variant(path: Path, line: int, contig: str, pos: str, ref: str, alt: str, value: str) -> Variant:
    try:
        score = float(value) if value.lower() not in ("", ".", "na", "nan") else None
        return Variant(contig, int(pos) - 1, ref.upper(), alt.upper(), score)
    except ValueError:
        raise UserError(f"{path}: line {line}: pos {pos[:20]!r} and llr {value[:20]!r} must be numbers") from None


def read_gff(path: Path, contigs: Collection[str]) -> pd.DataFrame:
    """contig, feature, start, end (0-based, half-open), strand, label (its Name, gene or ID) of the features on these
    contigs; those that are a whole contig are left out. UserError if there is none."""
    table, is_gff3 = read_features(path)
    names = match_contigs(dict.fromkeys(table["contig"]), contigs)
    table = table[table["contig"].isin(names.keys()) & ~table["feature"].isin(_WHOLE_CONTIGS)]
    require(len(table) > 0, f"{path}: no feature on {', '.join(list(contigs)[:5])}; does it belong to another genome?")
    keys = ("Name", "gene", "gene_name", "gene_id", "ID")
    labels = attribute(table["attributes"], is_gff3, *keys)
    columns = ["contig", "feature", "start", "end", "strand", "label"]
    table = table.assign(contig=table["contig"].map(names), label=labels)[columns]
    return table.drop_duplicates(["contig", "feature", "start", "end", "strand"], ignore_index=True)
