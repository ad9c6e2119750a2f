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
        stored = "".join("N" if letter in GAPS else letter for letter in letters).replace("U", "T").replace("u", "t")
        grid = 0
        for start, end in _segments(result, stored, name, include, exclude):
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


def _segments(result, letters, name, include, exclude):
    def is_kept(position):
        included = include is None or _inside(include.get(name, []), position)
        return included and not _inside((exclude or {}).get(name, []), position)

    keep = [is_kept(position) for position in range(len(letters))]
    result.drop("bed", keep.count(False))
    segments, start = [], None
    for position in range(len(letters) + 1):
        inside = position < len(letters) and keep[position]
        if inside and start is None:
            start = position
        if not inside and start is not None:
            segments.append((start, position))
            start = None
    return segments


def _inside(intervals, position):
    return any(start <= position < end for start, end in intervals)


def _chunk(result, number, name, letters, segment, grid, options):
    """Chunks of a segment; the number of the chunk after it."""
    length = options.chunk_length
    for start in range(segment[0], segment[1], length):
        block = grid // options.block_chunks
        split = region(options.seed, name, block, options.valid_fraction, options.test_fraction)
        text = letters[start : min(start + length, segment[1])]
        if 2 * sum(letter in "Nn" for letter in text) > len(text):
            result.drop("mostly_n", len(text))
        elif len(text) < min(options.min_tail, length):
            result.drop("short_tail", len(text))
        else:
            result.chunks.append((number, start, text, split))
        grid += 1
    return grid
