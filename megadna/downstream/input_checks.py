"""What can be said of the input and output of embed and predict before torch is imported and a model loaded.

One pass over the input, by the readers that run later: what they would refuse after hours is refused now. Reading is
a small share of a run: a model takes far longer for a base.
"""

from array import array
from pathlib import Path

import numpy as np

from megadna.downstream.options import InputOptions, PredictOptions
from megadna.downstream.sequences import Stretch, read_regions, read_stretches, record_lengths
from megadna.errors import UserError
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def check_input(options: InputOptions) -> int | None:
    """Bases that a model will read; UserError where a record, a region or a name does not fit. None for standard input,
    which can be read but once.

    Records of one name are allowed where the order of the rows tells them apart, and counted in the log (reads and
    peaks often share a name); not where coordinates need the name.
    """
    if str(options.input) == "-":
        return None
    with Progress(f"checking {options.input}"):
        return _check_records(options) if options.bed is None else _check_regions(options)


def _check_regions(options: InputOptions) -> int:
    ends_in_bigwig = options.output is not None and options.output.suffix == ".bw"
    apart = isinstance(options, PredictOptions) and options.strand == "apart"
    last: dict[tuple[str, str], int] = {}
    bases = 0
    assert options.bed is not None
    for region in read_regions(options.input, options.bed, record_lengths(options.input)):
        bases += region.end - region.start
        if ends_in_bigwig:
            _require_apart(region, last, apart, options.output)
    return bases


def _check_records(options: InputOptions) -> int:
    window = options.window if isinstance(options, PredictOptions) else 0
    step = (isinstance(options, PredictOptions) and options.step) or window
    hashes, bases = array("q"), 0
    for record in read_stretches(options.input, column=options.column, circular=tuple(options.circular)):
        hashes.append(hash(record.name))  # 8 bytes a record
        size = record.end - record.start
        bases += min(size, window) * (1 + -(-max(0, size - window) // step)) if window else size
    sorted_hashes = np.sort(hashes)
    repeated = int((sorted_hashes[1:] == sorted_hashes[:-1]).sum())
    in_coordinates = options.output is not None and options.output.suffix in (".bw", ".bed")
    if repeated and (window or in_coordinates or options.circular):
        record_lengths(options.input, options.column)  # names the record
    if repeated:
        said = "%s: %d of %d records have the name of an earlier one; the rows are in the file's order"
        log.warning(said, options.input, repeated, len(hashes))
    return bases


def _require_apart(region: Stretch, last: dict[tuple[str, str], int], apart: bool, output: Path | None) -> None:
    """UserError where the region begins before the end of the one before it, in the same file."""
    key = region.name, "" if apart else region.strand
    if region.start < last.get(key, 0):
        raise UserError(f"{output}: a bigWig needs regions that are sorted and do not overlap; use .parquet")
    last[key] = region.end
