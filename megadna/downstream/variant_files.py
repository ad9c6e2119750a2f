"""A VCF on a genome before a model is loaded; and tables of variant scores -> TSV, Parquet, or the VCF with INFO tags.

In:  a VCF and a genome in memory; the parts that megadna/downstream/variants.py has saved.
Out: Survey (contigs, counts, whether it fits the assembly), and a summary in the log. UserError where a line is no
     record, no contig is known, or REF differs from the genome at most records: a pass over the file costs little
     beside a model's hours. TSV (9 digits), Parquet (fp64), or VCF packed by bgzip: each line as it is, the tags
     appended to its INFO column. Calibration by neutral sites.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna import __version__
from megadna.downstream.interpretation_options import VariantOptions
from megadna.downstream.outputs import tables_of, write_parquet, write_tsv
from megadna.errors import UserError, require
from megadna.genome.contigs import match_contigs, nearest, renamed
from megadna.genome.records import Genome
from megadna.genome.vcf import (
    OK,
    UNSCORED,
    Allele,
    Header,
    Record,
    alt_reason,
    data_lines,
    read_header,
    read_records,
    reference_reason,
    trimmed,
)
from megadna.log import counted, get_logger
from megadna.progress import tracked

log = get_logger(__name__)

_NOT_SEQUENCE = ("no_alt", "spanning_deletion", "symbolic", "breakend")
_MITOCHONDRIAL = {"M", "MT", "chrM", "chrMT"}
_LONGEST_TBI = 1 << 29  # positions that a .tbi index can hold


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A VCF on a genome."""

    header: Header
    contigs: dict[str, str]
    """The genome's contig of each of the file's names that has one."""
    num_records: int
    counts: Counter[str]
    """Alleles by `ok` or the reason why they have no score."""
    is_sorted: bool
    """Contig by contig, by rising POS: what an index needs."""
    needs_csi: bool
    """Whether a position is too large for a .tbi index."""


def survey(path: Path, genome: Genome) -> Survey:
    """Read the whole file once for its contigs, once for its alleles."""
    header = read_header(path)
    names, last, num_records, is_sorted, largest = dict[str, None](), ("", 0), 0, True, 0
    for record in tracked(read_records(path), f"reading {path}", unit="records"):
        new = record.contig != last[0]
        is_sorted = is_sorted and (record.contig not in names if new else record.position >= last[1])
        names[record.contig] = None
        last, largest = (record.contig, record.position), max(largest, record.position)
        num_records += 1
    if not num_records:
        log.warning("%s: holds no record", path)
    contigs = _matched(path, names, header, genome) if names else {}
    found = Survey(
        header=header,
        contigs=contigs,
        num_records=num_records,
        counts=_counts(path, contigs, genome) if contigs else Counter(),
        is_sorted=is_sorted,
        needs_csi=largest + 1000 >= _LONGEST_TBI,
    )
    _tell(path, found)
    return found


def described(record: Record, alt: bytes, bases: np.ndarray | None) -> tuple[str, Allele | None]:
    """(`ok` or the reason why the allele has no score; the allele if `ok`)."""
    reason = alt_reason(record, alt)
    if reason not in _NOT_SEQUENCE:
        reason = reference_reason(record, bases) or reason
    if reason or bases is None:
        return reason, None
    return OK, trimmed(record, alt, bases)


def _matched(path: Path, names: dict[str, None], header: Header, genome: Genome) -> dict[str, str]:
    """match_contigs, where another name is taken for the same contig only if the stated lengths agree."""
    found = match_contigs(names, genome.bases)
    for name, contig in list(found.items()):
        stated, length = header.lengths.get(name), genome.lengths[contig]
        if stated not in (None, length):
            differs = f"{path}: contig {name} has {stated:,} bases by its header, {contig} of {genome.path} {length:,}"
            if name != contig:
                del found[name]
                log.warning("%s: not the same sequence, so its records have no score", differs)
            else:
                log.warning("%s: another version or a part of it? REF is compared at every record", differs)
        elif stated is None and name != contig and name in _MITOCHONDRIAL:
            text = "%s: %s is taken for %s (%d bases): chrM of hg19 (16,571) is another sequence than MT (16,569)"
            log.warning(text, path, name, contig, length)
    if not found:
        first = next(iter(names))
        raise UserError(f"{path}: no contig of it is in {genome.path} ({first}, ...){nearest(first, genome.bases)}")
    if text := renamed(found):
        log.info("contig names matched: %s", text)
    if missing := [name for name in names if name not in found]:
        text = "%s: %s not in %s: %s"
        log.warning(text, path, counted(len(missing), "contig"), genome.path, ", ".join(missing[:10]))
    return found


def _counts(path: Path, contigs: dict[str, str], genome: Genome) -> Counter[str]:
    counts: Counter[str] = Counter()
    compared = differ = 0
    first = ""
    for record in tracked(read_records(path), f"comparing {path} with {genome.path}", unit="records"):
        bases = genome.bases.get(contigs.get(record.contig, ""))
        reason = reference_reason(record, bases)
        compared += reason in ("", "ref_mismatch")
        if reason == "ref_mismatch":
            assert bases is not None
            differ += 1
            here = bases[record.start : record.start + min(20, len(record.ref))].tobytes().decode()
            ref = record.ref[:20].decode()
            first = first or f"line {record.line}, {record.contig}:{record.position}, REF {ref}, genome {here}"
        for alt in record.alts:
            status, allele = described(record, alt, bases)
            counts[status] += 1
            counts["indel"] += allele is not None and not allele.is_substitution
    require(
        2 * differ <= compared,
        f"{path}: REF differs from {genome.path} at {differ:,} of {compared:,} records ({first}): another assembly? "
        "give the genome that the variants were called on",
    )
    if differ:
        log.warning(
            "%s: REF differs from %s at %d of %d records, first in %s", path, genome.path, differ, compared, first
        )
    return counts


def _tell(path: Path, found: Survey) -> None:
    scored, indels = found.counts[OK], found.counts["indel"]
    text = "%s: %s; of the alleles %s and %s"
    kinds = counted(indels, "insertion, deletion or the like", "insertions, deletions and the like")
    log.info(text, path, counted(found.num_records, "record"), counted(scored - indels, "substitution"), kinds)
    for reason, meaning in UNSCORED.items():
        if found.counts[reason]:
            log.info("no score for %s: %s (%s)", counted(found.counts[reason], "allele"), meaning, reason)


LEAST_SITES = 10
"""Neutral sites that a pentanucleotide with its ALT must have for a calibrated score."""
TAG = "MEGADNA_"
_LOG_ODDS = "ln p(ALT) - ln p(REF), all changed bases hidden together; negative: the model finds ALT less likely"
_PLL = (
    "sum over the window of ln p(base), each hidden alone, with ALT less with REF; insertions and deletions; negative: "
    "the model finds ALT less likely"
)
_STRANDS = {"": "mean of both strands", "_forward": "forward strand", "_reverse": "reverse strand"}
_TEXTS = {
    **{f"llr{end}": f"{_LOG_ODDS}; {strand}" for end, strand in _STRANDS.items()},
    "llr_calibrated": "llr less its mean over neutral sites of the same pentanucleotide and ALT",
    **{f"pll{end}": f"{_PLL}; {strand}" for end, strand in _STRANDS.items()},
    "influence": "mean over the other bases of the window of the largest absolute change of ln p/(1 - p) when ALT "
    "replaces REF; mean of both strands",
    "l2": "Euclidean distance between the mean last hidden states with REF and ALT; mean of both strands",
    "cosine": "1 - cosine between the mean last hidden states with REF and ALT; mean of both strands",
}


def neutral_means(parts: Iterable[Path | pa.Table]) -> pd.Series:
    """Mean llr of each context (VariantScorer.context) that has LEAST_SITES neutral sites."""
    tables = [part if isinstance(part, pa.Table) else parquet.read_table(part) for part in parts]
    found = pa.concat_tables(tables).to_pandas().groupby("context")["llr"].agg(["mean", "count"])
    return found["mean"][found["count"] >= LEAST_SITES]


def calibrated(table: pa.Table, means: pd.Series | None) -> pa.Table:
    """With llr_calibrated after llr, and without `context`; as it is without means."""
    if means is None:
        return table
    values_N = table["llr"].to_numpy() - table["context"].to_pandas().map(means).to_numpy(float)
    at = table.column_names.index("llr") + 1
    return table.drop_columns(["context"]).add_column(at, "llr_calibrated", pa.array(values_N, from_pandas=True))


def write_table(parts: list[Path], means: pd.Series | None, path: Path) -> None:
    """TSV or Parquet, as the file's ending says."""
    change = partial(calibrated, means=means)
    if path.suffix == ".parquet":
        write_parquet(parts, path, change)
    else:
        write_tsv(parts, path, change, float_format="%.9g")


def check_header(vcf: Path, header: Header) -> None:
    """UserError if the header has such tags already, or names no columns."""
    require(header.has_columns, f"{vcf}: no #CHROM line with INFO, so it cannot be written as VCF; write .tsv")
    if any(line.startswith(f"##INFO=<ID={TAG}".encode()) for line in header.lines):
        raise UserError(f"{vcf}: has tags {TAG}... already; remove them (bcftools annotate -x INFO/{TAG}LLR,...)")


def header_lines(
    options: VariantOptions, header: Header, scores: pa.Table, window: int, digest: str, reasons: Mapping[str, str]
) -> list[bytes]:
    """The header with the declarations of the tags of a table of scores, and the command."""
    end = f" Window of {window} bases, model {digest}"
    added = [
        f'##INFO=<ID={TAG}{name.upper()},Number=A,Type=Float,Description="{_TEXTS[name]}.{end}">'
        for name in scores.column_names
        if name in _TEXTS
    ]
    how = "llr: log-odds at hidden bases (substitutions), pll: difference of pseudo-log-likelihoods (others)"
    added.append(f'##INFO=<ID={TAG}METHOD,Number=A,Type=String,Description="Which score the ALT has; {how}">')
    every = "; ".join(
        f"{reason}: {text.replace('<', '').replace('>', '')}" for reason, text in [*UNSCORED.items(), *reasons.items()]
    )
    added.append(f'##INFO=<ID={TAG}STATUS,Number=A,Type=String,Description="ok, or why the ALT has no score. {every}">')
    added.append(_command(options, window, digest))
    return [*header.lines[:-1], *(line.encode() for line in added), header.lines[-1]]


def _command(options: VariantOptions, window: int, digest: str) -> str:
    parts = [f"--model {options.model} --vcf {options.vcf} --genome {options.genome}"]
    parts.append(f"--scores {' '.join(options.chosen)} --window {window} --precision {options.precision}")
    if options.neutral is not None:
        parts.append(f"--neutral {options.neutral} --neutral_sites {options.neutral_sites}")
    text = " ".join(parts).encode("unicode_escape").decode()
    return f"##megadna_command=megadna variants {text} (megadna {__version__}, weights xxh3_128 {digest})"


def write_vcf(vcf: Path, header: list[bytes], parts: list[Path], means: pd.Series | None, path: Path) -> None:
    """The lines of `vcf` with tags; UserError if one has no INFO column."""
    import pysam

    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(b"".join(line + b"\n" for line in header))
        lines = data_lines(vcf)
        for table in tables_of(parts, partial(calibrated, means=means)):
            rows = _texts(table)
            at = 0
            while at < table.num_rows:
                line = next(lines)
                columns = line.split(b"\t", 8)
                require(
                    len(columns) >= 8, f"{vcf}: {line[:40].decode(errors='replace')!r} has no INFO column; write .tsv"
                )
                num_alts = columns[4].count(b",") + 1
                info = ";".join(f"{tag}={','.join(texts[at : at + num_alts])}" for tag, texts in rows.items())
                columns[7] = _with_info(columns[7], info.encode())
                file.write(b"\t".join(columns) + b"\n")
                at += num_alts


def _with_info(info: bytes, added: bytes) -> bytes:
    """INFO and the tags; a carriage return stays at the end of the line."""
    end = b"\r" if info.endswith(b"\r") else b""
    info = info.removesuffix(b"\r").removesuffix(b";")
    return (added if info in (b".", b"") else info + b";" + added) + end


def _texts(table: pa.Table) -> dict[str, list[str]]:
    """Values by tag; a dot where there is none."""
    found: dict[str, list[str]] = {}
    for name in table.column_names[4:]:
        values: list[Any] = table[name].to_pylist()
        if pa.types.is_floating(table.schema.field(name).type):
            found[TAG + name.upper()] = ["." if value is None else f"{value:.6g}" for value in values]
        else:
            found[TAG + name.upper()] = [value or "." for value in values]
    return found
