"""Files of any format -> FASTA text in blocks, and byte ranges that several workers can read at once.

FASTA as plain text, gzip, BGZF, zstd or 2bit, standard input ("-"); also tables and line files (megadna.genome.tables),
which are turned into FASTA text. Plain text and BGZF can be read in ranges; none begins or ends inside a header line.
"""

import os
import struct
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from isal import igzip, isal_zlib

from megadna.errors import UserError
from megadna.genome.fasta import MAX_HEADER
from megadna.genome.tables import TableFormat, table_blocks
from megadna.genome.twobit import TWOBIT_MAGICS, twobit_blocks

BLOCK = 1 << 18
_IsalError: Any = isal_zlib.IsalError  # its stub is no class
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
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a FASTA file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(18)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if table.lines or table.column or path.suffix in _SUFFIX_FORMATS or head[:4] == b"PAR1":
        return "table"
    if head[:2] == b"\x1f\x8b":
        bgzf = len(head) == 18 and head[3] & 4 and head[12:14] == b"BC"
        return "bgzf" if bgzf else "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    if head[:4] in TWOBIT_MAGICS:
        return "2bit"
    for magic, name in ((b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "zip")):
        if head.startswith(magic):
            raise UserError(f"{path}: a {name} archive; unpack it, or pack it as gzip, BGZF or zstd")
    return "plain"


def stream_blocks(path: Path, kind: str, table: TableFormat) -> Iterator[bytes | bytearray]:
    """The whole text of a source, block by block (a block is valid until the next one is asked for)."""
    if kind in ("gzip", "bgzf"):
        return in_thread(_gzip_blocks(path))
    if kind == "zstd":
        return in_thread(_zstd_blocks(path))
    if kind == "2bit":
        return twobit_blocks(path)
    if kind == "table":
        return table_blocks(path, table)
    if kind == "stdin":
        return _file_blocks(sys.stdin.buffer)
    return _plain_blocks(path, 0)


def _file_blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _plain_blocks(path: Path, start: int) -> Iterator[bytes | bytearray]:
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size := file.readinto(buffer):
            yield buffer if size == BLOCK else bytes(buffer[:size])


def _gzip_blocks(path: Path) -> Iterator[bytes]:
    try:
        with igzip.open(path, "rb") as file:
            yield from _file_blocks(file)
    except (EOFError, OSError, _IsalError) as error:
        raise UserError(f"{path}: the gzip file is cut short or damaged ({error}); fetch it again") from error


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    try:
        with pyarrow.input_stream(str(path), compression="zstd") as file:
            yield from _file_blocks(file)
    except OSError as error:
        raise UserError(f"{path}: the zstd file is cut short or damaged ({error}); fetch it again") from error


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
    for place, length in _bgzf_index(path):
        if start >= least + size:
            text = b""
            for block in _bgzf_blocks(path, place, least=1):
                text += block
                if _line_end(text) or len(text) > MAX_HEADER + 1:
                    break
            skip = _line_end(text)
            if skip or len(text) > MAX_HEADER + 1:
                least = start + skip
                yield TextRange(least, place=place, skip=skip, line_start=skip > 0)
        start += length


def _line_end(text: bytes) -> int:
    """Place behind the first line end; 0 if there is none."""
    return min((end + 1 for end in (text.find(b"\n"), text.find(b"\r")) if end >= 0), default=0)


def _bgzf_index(path: Path) -> Iterator[tuple[int, int]]:
    """(file offset, bytes of text) of each BGZF block (SAM specification, section 4.1)."""
    end = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < end:
            head = os.pread(file.fileno(), 18, offset)
            if len(head) < 18:
                raise UserError(f"{path}: the BGZF file is cut short; fetch it again")
            if head[:4] != b"\x1f\x8b\x08\x04" or head[12:14] != b"BC":
                raise UserError(f"{path}: damaged BGZF block at byte {offset}; fetch it again")
            size = struct.unpack("<H", head[16:18])[0] + 1
            tail = os.pread(file.fileno(), 4, offset + size - 4)
            if offset + size > end or len(tail) < 4:
                raise UserError(f"{path}: the BGZF file is cut short; fetch it again")
            yield offset, struct.unpack("<I", tail)[0]
            offset += size


def range_blocks(path: Path, kind: str, text_range: TextRange) -> Iterator[bytes | bytearray]:
    """The text of a range, block by block."""
    start, end, at = text_range.start, text_range.end, text_range.start - text_range.skip
    for block in _plain_blocks(path, text_range.place) if kind == "plain" else _bgzf_blocks(path, text_range.place):
        whole = start <= at and at + len(block) <= end
        yield block if whole else block[max(0, start - at) : end - at]
        at += len(block)
        if at >= end:
            break


def _bgzf_blocks(path: Path, place: int, least: int = BLOCK) -> Iterator[bytes]:
    """Text from the compressed block at `place` on, in blocks of at least `least`."""
    texts, held = [], 0
    try:
        with path.open("rb") as file:
            file.seek(place)
            while head := file.read(18):
                size = struct.unpack("<H", head[16:18])[0] + 1
                data = file.read(max(0, size - 18))
                text = isal_zlib.decompress(data[:-8], wbits=-15)
                check, length = struct.unpack("<II", data[-8:])
                if len(text) != length or isal_zlib.crc32(text) != check:
                    raise UserError(f"{path}: BGZF block at byte {file.tell() - size} is damaged; fetch it again")
                texts.append(text)
                held += length
                if held >= least:
                    yield b"".join(texts)
                    texts, held = [], 0
    except (struct.error, _IsalError) as error:
        raise UserError(f"{path}: the BGZF file is cut short or damaged ({error}); fetch it again") from error
    if held:
        yield b"".join(texts)
