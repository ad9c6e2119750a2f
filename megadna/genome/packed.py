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
    """gzip, bgzf, zstd, or "" for what is not packed; UserError for a file that is missing, UTF-16, packed in another
    way, or BGZF without its end."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            kind, head = _packing_of(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if kind == "bgzf":
        _require_end(path)
    if not kind:
        refuse(path, head)
    return kind


def _packing_of(file: BinaryIO) -> tuple[str, bytes]:
    """As `packing`, and the first bytes."""
    head = file.read(18)
    if head[:2] == _GZIP:
        return "bgzf" if _is_bgzf(head) else "gzip", head
    skipped = 0
    # Frames to be skipped may precede those of zstd (RFC 8878, section 3.1.2), as pzstd writes them, and of LZ4.
    while len(head) >= 8 and head[0] >> 4 == 5 and head[1:4] == b"\x2a\x4d\x18":
        skipped += 8 + int.from_bytes(head[4:8], "little")
        file.seek(skipped)
        head = file.read(18)
    return "zstd" if head[:4] == _ZSTD or (skipped and not head) else "", head


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
    blocks = bgzf_blocks(path) if kind == "bgzf" else _gzip_blocks(path, 0) if kind == "gzip" else _zstd(path)
    for first in blocks:
        refuse(path, first[:18], "packed twice; unpack it once (gzip -d, zstd -d)")
        yield first
        yield from blocks


def file_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, block by block."""
    while block := file.read(BLOCK):
        yield block


def _gzip_blocks(path: Path, offset: int) -> Iterator[bytes]:
    """Text of the gzip members from byte `offset` on; zeros may follow a member."""
    try:
        with path.open("rb") as packed:
            packed.seek(_after_zeros(packed, offset) if offset else 0)
            if offset and not packed.peek(1):
                return
            with igzip.open(packed, "rb") as file:
                yield from file_blocks(file)
    except (EOFError, OSError, _IsalError) as error:
        if str(error).startswith("Not a gzipped file"):  # the file began as one
            raise UserError(f"{path}: other bytes follow its gzip data; fetch it again") from error
        raise UserError(f"{path}: the gzip file is cut short or damaged ({error}); fetch it again") from error


def _after_zeros(file: BinaryIO, offset: int) -> int:
    """End of the zeros that begin at byte `offset`."""
    file.seek(offset)
    for block in file_blocks(file):
        if rest := block.lstrip(b"\0"):
            return offset + len(block) - len(rest)
        offset += len(block)
    return offset


def _zstd(path: Path) -> Iterator[bytes]:
    try:
        with pyarrow.input_stream(str(path), compression="zstd") as file:
            yield from file_blocks(file)
    except OSError as error:
        raise UserError(f"{path}: the zstd file is cut short or damaged ({error}); fetch it again") from error


def _is_bgzf(head: bytes) -> bool:
    """Whether a BGZF block begins with these 18 bytes (SAM specification, section 4.1): a gzip member whose only extra
    field is BC."""
    return len(head) >= 18 and head[:4] == b"\x1f\x8b\x08\x04" and head[10:16] == b"\x06\x00BC\x02\x00"


def bgzf_index(path: Path) -> Iterator[tuple[int, int]]:
    """(file offset, bytes of text) of each BGZF block; gzip members or zeros after them are not listed."""
    end = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < end:
            head = os.pread(file.fileno(), 18, offset)
            if not _is_bgzf(head):
                if len(head) < 18 and (b"\x1f\x8b\x08\x04").startswith(head[:4]):
                    raise _cut(path)
                return
            size = struct.unpack("<H", head[16:18])[0] + 1
            tail = os.pread(file.fileno(), 4, offset + size - 4)
            if offset + size > end or len(tail) < 4:
                raise _cut(path)
            yield offset, struct.unpack("<I", tail)[0]
            offset += size


def _cut(path: Path) -> UserError:
    return UserError(
        f"{path}: the BGZF file is cut short: it lacks its end block; fetch it again (if it is complete nevertheless, "
        "`bgzip -dc FILE | bgzip > NEW` adds the block)"
    )


def _require_end(path: Path) -> None:
    """UserError where the last BGZF block is not an empty one: without it a cut between two blocks looks whole."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_BGZF_END)))
        if file.read() == _BGZF_END:
            return
    length = 1
    for _, length in bgzf_index(path):  # noqa: B007 - the last one counts
        pass
    if length:
        raise _cut(path)


def bgzf_blocks(path: Path, offset: int = 0, least: int = BLOCK) -> Iterator[bytes]:
    """Text from the BGZF block at byte `offset` on, in blocks of at least `least` bytes."""
    texts, held = [], 0
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while _is_bgzf(head := file.read(18)):
                size = struct.unpack("<H", head[16:18])[0] + 1
                data = file.read(max(0, size - 18))
                text = isal_zlib.decompress(data[:-8], wbits=-15)
                check, length = struct.unpack("<II", data[-8:])
                if len(text) != length or isal_zlib.crc32(text) != check:
                    raise UserError(f"{path}: BGZF block at byte {offset} is damaged; fetch it again")
                offset += size
                texts.append(text)
                held += length
                if held >= least:
                    yield b"".join(texts)
                    texts, held = [], 0
    except (struct.error, _IsalError) as error:
        raise UserError(f"{path}: the BGZF file is cut short or damaged ({error}); fetch it again") from error
    if held:
        yield b"".join(texts)
    if head:
        yield from _gzip_blocks(path, offset)


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


def as_file(blocks: Iterable[bytes]) -> BinaryIO:
    """A file that reads these blocks."""
    return io.BufferedReader(_Blocks(blocks), BLOCK)
