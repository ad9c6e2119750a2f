"""What can be said of the input and output of embed and predict before torch is imported and a model loaded.

One pass over the input, by the readers that run later: what they would refuse after hours is refused now. Reading is
a small share of a run: a model takes far longer for a base.
"""

from array import array
from pathlib import Path

import numpy as np

from megadna.downstream.options import InputOptions, PredictOptions
from megadna.downstream.sequences import Stretch, read_regions, read_stretches, record_lengths
from megadna.downstream.tables_out import check_output
from megadna.errors import UserError
from megadna.log import get_logger

log = get_logger(__name__)
PREDICTION_ENDINGS = (".parquet", ".bed", ".bw")


def check_files(options: InputOptions, endings: tuple[str, ...]) -> None:
    """UserError where the output cannot be written, or the input not be read."""
    if options.output is None:
        raise UserError(f"say where to write with --output ({', '.join(endings)})")
    check_output(options.output, endings)
    check_input(options)


def check_input(options: InputOptions) -> None:
    """UserError where a record, a region or a name does not fit.

    Records of one name are allowed where the order of the rows tells them apart, and counted in the log (reads and
    peaks often share a name); not where coordinates need the name.
    """
    ends_in_bigwig = options.output is not None and options.output.suffix == ".bw"
    if options.bed is not None:
        regions = read_regions(options.input, options.bed, record_lengths(options.input))
        if not ends_in_bigwig:
            next(regions, None)  # all lines are checked before the first region comes
            return
        apart = isinstance(options, PredictOptions) and options.strand == "apart"
        last: dict[tuple[str, str], int] = {}
        for region in regions:
            _require_apart(region, last, apart, options.output)
        return
    records = read_stretches(options.input, column=options.column, circular=tuple(options.circular))
    hashes = np.sort(array("q", (hash(record.name) for record in records)))  # 8 bytes a record
    repeated = int((hashes[1:] == hashes[:-1]).sum())
    windows = isinstance(options, PredictOptions) and options.window > 0
    in_coordinates = options.output is not None and options.output.suffix in (".bw", ".bed")
    if repeated and (windows or in_coordinates or options.circular):
        record_lengths(options.input, options.column)  # names the record
    if repeated:
        said = "%s: %d of %d records have the name of an earlier one; the rows are in the file's order"
        log.warning(said, options.input, repeated, len(hashes))


def _require_apart(region: Stretch, last: dict[tuple[str, str], int], apart: bool, output: Path | None) -> None:
    """UserError where the region begins before the end of the one before it, in the same file."""
    key = region.name, "" if apart else region.strand
    if region.start < last.get(key, 0):
        raise UserError(f"{output}: a bigWig needs regions that are sorted and do not overlap; use .parquet")
    last[key] = region.end
