"""Which split a chunk belongs to: a pure function of the seed, the record's name and the chunk's place on it.

Region split: a block is `block_chunks` consecutive chunks of a contig; a run is 100 consecutive blocks. One hash of
(seed, contig, run) draws an offset in [0, 100); block p of the run stands at (37 p + offset) mod 100, and is valid
below 100 v, test below 100 (v + t), train otherwise. 37 has no common factor with 100, so a full run gives exactly
its share (floor or ceiling where 100 v is no integer), its held-out blocks are scattered, and a shorter run draws
with the same share. Nothing depends on other records: adding a genome moves no chunk of another.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from megadna.data.order import mix, unit
from megadna.genome.contigs import fits

RUN_BLOCKS = 100
_STEP = 37
TRAIN, VALID, TEST = 0, 1, 2


def region_split(seed: int, keys: np.ndarray | int, blocks: np.ndarray, valid: float, test: float) -> np.ndarray:
    """Split (uint8: 0 train, 1 valid, 2 test) of each block.

    `keys` are the CRC-32 of the name of each block's record (or one for all), `blocks` its number on its record.
    """
    run, place = np.divmod(blocks, RUN_BLOCKS)
    offset = unit(mix(seed, keys, run)) * RUN_BLOCKS
    return by_share((place * _STEP + offset) % RUN_BLOCKS / RUN_BLOCKS, valid, test)


def by_share(draws: np.ndarray, valid: float, test: float) -> np.ndarray:
    """Split of each draw in [0, 1): valid below `valid`, test below `valid + test`, train otherwise."""
    return np.where(draws < valid, VALID, np.where(draws < valid + test, TEST, TRAIN)).astype(np.uint8)


@dataclass(frozen=True)
class SplitRule:
    """The rule for one source."""

    mode: str
    """region, contig (by fraction), names (by pattern) or whole (every chunk of the source to one split)."""
    seed: int = 0
    valid: float = 0.0
    test: float = 0.0
    whole: int = TRAIN
    valid_names: str = ""
    """Pattern of contig names (megadna.genome.contigs.fits), mode names."""
    test_names: str = ""
    forced: tuple[tuple[int, int, int], ...] = ()
    """(record number, block, split): blocks given to a split that would otherwise be empty."""

    def keys(self, names: list[bytes]) -> np.ndarray:
        """uint64 per record name: what `assign` needs to know of it."""
        if self.mode == "names":
            return np.array([self._by_name(name.decode(errors="replace")) for name in names], np.uint64)
        return np.fromiter(map(zlib.crc32, names), np.uint64, len(names))

    def _by_name(self, name: str) -> int:
        if self.valid_names and fits(self.valid_names, name):
            return VALID
        return TEST if self.test_names and fits(self.test_names, name) else TRAIN

    def assign(self, numbers: np.ndarray, keys: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Split (uint8) of chunks from their record numbers, record keys and block numbers."""
        if self.mode == "region":
            split = region_split(self.seed, keys, blocks, self.valid, self.test)
        elif self.mode == "contig":
            split = by_share(unit(mix(self.seed, keys)), self.valid, self.test)
        elif self.mode == "names":
            split = keys.astype(np.uint8)
        else:
            split = np.full(len(blocks), self.whole, np.uint8)
        for number, block, forced in self.forced:
            split[(numbers == number) & ((blocks == block) | (self.mode == "contig"))] = forced
        return split

    def rank(self, keys: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hash by which an otherwise empty split gets its block (the lowest wins), and the block; contigs: block 0."""
        blocks = blocks * 0 if self.mode == "contig" else blocks
        return mix(self.seed, keys, blocks, 0x626C6F636B), blocks
