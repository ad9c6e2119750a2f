"""Files of any format -> FASTA text in blocks, and byte ranges that several workers can read at once.

FASTA as plain text, gzip, BGZF, zstd or 2bit, standard input ("-"); also tables and line files (megadna.genome.tables),
which are turned into FASTA text. Plain text and BGZF can be read in ranges; a record belongs to the range in which its
header line begins, and a header line is read to its end.
"""

import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
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

    start: int
    """First byte of the text."""
    end: int
    """One past the last byte; -1 for a text of unknown length, read as one stream."""
    place: int = 0
    """Where to seek in the file: byte offset (plain) or offset of the compressed block (BGZF)."""
    last: bool = True
    """Whether the source ends with it."""


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
        return in_thread(lambda: _gzip_blocks(path))
    if kind == "zstd":
        return in_thread(lambda: _zstd_blocks(path))
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
        with path.open("rb") as file:
            frame = zstandard.ZstdDecompressor().decompressobj()
            whole = True
            while data := file.read(BLOCK // 4):
                while data:
                    whole = False
                    text = frame.decompress(data)
                    yield from (text[at : at + BLOCK] for at in range(0, len(text), BLOCK))
                    data = b""
                    if frame.eof:
                        data, whole = frame.unused_data, True
                        frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise UserError(f"{path}: the zstd file is damaged ({error}); fetch it again") from error
    if not whole:
        raise UserError(f"{path}: the zstd file is cut short; fetch it again")


def in_thread(make: Callable[[], Iterator[bytes]], depth: int = 8) -> Iterator[bytes]:
    """The items of an iterator that runs in a thread of its own; its exceptions come through."""
    items: queue.Queue[bytes | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: bytes | BaseException | None) -> None:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in make():
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def split_ranges(path: Path, kind: str, size: int) -> list[TextRange]:
    """Ranges of about `size` bytes of text for a plain or BGZF file, in order."""
    if kind == "plain":
        end = path.stat().st_size
        cuts = [*range(0, max(end, 1), size), end]
        pairs = list(pairwise(cuts)) or [(0, 0)]
        return [TextRange(a, b, a, b == end) for a, b in pairs]
    ranges: list[TextRange] = []
    start = text = place = 0
    for offset, length in _bgzf_index(path):
        if text - start >= size:
            ranges.append(TextRange(start, text, place, False))
            start, place = text, offset
        text += length
    ranges.append(TextRange(start, text, place, True))
    return ranges


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
    """Text from the range's start on, past its end, to the end of the file."""
    if kind == "plain":
        return _plain_blocks(path, text_range.place)
    return _bgzf_blocks(path, text_range.place)


def _bgzf_blocks(path: Path, place: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(place)
            while head := file.read(18):
                size = struct.unpack("<H", head[16:18])[0] + 1
                data = file.read(size - 18)
                text = isal_zlib.decompress(data[:-8], wbits=-15)
                check, length = struct.unpack("<II", data[-8:])
                if len(text) != length or isal_zlib.crc32(text) != check:
                    raise UserError(f"{path}: BGZF block at byte {file.tell() - size} is damaged; fetch it again")
                if text:
                    yield text
    except (struct.error, _IsalError) as error:
        raise UserError(f"{path}: the BGZF file is cut short or damaged ({error}); fetch it again") from error


def line_state(path: Path, kind: str, text_range: TextRange, before: TextRange | None) -> tuple[bool, bool]:
    """(at the start of a line, inside a header line) at the first byte of a range. `before`: the range before it."""
    if before is None:
        return True, False
    tail = b""
    if kind == "plain":
        with path.open("rb") as file:
            step = 1 << 12
            while len(tail) < min(MAX_HEADER, text_range.start) and _last_line_end(tail) < 0:
                start = max(0, text_range.start - len(tail) - step)
                tail = os.pread(file.fileno(), text_range.start - len(tail) - start, start) + tail
                step *= 4
    else:
        seen = before.start
        for block in _bgzf_blocks(path, before.place):
            tail, seen = (tail + block)[-MAX_HEADER:], seen + len(block)
            if seen >= text_range.start:
                break
    at = _last_line_end(tail)
    line = tail[at + 1 :]
    whole_line = at >= 0 or len(tail) >= text_range.start
    return not line and at >= 0, whole_line and line.startswith(b">")


def _last_line_end(text: bytes) -> int:
    return max(text.rfind(b"\n"), text.rfind(b"\r"))
