"""A slow, plain reading of the rules of docs/dataset_format.md, one base and one chunk at a time, to test the builder
against."""

import re
import zlib
from dataclasses import dataclass, field

from megadna.data.order import mix

GAPS = "-*."


@dataclass
class Expected:
    """Chunks of one source: (record number, contig start, letters, split 0 to 2), and the accounts."""

    chunks: list = field(default_factory=list)
    dropped: dict = field(default_factory=dict)
    records: list = field(default_factory=list)
    bases: int = 0
    gc: int = 0
    n: int = 0
    soft_masked: int = 0
    other: dict = field(default_factory=dict)

    def drop(self, reason, bases):
        if bases:
            self.dropped[reason] = self.dropped.get(reason, 0) + bases


def records_of(text):
    """(name, letters) of FASTA text with any line ends."""
    records = []
    for line in re.split("\r\n|\r|\n", text):
        if line.startswith(">"):
            words = line[1:].split(None, 1)
            records.append((words[0] if words else "unnamed", []))
        elif line.strip(" \t\v\f"):
            records[-1][1].append(re.sub("[ \t\v\f]", "", line))
    return [(name, "".join(parts)) for name, parts in records]


def region(seed, name, block, valid, test):
    run, place = divmod(block, 100)
    offset = (int(mix(seed, zlib.crc32(name.encode()), run)) >> 11) * 2.0**-53 * 100
    draw = (place * 37 + offset) % 100 / 100
    return 1 if draw < valid else 2 if draw < valid + test else 0


def expected(text, options, include=None, exclude=None):
    """What the builder must make of a source, without the rule for empty splits."""
    result = Expected()
    for number, (name, letters) in enumerate(records_of(text)):
        _count(result, letters)
        result.records.append((name, len(letters)))
        if len(letters) < options.min_record:
            result.drop("short_record", len(letters))
            continue
        stored = "".join("N" if letter in GAPS else letter for letter in letters).replace("U", "T").replace("u", "t")
        grid = 0
        for start, end in _segments(result, stored, name, options, include, exclude):
            grid = _chunk(result, number, name, stored, (start, end), grid, options)
    return result


def _count(result, letters):
    result.bases += len(letters)
    for letter in letters:
        upper = letter.upper()
        result.gc += upper in "GC"
        result.n += upper == "N"
        result.soft_masked += letter.islower()
        if upper not in "ACGTN":
            result.other[upper] = result.other.get(upper, 0) + 1


def _segments(result, letters, name, options, include, exclude):
    keep = [True] * len(letters)
    reason = [""] * len(letters)
    for place in range(len(letters)):
        if (include is not None and not _inside(include.get(name, []), place)) or _inside(
            (exclude or {}).get(name, []), place
        ):
            keep[place], reason[place] = False, "bed"
    if options.max_n_run is not None:
        for run in re.finditer("[Nn]+", letters):
            if len(run.group()) > options.max_n_run:
                for place in range(*run.span()):
                    if keep[place]:
                        keep[place], reason[place] = False, "n_run"
    for why in ("bed", "n_run"):
        result.drop(why, reason.count(why))
    segments, start = [], None
    for place in range(len(letters) + 1):
        inside = place < len(letters) and keep[place]
        if inside and start is None:
            start = place
        if not inside and start is not None:
            segments.append((start, place))
            start = None
    return segments


def _inside(intervals, place):
    return any(start <= place < end for start, end in intervals)


def _chunk(result, number, name, letters, segment, grid, options):
    """Chunks of a segment; the grid number after it."""
    length, stride = options.chunk_length, options.chunk_length - options.overlap
    starts, at = [], segment[0]
    while at < segment[1] and (not starts or segment[1] > starts[-1] + length):
        starts.append(at)
        at += stride
    splits = [
        region(options.seed, name, (grid + i) // options.block_chunks, options.valid_fraction, options.test_fraction)
        for i in range(len(starts))
    ]
    for i, start in enumerate(starts):
        text = letters[start : min(start + length, segment[1])]
        own = len(text) - (options.overlap if i else 0)
        shared = [splits[j] for j in range(len(starts)) if j != i and abs(starts[j] - start) < length]
        if any(other > splits[i] for other in shared):
            result.drop("overlap", own)
        elif 2 * sum(letter in "Nn" for letter in text) > len(text):
            result.drop("mostly_n", own)
        elif len(text) < min(options.min_tail, length):
            result.drop("short_tail", own)
        else:
            result.chunks.append((number, start, text, splits[i]))
    return grid + len(starts)
