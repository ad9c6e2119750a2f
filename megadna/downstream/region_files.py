"""The regions of a command that computes something for each of their bases: its input, its parts, its files.

In:  the input that RegionOptions name. To be drawn beside the regions: VCF (plain, gzip or BGZF; MEGADNA_LLR of INFO,
     if scored), or a TSV with columns contig (or chrom), pos (1-based), ref, alt and, if scored, llr; GFF3 or GTF as
     megadna/genome/annotation.py reads them.
Out: stretches with the bases of context that the computation reads, cut into pieces that are parts of the output; and
     a file for each region where a format holds one region. Variant for each alternative allele, and features, of the
     contigs of the genome: names are matched as those of any file. What lies in no region is left out.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import pandas as pd

from megadna.downstream.inputs import count_unknown, file_names, read_input
from megadna.downstream.interpretation_options import RegionOptions
from megadna.errors import UserError, require
from megadna.genome.annotation import attribute, read_features
from megadna.genome.contigs import match_contigs
from megadna.genome.packed import open_bytes
from megadna.genome.records import Stretch

LONGEST_PICTURE = 2000
"""Bases; more are no picture that anyone reads."""
MOST_PICTURES = 500
"""Regions of one command that get files of their own."""


WHOLE = 1 << 62
"""Context: all of a stretch."""
_WHOLE_CONTIGS = ("region", "chromosome", "contig", "scaffold", "supercontig", "source")
"""Features of GFF that say what a contig is."""
_LLR = "MEGADNA_LLR="
_VCF = ("contig", "pos", "id", "ref", "alt", "qual", "filter", "info")


@dataclass(frozen=True)
class Region:
    """One region, or whole record."""

    contig: str
    start: int
    end: int
    strand: str
    """+ or -; "." of a record (read as +)."""
    name: str
    """Column 4 of the BED file; "" where there is none."""
    bases: str
    """As the model reads them, 5' to 3' of the strand, without context."""

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def title(self) -> str:
        """The name, if it has one, and contig:start-end (strand), 0-based and half-open."""
        where = f"{self.contig}:{self.start:,}-{self.end:,}" + (f" ({self.strand})" if self.strand != "." else "")
        return f"{self.name}, {where}" if self.name else where

    @property
    def step(self) -> int:
        """From a base to the next one read: 1, or -1 on the minus strand."""
        return -1 if self.strand == "-" else 1

    def index(self, position: int) -> int:
        """Index in `bases` of a position on the contig."""
        return self.end - 1 - position if self.strand == "-" else position - self.start

    def position(self, index: int) -> int:
        """0-based position on the contig of a base by its index in `bases`."""
        return self.end - 1 - index if self.strand == "-" else self.start + index


def region_of(stretch: Stretch) -> Region:
    """The region that a whole stretch is."""
    name = "" if stretch.region == "." else stretch.region
    return Region(stretch.name, stretch.start, stretch.end, stretch.strand, name, stretch.own)


def pieces(stretch: Stretch, size: int, context: int) -> Iterator[Stretch]:
    """The stretch in pieces of at most `size` bases, in the order of its bases, each with `context` bases around."""
    length = stretch.end - stretch.start
    for first in range(0, length, size):
        last = min(length, first + size)
        low = max(0, stretch.before + first - context)
        high = min(len(stretch.bases), stretch.before + last + context)
        yield stretch.part(first, last, low, high)


def checked_regions(options: RegionOptions, missing: str) -> list[Region]:
    """The regions, without context; UserError where every base is N, or where one is too long for its picture. The log
    counts the N, which have no `missing`."""
    found = list(map(region_of, read_input(options)))
    count_unknown(((region.title, region.bases) for region in found), missing)
    if drawn := options.written(".png", ".html"):
        for region in found:
            require(
                len(region) <= LONGEST_PICTURE,
                f"{drawn}: {region.title} has {len(region):,} bases; a picture shows {LONGEST_PICTURE:,} at most: give "
                "shorter regions with --bed, or write no .png and .html",
            )
    return found


def sidecar(path: Path) -> Path:
    """The JSON file that says what an array is."""
    return path.with_name(path.name + ".json")


def files_of(output: Path, regions: list[Region]) -> list[Path]:
    """The file of each region: OUTPUT itself if there is one region; else with the region's name (its coordinates where
    names are missing or repeated) before the ending. UserError above MOST_PICTURES."""
    if len(regions) == 1:
        return [output]
    many = f"{output}: {len(regions)} regions would each get a file; give {MOST_PICTURES} at most with --bed"
    require(len(regions) <= MOST_PICTURES, many)
    names = [region.name for region in regions]
    if "" in names or len(set(names)) < len(names):
        names = [f"{r.contig}_{r.start}-{r.end}" + "minus" * (r.strand == "-") for r in regions]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    names = [f"{name}.{number}" if name in repeated else name for number, name in enumerate(names, start=1)]
    parts = file_names(names, f"{output.stem}.{{}}{output.suffix}.json")
    return [output.with_name(f"{output.stem}.{parts[name]}{output.suffix}") for name in names]


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
        rows = list(_variants(path, file))
    names = match_contigs(dict.fromkeys(row.contig for row in rows), contigs)
    found = [replace(row, contig=names[row.contig]) for row in rows if row.contig in names]
    require(bool(found), f"{path}: no variant on {', '.join(list(contigs)[:5])}; does it belong to another genome?")
    return found


def _variants(path: Path, file: IO[bytes]) -> Iterator[Variant]:
    """Each alternative allele of a VCF, or of a TSV whose first line names its columns."""
    names = _cells(file.readline())
    is_vcf = names[0].startswith("##fileformat=VCF")
    names = list(_VCF) if is_vcf else ["contig" if name == "chrom" else name for name in names]
    for name in ("contig", "pos", "ref", "alt"):
        remedy = "give a VCF, or a TSV with contig, pos, ref, alt and llr"
        require(name in names, f"{path}: no column {name!r}; it has {', '.join(names)[:200]}; {remedy}")
    for number, line in enumerate(file, start=2):
        where, cells = f"{path}: line {number}", _cells(line)
        if not line.strip() or (is_vcf and line.startswith(b"#")):
            continue
        is_whole = len(cells) >= len(names) if is_vcf else len(cells) == len(names)
        require(is_whole, f"{where}: {len(cells)} columns of {len(names)}")
        row = dict(zip(names, cells, strict=False))
        alleles = _alleles(row, where) if is_vcf else [(row["alt"], row.get("llr", ""))]
        for alt, value in alleles:
            try:
                score = float(value) if value.lower() not in ("", ".", "na", "nan") else None
                yield Variant(row["contig"], int(row["pos"]) - 1, row["ref"].upper(), alt.upper(), score)
            except ValueError:
                wrong = f"pos {row['pos'][:20]!r} and llr {value[:20]!r}"
                raise UserError(f"{where}: {wrong} must be numbers") from None


def _cells(line: bytes) -> list[str]:
    return line.decode(errors="replace").rstrip("\r\n").split("\t")


def _alleles(row: dict[str, str], where: str) -> list[tuple[str, str]]:
    """(ALT, MEGADNA_LLR) of a VCF record, those that are sequences."""
    alts = row["alt"].split(",")
    scores = next((entry.removeprefix(_LLR) for entry in row["info"].split(";") if entry.startswith(_LLR)), "")
    values = scores.split(",") if scores else [""] * len(alts)
    require(len(values) == len(alts), f"{where}: {len(values)} MEGADNA_LLR for {len(alts)} alleles")
    return [(alt, value) for alt, value in zip(alts, values, strict=True) if alt not in (".", "*")]


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
