"""Megatron's .idx file for uint8 sequences, streamed from blocks (byte-identical to megatron-core's own builder).

Layout (megatron-core 0.16, indexed_dataset.py): magic, version 1, dtype code 1 (uint8), number of sequences, number of
document indices; then int32 lengths, int64 byte pointers, int64 document indices that begin with 0.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

IDX_HEADER = b"MMIDIDX\x00\x00"
UINT8_CODE = 1

Blocks = Callable[[], Iterator[np.ndarray]]
"""Starts a pass over an array that need not fit in memory."""


def write_index(path: Path, lengths: Blocks, num_sequences: int, documents: Blocks, num_documents: int) -> None:
    """Write the .idx of `num_sequences` sequences; `documents` gives the index after the last sequence of each one."""
    with path.open("wb") as file:
        file.write(IDX_HEADER + struct.pack("<QBQQ", 1, UINT8_CODE, num_sequences, num_documents + 1))
        for block in lengths():
            file.write(block.astype(np.int32).tobytes())
        pointer = 0
        for block in lengths():
            ends = pointer + np.cumsum(block, dtype=np.int64)
            if len(ends):
                file.write(np.concatenate(([pointer], ends[:-1])).astype(np.int64).tobytes())
                pointer = int(ends[-1])
        file.write(np.zeros(1, np.int64).tobytes())
        for block in documents():
            file.write(block.astype(np.int64).tobytes())
