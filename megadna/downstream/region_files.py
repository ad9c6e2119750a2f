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
from dataclasses import dataclass
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
        check_sizes(drawn, found)
    return found


def sidecar(path: Path) -> Path:
    """The JSON file that says what an array is."""
    return path.with_name(path.name + ".json")


def check_sizes(output: Path, regions: list[Region]) -> None:
    """UserError if a region is too long for a picture."""
    for region in regions:
        require(
            len(region) <= LONGEST_PICTURE,
            f"{output}: {region.title} has {len(region):,} bases; a picture shows {LONGEST_PICTURE:,} at most: give "
            "shorter regions with --bed, or write no .png and .html",
        )


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
