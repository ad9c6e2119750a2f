"""Files of any format -> FASTA text in blocks, and byte ranges that several workers can read at once.

FASTA as plain text, gzip, BGZF, zstd or 2bit, standard input ("-"); also tables and line files (megadna.genome.tables),
which are turned into FASTA text. Plain text and BGZF can be read in ranges; none begins or ends inside a header line.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from megadna.genome.fasta import MAX_HEADER
from megadna.genome.packed import BLOCK, bgzf_blocks, bgzf_index, file_blocks, packing, refuse, unpacked_blocks
from megadna.genome.tables import TableFormat, table_blocks
from megadna.genome.twobit import TWOBIT_MAGICS, twobit_blocks

STDIN = Path("-")
_SUFFIX_FORMATS = {".parquet": "table", ".csv": "table", ".tsv": "table"}


@dataclass(frozen=True)
class TextRange:
    """A stretch of a source's text that one worker reads."""

    start: int = 0
    """First byte of the text."""
    end: int = sys.maxsize
    """One past the last byte; sys.maxsize for the rest of the text."""
    place: int = 0
    """Where to seek in the file: byte offset (plain) or offset of a compressed block (BGZF)."""
    skip: int = 0
    """Bytes of text between `place` and `start`."""
    line_start: bool = True
    """Whether a line begins with it; else it begins inside a sequence line."""

    @property
    def last(self) -> bool:
        """Whether the source ends with it."""
        return self.end == sys.maxsize


def detect_format(path: Path, table: TableFormat) -> str:
    """plain, gzip, bgzf, zstd, 2bit, table or stdin; UserError for what cannot be read."""
    if path == STDIN:
        return "stdin"
    kind = packing(path)
    if table.lines or table.column or path.suffix in _SUFFIX_FORMATS:
        return "table"
    if kind:
        return kind
    with path.open("rb") as file:
        head = file.read(4)
    return "table" if head == b"PAR1" else "2bit" if head in TWOBIT_MAGICS else "plain"


def stream_blocks(path: Path, kind: str, table: TableFormat) -> Iterator[bytes | bytearray]:
    """The whole text of a source, block by block (a block is valid until the next one is asked for)."""
    if kind in ("gzip", "bgzf", "zstd"):
        return in_thread(unpacked_blocks(path, kind))
    if kind == "2bit":
        return twobit_blocks(path)
    if kind == "table":
        return table_blocks(path, table)
    if kind == "stdin":
        return _stdin_blocks()
    return _plain_blocks(path, 0)


def _stdin_blocks() -> Iterator[bytes]:
    blocks = file_blocks(sys.stdin.buffer)
    for first in blocks:
        refuse("standard input", first[:18], "packed; unpack it before the pipe (gzip -dc FILE | ...)")
        yield first
        yield from blocks


def _plain_blocks(path: Path, start: int) -> Iterator[bytes | bytearray]:
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size := file.readinto(buffer):
            yield buffer if size == BLOCK else bytes(buffer[:size])


def in_thread(blocks: Iterator[bytes], depth: int = 8) -> Iterator[bytes]:
    """The items of an iterator that runs ahead in a thread of its own; its exceptions come through."""
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(next, blocks, b"") for _ in range(depth))
        while block := ahead.popleft().result():
            ahead.append(pool.submit(next, blocks, b""))
            yield block


def split_ranges(path: Path, kind: str, size: int) -> Iterator[TextRange]:
    """Ranges of about `size` bytes of text for a plain or BGZF file, in order.

    A range begins behind the first line end after a multiple of `size`. Where a megabyte holds none, it begins right
    there: no header line is as long, so the place lies inside a sequence line.
    """
    before = TextRange()
    for cut in _plain_cuts(path, size) if kind == "plain" else _bgzf_cuts(path, size):
        yield replace(before, end=cut.start)
        before = cut
    yield before


def _plain_cuts(path: Path, size: int) -> Iterator[TextRange]:
    total = path.stat().st_size
    with path.open("rb") as file:
        for start in range(size, total, size):
            for look in (1 << 10, MAX_HEADER + 2):  # most lines are short
                text = os.pread(file.fileno(), min(look, MAX_HEADER + 2), start)
                cut = start + _line_end(text)
                if cut > start:
                    break
            if start < cut < min(start + size, total):
                yield TextRange(cut, place=cut)
            elif cut == start and len(text) > MAX_HEADER + 1:
                yield TextRange(start, place=start, line_start=False)


def _bgzf_cuts(path: Path, size: int) -> Iterator[TextRange]:
    start = least = 0
    for place, length in bgzf_index(path):
        if start >= least + size:
            text = b""
            for block in bgzf_blocks(path, place, least=1):
                text += block
                if _line_end(text) or len(text) > MAX_HEADER + 1:
                    break
            skip = _line_end(text)
            if skip or len(text) > MAX_HEADER + 1:
                least = start + skip
                yield TextRange(least, place=place, skip=skip, line_start=skip > 0)
        start += length


def _line_end(text: bytes) -> int:
    """Position after the first line end; 0 if there is none."""
    return min((end + 1 for end in (text.find(b"\n"), text.find(b"\r")) if end >= 0), default=0)


def range_blocks(path: Path, kind: str, text_range: TextRange) -> Iterator[bytes | bytearray]:
    """The text of a range, block by block."""
    start, end, at = text_range.start, text_range.end, text_range.start - text_range.skip
    if kind == "plain":
        blocks = _plain_blocks(path, text_range.place)
    else:
        blocks = bgzf_blocks(path, text_range.place) if text_range.place else unpacked_blocks(path, kind)
    for block in blocks:
        whole = start <= at and at + len(block) <= end
        yield block if whole else block[max(0, start - at) : end - at]
        at += len(block)
        if at >= end:
            break
