"""Tables of variant scores -> TSV, Parquet, or the input VCF with INFO tags; and calibration by neutral sites.

In:  the parts that megadna/downstream/variants.py has saved, the lines of the VCF, which are copied.
Out: TSV (9 digits), Parquet (fp64), or VCF packed by bgzip: each line as it is, the tags appended to its INFO column.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from megadna.downstream.interpretation_options import VariantOptions
from megadna.downstream.outputs import write_parquet
from megadna.errors import UserError, require
from megadna.genome.vcf import UNSCORED, Header, data_lines
from megadna.progress import tracked

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
_COLUMNS = {
    "llr": ["llr_forward", "llr_reverse", "llr"],
    "pll": ["pll_forward", "pll_reverse", "pll"],
    "influence": ["influence"],
    "distance": ["l2", "cosine"],
}

Means = Mapping[int, float]
"""Mean llr by the number of a pentanucleotide and ALT (VariantScorer.context)."""


def score_columns(options: VariantOptions) -> list[str]:
    """The columns of the scores that are chosen."""
    names = [name for score in options.chosen for name in _COLUMNS[score]]
    if options.neutral is not None:
        names.insert(names.index("llr") + 1, "llr_calibrated")
    return names


def neutral_means(parts: Iterable[Path | pa.Table]) -> dict[int, float]:
    """Mean llr of each context that has LEAST_SITES neutral sites."""
    tables = [part if isinstance(part, pa.Table) else parquet.read_table(part) for part in parts]
    table = pa.concat_tables(tables)
    context_N, llr_N = table["context"].to_numpy(), table["llr"].to_numpy()
    known_N = ~np.isnan(llr_N)
    count, total = (np.bincount(context_N[known_N], weights) for weights in (None, llr_N[known_N]))
    return {number: float(total[number] / count[number]) for number in np.flatnonzero(count >= LEAST_SITES).tolist()}


def calibrated(table: pa.Table, means: Means | None) -> pa.Table:
    """With llr_calibrated after llr, and without `context`; as it is without means."""
    if means is None:
        return table
    mean_N = np.array([means.get(number, np.nan) for number in table["context"].to_pylist()], float)
    at = table.column_names.index("llr") + 1
    return table.drop_columns(["context"]).add_column(
        at, "llr_calibrated", pa.array(table["llr"].to_numpy() - mean_N, from_pandas=True)
    )


def _tables(parts: Sequence[Path], means: Means | None) -> Iterator[pa.Table]:
    for part in tracked(parts, "joining the parts", len(parts), "parts"):
        yield calibrated(parquet.read_table(part), means)


def write_table(parts: list[Path], means: Means | None, path: Path) -> None:
    """TSV or Parquet, as the file's ending says."""
    if path.suffix == ".parquet" and means is None:
        write_parquet(parts, path)
    elif path.suffix == ".parquet":
        schema = calibrated(parquet.read_table(parts[0]), means).schema
        with parquet.ParquetWriter(path, schema) as writer:
            for table in _tables(parts, means):
                writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            for number, table in enumerate(_tables(parts, means)):
                frame = table.to_pandas()
                frame.to_csv(file, sep="\t", index=False, header=number == 0, float_format="%.9g", lineterminator="\n")


def check_header(vcf: Path, header: Header) -> None:
    """UserError if the header has such tags already, or names no columns."""
    require(header.has_columns, f"{vcf}: no #CHROM line with INFO, so it cannot be written as VCF; write .tsv")
    if any(line.startswith(f"##INFO=<ID={TAG}".encode()) for line in header.lines):
        raise UserError(f"{vcf}: has tags {TAG}... already; remove them (bcftools annotate -x INFO/{TAG}LLR,...)")


def header_lines(
    options: VariantOptions, header: Header, window: int, digest: str, reasons: Mapping[str, str]
) -> list[bytes]:
    """The header with the tags' declarations and the command."""
    end = f" Window of {window} bases, model {digest}"
    added = [
        f'##INFO=<ID={TAG}{name.upper()},Number=A,Type=Float,Description="{_TEXTS[name]}.{end}">'
        for name in score_columns(options)
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
    from megadna import __version__

    parts = [f"--model {options.model} --vcf {options.vcf} --genome {options.genome}"]
    parts.append(f"--scores {' '.join(options.chosen)} --window {window} --precision {options.precision}")
    if options.neutral is not None:
        parts.append(f"--neutral {options.neutral} --neutral_sites {options.neutral_sites}")
    text = " ".join(parts).encode("unicode_escape").decode()
    return f"##megadna_command=megadna variants {text} (megadna {__version__}, weights xxh3_128 {digest})"


def write_vcf(vcf: Path, header: list[bytes], parts: list[Path], means: Means | None, path: Path) -> None:
    """The lines of `vcf` with tags; UserError if one has no INFO column."""
    import pysam

    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(b"".join(line + b"\n" for line in header))
        lines = data_lines(vcf)
        for table in _tables(parts, means):
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
