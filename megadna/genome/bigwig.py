"""bigWig values -> the mean over each window; and tables of values -> bigWig files.

A base has a value, or NaN, or nothing is stored for it. NaN never counts. A base with nothing stored counts as 0 in a
coverage track, which omits zeros, and is ignored in a track of measurements such as methylation, which stores them.
pyBigWig's own means do not distinguish the three (one NaN makes a mean None), so values are read base by base.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyBigWig

from megadna.errors import UserError, require
from megadna.genome.annotation import on_genome
from megadna.genome.records import Genome
from megadna.log import get_logger

log = get_logger(__name__)

_SPAN = 1 << 20  # bases read at once
_GAP = 1 << 14  # up to so wide gaps between windows are read along: one read is faster than two
Uncovered = Literal["auto", "zero", "missing"]


def with_values(
    windows: pd.DataFrame, path: Path, genome: Genome, aliases: Path | None, uncovered: Uncovered
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The windows (contig, start, end) with the mean of the signal there as `label`, and counts: how bases without a
    value count, and the windows left out by reason. UserError if no window is left, if a chromosome has another length
    than the genome's contig, or if the file is not a bigWig."""
    signal = _open(path)
    try:
        theirs = _contigs(signal, path, genome, aliases)
        if uncovered == "auto":
            uncovered = _by_what_is_stored(signal, list(theirs.values()), path)
        found = pd.DataFrame({"mean": np.nan, "stored": False, "value": False}, index=windows.index)
        known = windows[windows["contig"].isin(theirs.keys())]
        for contig, rows in known.groupby("contig", sort=False):
            for group in _neighbours(rows.sort_values("start")):
                found.loc[group.index] = _means(signal, theirs[str(contig)], group, uncovered == "zero")
    except RuntimeError as error:
        raise UserError(f"{path}: the bigWig file is cut short or damaged ({error}); fetch it again") from error
    finally:
        signal.close()
    lacking, empty = ~windows["contig"].isin(theirs.keys()), found["mean"].isna()
    if lacking.any():
        names = ", ".join(sorted(set(windows["contig"][lacking]))[:20])
        log.warning("%d windows left out: %s has no chromosome %s", lacking.sum(), path, names)
    left_out = {
        "on a contig that the bigWig lacks": int(lacking.sum()),
        "no base with a value": int((empty & ~lacking & ~found["stored"]).sum()),
        "NaN alone": int((empty & found["stored"]).sum()),
    }
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    why = why or "none has a base with a value, and those without count as 0"
    require(bool(found["value"].any()), f"{path}: no value in any of {len(windows)} windows ({why}); take more windows")
    counts = {"left out for the bigWig": left_out, "with a bigWig value": int((~empty).sum()), "uncovered": uncovered}
    return windows.assign(label=found["mean"].astype(float))[~empty], counts


def _open(path: Path) -> Any:
    require(path.is_file(), f"{path}: no such bigWig file")
    try:
        signal = pyBigWig.open(str(path))
        wrong = "" if signal.isBigWig() else "a bigBed file, not a bigWig file"
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: not a bigWig file") from error
    require(not wrong, f"{path}: {wrong}")
    return signal


def _contigs(signal: Any, path: Path, genome: Genome, aliases: Path | None) -> dict[str, str]:
    """The bigWig's chromosome by the genome's contig."""
    sizes = signal.chroms()
    table = pd.DataFrame({"contig": list(sizes), "theirs": list(sizes), "start": 0, "end": 0})
    table = on_genome(table, genome, path, aliases, min_share=0)
    for row in table.itertuples():
        require(
            sizes[row.theirs] == genome.lengths[row.contig],
            f"{path}: chromosome {row.theirs} has {sizes[row.theirs]:,} bases, and {genome.lengths[row.contig]:,} in "
            f"{genome.path}: it belongs to another genome build; give the genome that it was made with",
        )
    return dict(zip(table["contig"], table["theirs"], strict=True))


def _by_what_is_stored(signal: Any, chromosomes: list[str], path: Path) -> Literal["zero", "missing"]:
    """How bases without a value most likely count: as 0 if the file stores only values above 0, on less than half of
    the bases (a track that covers most bases omits what could not be measured); the log says which."""
    sizes = signal.chroms()
    covered = 0
    for name in chromosomes:
        for start in range(0, sizes[name], _SPAN):
            values = signal.values(name, start, min(start + _SPAN, sizes[name]), numpy=True)
            if (values <= 0).any():  # NaN, stored or not, compares false
                text = "%s: bases without a value do not count, as it stores zeros or less (else: --uncovered zero)"
                log.info(text, path)
                return "missing"
            covered += int(np.count_nonzero(~np.isnan(values)))
    require(covered > 0, f"{path}: no value but NaN on the contigs of the genome")
    share = covered / sum(sizes[name] for name in chromosomes)
    rule, other = ("count as 0", "missing") if share < 0.5 else ("do not count", "zero")
    text = "%s: bases without a value %s, as it stores only values above 0, on %.2g of the bases (else: --uncovered %s)"
    log.info(text, path, rule, share, other)
    return "zero" if share < 0.5 else "missing"


def _neighbours(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Windows of one contig, sorted by start, in groups to read at once."""
    starts, ends = rows["start"].to_numpy(), rows["end"].to_numpy()
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or starts[at] - ends[at - 1] > _GAP or ends[at] - starts[first] > _SPAN:
            yield rows.iloc[first:at]
            first = at


def _means(signal: Any, name: str, rows: pd.DataFrame, zero: bool) -> pd.DataFrame:
    """For each window its mean (NaN if no base counts), whether anything is stored there, even NaN, and whether a value
    is."""
    starts, ends = rows["start"].tolist(), rows["end"].tolist()
    low, high = min(starts), max(ends)
    values = signal.values(name, low, high, numpy=True).astype(np.float64)
    covered = ~np.isnan(values)
    share = signal.stats(name, low, high, type="coverage", exact=True)[0] or 0.0
    if round(share * (high - low)) != np.count_nonzero(covered):  # NaN is stored, which `values` does not show
        for start, end, _ in signal.intervals(name, low, high):
            covered[max(0, start - low) : end - low] = True
    values[np.isinf(values)] = np.nan  # the logarithm of 0
    counts = ~np.isnan(values)
    if zero:
        values[~covered] = 0.0
    found = []
    for start, end in zip(starts, ends, strict=True):
        here = slice(start - low, end - low)
        piece = values[here][~np.isnan(values[here])]
        found.append((piece.mean() if len(piece) else np.nan, covered[here].any(), counts[here].any()))
    return pd.DataFrame(found, columns=["mean", "stored", "value"], index=rows.index)


def write_bigwigs(tables: Iterable[pd.DataFrame], paths: Mapping[tuple[str, str], Path], sizes: dict[str, int]) -> None:
    """Write a bigWig of contigs with these sizes for each (column, group), table by table; NaN is left out.

    tables: contig, start, end, group and the columns of values; contigs of all tables in the order of `sizes`. Of rows
    of a group that overlap, the later one begins where the earlier ends.
    """
    order = {name: number for number, name in enumerate(sizes)}
    files: dict[Path, Any] = {}
    last: dict[str, tuple[int, int]] = {}  # order and end of a group's last row
    with ExitStack() as stack:
        for table in tables:
            table = table.assign(order=table["contig"].map(order)).sort_values(["order", "start"])
            for group, rows in table.groupby("group"):
                rows = _after_each_other(rows, *last.get(str(group), (0, 0)))
                last[str(group)] = int(rows["order"].iloc[-1]), int(rows["end"].iloc[-1])
                for column, path in ((column, path) for (column, of), path in paths.items() if of == group):
                    if path not in files:
                        files[path] = pyBigWig.open(str(path), "w")
                        stack.callback(files[path].close)
                        files[path].addHeader(list(sizes.items()))
                    known = rows[rows[column].notna() & (rows["end"] > rows["start"])]
                    contigs, starts, ends, values = (known[c].tolist() for c in ("contig", "start", "end", column))
                    if contigs:
                        files[path].addEntries(contigs, starts, ends=ends, values=values)


def _after_each_other(rows: pd.DataFrame, last_order: int, last_end: int) -> pd.DataFrame:
    """The sorted rows, each from the end of the one before it."""
    orders, ends = rows["order"].to_numpy(), rows["end"].to_numpy()
    same = np.append(last_order, orders[:-1]) == orders
    return rows.assign(start=np.maximum(rows["start"], np.where(same, np.append(last_end, ends[:-1]), 0)))
