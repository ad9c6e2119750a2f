"""UCSC 2bit files -> FASTA text, soft mask and N blocks applied (genome.ucsc.edu/FAQ/FAQformat.html#format7)."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megadna.errors import UserError

TWOBIT_MAGICS = (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43")
_STEP = 1 << 18  # bases decoded at a time; a multiple of 4
_LETTERS = np.frombuffer(b"TCAG", np.uint8)
_FOUR = _LETTERS[(np.arange(256)[:, None] >> np.array([6, 4, 2, 0])) & 3]


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
            room = end  # records that shared their bytes would make a small file endless
            for name, offset in index:
                yield b">" + name + b"\n"
                for letters in _letters(file, offset, order, end):
                    if file.tell() - offset > room:
                        raise ValueError("records that overlap")
                    yield letters
                room -= file.tell() - offset
                if room < 0:
                    raise ValueError("records that overlap")
                yield b"\n"
    except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the 2bit file is cut short or damaged; fetch it again") from error


def _letters(file: BinaryIO, offset: int, order: str, end: int) -> Iterator[bytes]:
    """Letters of the sequence whose record begins at `offset` of a file of `end` bytes."""
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
        letters = _FOUR[packed].reshape(-1)[:length].copy()
        for start, end in _within(n_starts, n_ends, first, length):
            letters[start:end] = ord("N")
        for start, end in _within(mask_starts, mask_ends, first, length):
            letters[start:end] |= 0x20
        yield letters.tobytes()


def _blocks(file: BinaryIO, order: str, size: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of a list of blocks of a sequence of `size` bases; ValueError unless they rise and lie in it."""
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
