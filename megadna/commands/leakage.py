"""`megadna leakage`: how much of a benchmark's sequences a pretraining dataset contains."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.arguments import parsed_options
from megadna.data.leakage import MAX_CONTAINMENT, Overlap, interval_overlap, sequence_overlap
from megadna.errors import require
from megadna.files import atomic_file
from megadna.log import get_logger
from megadna.ownership import refuse_occupied

log = get_logger(__name__)
_BED_FILE = re.compile(r"\.(bed|narrowPeak|broadPeak|bedGraph)(\.(gz|bgz|bgzf|zst|zstd))?$", re.I)


@dataclass(frozen=True, kw_only=True)
class LeakageOptions:
    """What to compare."""

    data: Path
    """Dataset folder."""
    input: Path
    """Benchmark: FASTA, CSV, TSV or Parquet with --column, or BED (narrowPeak) in the dataset's coordinates."""
    split: str = "train"
    """Split of the dataset to compare with."""
    column: str = ""
    """Column that holds the sequences; default: sequence."""
    output: Path | None = None
    """TSV to write: name (of a BED interval contig:start-end, from 0 as in the BED file) and contained share of each
    sequence."""


def main(arguments: list[str]) -> None:
    """Print the contained share of a benchmark; with --output, write it per sequence."""
    description = "How much of a benchmark's sequences a pretraining dataset contains."
    options = parsed_options("leakage", description, LeakageOptions, arguments)
    if options.output is not None:
        refuse_occupied(options.output, is_file=True)
    require(options.input.exists() or str(options.input) == "-", f"{options.input}: no such file")
    log.info("reading %s, comparing with %s of %s", options.input, options.split, options.data)
    if _BED_FILE.search(options.input.name):
        overlap = interval_overlap(options.data, options.split, options.input)
    else:
        overlap = sequence_overlap(options.data, options.split, options.input, options.column)
    _report(overlap, options)


def _report(overlap: Overlap, options: LeakageOptions) -> None:
    known = overlap.shares[~np.isnan(overlap.shares)]
    contained = int((known > MAX_CONTAINMENT).sum())
    share = 100 * contained / max(1, len(known))
    mean = f"; mean contained share {known.mean():.4f}" if len(known) else ""
    sys.stdout.write(
        f"{options.input}: {contained:,} of {len(known):,} sequences ({share:.2f} %) share more than "
        f"{100 * MAX_CONTAINMENT:g} % with {options.split} of {options.data}{mean}\n"
    )
    if len(known) < len(overlap.shares):
        sys.stdout.write(f"{len(overlap.shares) - len(known):,} sequences are too short or too ambiguous to tell\n")
    if options.output is not None:
        rows = zip(overlap.names, overlap.shares.tolist(), strict=True)
        text = "name\tcontained\n" + "".join(f"{name}\t{share:.6g}\n" for name, share in rows)
        with atomic_file(options.output, replace=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
