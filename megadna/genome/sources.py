"""Sequence files of any format -> FASTA text in blocks, and byte ranges that several workers can read at once.

In:  FASTA as plain text, gzip, BGZF, zstd or UCSC 2bit (genome.ucsc.edu/FAQ/FAQformat.html#format7; soft mask and runs
     of N are applied), standard input ("-"), or tables (megadna.genome.tables).
Out: FASTA text. Plain text can be read in ranges; none begins or ends inside a header line.
"""

import os
import struct
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megadna.errors import UserError
from megadna.genome.fasta import MAX_HEADER
from megadna.genome.packed import BLOCK, file_blocks, packing, text_blocks, unpacked_blocks
from megadna.genome.tables import table_blocks

TWOBIT_MAGICS = (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43")
_STEP = 1 << 18  # bases decoded at a time; a multiple of 4
_BASES = np.frombuffer(b"TCAG", np.uint8)
_FOUR = _BASES[(np.arange(256)[:, None] >> np.array([6, 4, 2, 0])) & 3]


def twobit_blocks(path: Path) -> Iterator[bytes]:
    """FASTA text of every sequence, in the file's order; UserError where the file is cut short or damaged."""
    try:
        with path.open("rb") as file:
            order = "<" if file.read(4) == TWOBIT_MAGICS[0] else ">"
            version, count, _ = struct.unpack(order + "III", file.read(12))
            if version not in (0, 1):
                raise UserError(f"{path}: 2bit version {version} is not known (0 and 1 are)")
            index = []
            for _ in range(count):
                name = file.read(file.read(1)[0])
                offset = struct.unpack(order + ("Q" if version else "I"), file.read(8 if version else 4))[0]
                if b"\n" in name or b"\r" in name:
                    raise ValueError("a line end in a name")
                index.append((name, offset))
            end = path.stat().st_size
            room = end  # records that share bytes could make a small file endless
            for name, offset in index:
                yield b">" + name + b"\n"
                for bases in _sequence(file, offset, order, end):
                    if file.tell() - offset > room:
                        raise ValueError("records that overlap")
                    yield bases
                room -= file.tell() - offset
                yield b"\n"
    except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the 2bit file is cut short or damaged; fetch it again") from error


def _sequence(file: BinaryIO, offset: int, order: str, end: int) -> Iterator[bytes]:
    """DNA of the sequence whose record begins at `offset` of a file of `end` bytes."""
    file.seek(offset)
    size = struct.unpack(order + "I", file.read(4))[0]
    n_starts, n_ends = _blocks(file, order, size, end)
    mask_starts, mask_ends = _blocks(file, order, size, end)
    file.read(4)
    for first in range(0, size, _STEP):
        length = min(_STEP, size - first)
        packed = np.frombuffer(file.read(-(-length // 4)), np.uint8)
        if len(packed) < -(-length // 4):
            raise ValueError("cut short")
        bases = _FOUR[packed].reshape(-1)[:length].copy()
        for start, end in _within(n_starts, n_ends, first, length):
            bases[start:end] = ord("N")
        for start, end in _within(mask_starts, mask_ends, first, length):
            bases[start:end] |= 0x20
        yield bases.tobytes()


def _blocks(file: BinaryIO, order: str, size: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of a list of blocks of a sequence of `size` bases; ValueError unless ascending and within it."""
    count = struct.unpack(order + "I", file.read(4))[0]
    if 8 * count > end - file.tell():  # before memory is set aside for them
        raise ValueError("cut short")
    starts, sizes = np.frombuffer(file.read(8 * count), order + "u4").astype(np.int64).reshape(2, count)
    ends = starts + sizes
    if count and ((starts[1:] < ends[:-1]).any() or ends[-1] > size):
        raise ValueError("blocks that overlap or pass the end")
    return starts, ends


def _within(starts: np.ndarray, ends: np.ndarray, first: int, length: int) -> Iterator[tuple[int, int]]:
    """The blocks that overlap [first, first + length), relative to first."""
    low, high = np.searchsorted(ends, first, "right"), np.searchsorted(starts, first + length, "left")
    for start, end in zip(starts[low:high].tolist(), ends[low:high].tolist(), strict=True):
        yield max(0, start - first), min(length, end - first)


STDIN = Path("-")
_AHEAD = 8  # blocks unpacked ahead
_TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class SequenceFile:
    """One input file."""

    path: Path
    name: str
    """Name of the genome, unique among the inputs of a command."""
    kind: str
    """Format: plain, gzip (BGZF too), zstd, 2bit, table or stdin."""
    size: int
    """Bytes on disk; 0 for standard input."""
    column: str = ""
    """Column of a table that holds the sequences."""


@dataclass(frozen=True)
class TextRange:
    """The part of a plain file that one worker reads."""

    start: int = 0
    """First byte."""
    end: int = sys.maxsize
    """One past the last byte; sys.maxsize for the rest of the file."""
    line_start: bool = True
    """Whether it begins with a line; else inside a sequence line."""

    @property
    def last(self) -> bool:
        """Whether the file ends with it."""
        return self.end == sys.maxsize


def detect_format(path: Path, column: str = "") -> str:
    """plain, gzip, zstd, 2bit, table or stdin; UserError for what cannot be read."""
    if path == STDIN:
        return "stdin"
    kind = packing(path)
    if column or path.suffix in _TABLE_SUFFIXES:
        return "table"
    if kind:
        return kind
    with path.open("rb") as file:
        head = file.read(4)
    return "table" if head == b"PAR1" else "2bit" if head in TWOBIT_MAGICS else "plain"


def open_sequences(path: Path, column: str = "") -> SequenceFile:
    """The file, with its format; the sequences of a table are in `column`, or else in one named sequence."""
    column = column or "sequence" * path.name.removesuffix(".gz").endswith(_TABLE_SUFFIXES)
    return SequenceFile(path, path.name, detect_format(path, column), 0, column)


def stream_blocks(source: SequenceFile, part: TextRange | None = None) -> Iterator[bytes | bytearray]:
    """The text of a file (`part`: a range of a plain one), block by block; a block is valid until the next one is asked
    for."""
    if source.kind in ("gzip", "zstd"):
        return _in_thread(unpacked_blocks(source.path, source.kind))
    if source.kind == "2bit":
        return twobit_blocks(source.path)
    if source.kind == "table":
        return table_blocks(source.path, source.column)
    if source.kind == "stdin":
        packed = "packed; unpack it before the pipe (gzip -dc FILE | ...)"
        return text_blocks(file_blocks(sys.stdin.buffer), "standard input", packed)
    return _plain_blocks(source.path, part or TextRange())


def _plain_blocks(path: Path, part: TextRange) -> Iterator[bytes | bytearray]:
    buffer, left = bytearray(BLOCK), part.end - part.start
    with path.open("rb", buffering=0) as file:
        file.seek(part.start)
        while left > 0 and (size := min(left, file.readinto(buffer))):
            yield buffer if size == BLOCK else bytes(buffer[:size])
            left -= size


def _in_thread(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks of an iterator that runs ahead in a thread of its own; its exceptions come through."""
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(next, blocks, b"") for _ in range(_AHEAD))
        while block := ahead.popleft().result():
            ahead.append(pool.submit(next, blocks, b""))
            yield block


def split_ranges(path: Path, size: int) -> Iterator[TextRange]:
    """Ranges of about `size` bytes of a plain file, in order.

    A range begins after the first line end past a multiple of `size`. Where a megabyte holds none, it begins right
    there: no header line is as long, so the cut is inside a sequence line.
    """
    before, total = TextRange(), path.stat().st_size
    with path.open("rb") as file:
        for start in range(size, total, size):
            for look in (1 << 10, MAX_HEADER + 2):  # most lines are short
                text = os.pread(file.fileno(), min(look, MAX_HEADER + 2), start)
                cut = start + _line_end(text)
                if cut > start:
                    break
            if start < cut < min(start + size, total) or (cut == start and len(text) > MAX_HEADER + 1):
                yield replace(before, end=cut)
                before = TextRange(cut, line_start=cut > start)
    yield before


def _line_end(text: bytes) -> int:
    """Position after the first line end; 0 if there is none."""
    return min((end + 1 for end in (text.find(b"\n"), text.find(b"\r")) if end >= 0), default=0)
