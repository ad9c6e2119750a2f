"""Compressed files -> their bytes: gzip (several members, BGZF) and zstd (several frames, pzstd's too), or plain ones.

Every reader opens files here, so that a file that is cut short, packed twice, UTF-16 or another kind of archive gives
one and the same message everywhere, and the same bytes give the same text wherever reading begins.
"""

import io
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from isal import igzip, isal_zlib

from megadna.errors import UserError

BLOCK = 1 << 18
_IsalError: Any = isal_zlib.IsalError  # its stub is no class
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_OTHERS = (
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "packed as bzip2; unpack it (bunzip2)"),
    (rb"\xfd7zXZ", "packed as xz; unpack it (unxz)"),
    (rb"PK\x03\x04", "packed as zip; unpack it (unzip)"),
    (rb"\x04\x22\x4d\x18", "packed as lz4; unpack it (unlz4)"),
    (rb"\x1f\x9d", "packed by compress (.Z); unpack it (gzip -d)"),
    (rb"7z\xbc\xaf\x27\x1c", "packed as 7z; unpack it (7z x)"),
    (rb"BAM\x01|CRAM[\x02\x03]", "a BAM or CRAM file, not text; convert it (samtools fasta)"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text; convert it (iconv -f UTF-16 -t UTF-8)"),
)
_PACKED = rb"\x1f\x8b|\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"
_INSIDE = (
    (rb"PAR1", "a packed Parquet file; unpack it (gzip -d, zstd -d)"),
    (rb"\x43\x27\x41\x1a|\x1a\x41\x27\x43", "a packed 2bit file; unpack it (gzip -d, zstd -d)"),
)


def packing(path: Path) -> str:
    """gzip (BGZF too), zstd, or "" for what is not packed; UserError for a file that is missing, UTF-16, packed in
    another way, or BGZF without its end."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    skipped = 0
    try:
        with path.open("rb") as file:
            head = file.read(18)
            if head[:2] == _GZIP:
                _require_end(path, file)
                return "gzip"
            # Frames to be skipped may precede those of zstd (RFC 8878, section 3.1.2; pzstd writes them) and of LZ4.
            while len(head) >= 8 and head[0] >> 4 == 5 and head[1:4] == b"\x2a\x4d\x18":
                skipped += 8 + int.from_bytes(head[4:8], "little")
                file.seek(skipped)
                head = file.read(18)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if head[:4] == _ZSTD or (skipped and not head):
        return "zstd"
    refuse(path, head)
    return ""


def _require_end(path: Path, file: BinaryIO) -> None:
    """UserError where the last BGZF block is not an empty one: without it a cut between two blocks looks whole. Nothing
    where the file does not begin with BGZF; gzip members and zeros may follow the last block."""
    file.seek(max(0, path.stat().st_size - len(_BGZF_END)))
    if file.read() == _BGZF_END:
        return
    offset, is_end = 0, True
    while _is_bgzf(head := os.pread(file.fileno(), 18, offset)):
        offset += struct.unpack("<H", head[16:18])[0] + 1
        is_end = os.pread(file.fileno(), 4, offset - 4) == bytes(4)  # the number of bytes in the block
    if not is_end:
        raise UserError(
            f"{path}: the BGZF file is cut short: it lacks its end block; fetch it again (if it is complete "
            "nevertheless, `bgzip -dc FILE | bgzip > NEW` adds the block)"
        )


def _is_bgzf(head: bytes) -> bool:
    """Whether a BGZF block begins with these 18 bytes (SAM specification, section 4.1): a gzip member whose only extra
    field is BC."""
    return len(head) >= 18 and head[:4] == b"\x1f\x8b\x08\x04" and head[10:16] == b"\x06\x00BC\x02\x00"


def refuse(path: Path | str, head: bytes, packed: str = "") -> None:
    """UserError where these first bytes are known not to be text. `packed`: the message if they are packed and may not
    be."""
    if packed and re.match(_PACKED, head):
        raise UserError(f"{path}: {packed}")
    for magic, what in _INSIDE + _OTHERS if packed else _OTHERS:
        if re.match(magic, head):
            raise UserError(f"{path}: {what}")


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if it is packed, for reading from its beginning on; UserError as `packing` and
    `unpacked_blocks` raise it, while it is read too."""
    kind = packing(path)
    return as_file(unpacked_blocks(path, kind)) if kind else path.open("rb")


def unpacked_blocks(path: Path, kind: str) -> Iterator[bytes]:
    """The bytes in a file packed as `kind` says, block by block; UserError where it is cut short or damaged, or
    contains something packed again."""
    blocks = _gzip(path) if kind == "gzip" else _zstd(path)
    return text_blocks(blocks, path, "packed twice; unpack it once (gzip -d, zstd -d)")


def text_blocks(blocks: Iterator[bytes], where: Path | str, packed: str) -> Iterator[bytes]:
    """The blocks; UserError where they begin as no text does (`packed`: its message where they are packed)."""
    for first in blocks:
        refuse(where, first[:18], packed)
        yield first
        yield from blocks


def file_blocks(file: Any) -> Iterator[bytes]:
    """The rest of a file, block by block."""
    while block := file.read(BLOCK):
        yield block


def _gzip(path: Path) -> Iterator[bytes]:
    try:
        with igzip.open(path, "rb") as file:
            yield from file_blocks(file)
    except (EOFError, OSError, _IsalError) as error:
        if str(error).startswith("Not a gzipped file"):  # the file began as one
            raise UserError(f"{path}: other bytes follow its gzip data; fetch it again") from error
        raise UserError(f"{path}: the gzip file is cut short or damaged ({error}); fetch it again") from error


def _zstd(path: Path) -> Iterator[bytes]:
    try:
        with pyarrow.input_stream(str(path), compression="zstd") as file:
            yield from file_blocks(file)
    except OSError as error:
        raise UserError(f"{path}: the zstd file is cut short or damaged ({error}); fetch it again") from error


class _Blocks(io.RawIOBase):
    """A file of the bytes of an iterator."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._rest = iter(blocks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def as_file(blocks: Iterable[bytes]) -> io.BufferedReader:
    """A file that reads these blocks."""
    return io.BufferedReader(_Blocks(blocks), BLOCK)
