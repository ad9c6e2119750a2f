"""Every rule of --split: which source, contig, block or chunk belongs to train, valid or test.

In:  the options, the sources, the names of records, the numbers of blocks.
Out: the split of whole sources (`assign_sources`), else a SplitRule that assigns chunks; blocks for empty splits.

Region split: a block is `block_chunks` consecutive chunks of a contig; a run is 100 consecutive blocks. One hash of
(seed, contig, run) draws an offset in [0, 100). Block p of the run has the rank (37 p + offset) mod 100: it is valid
below 100 v, test below 100 (v + t), train otherwise. 37 has no common factor with 100, so a full run gives exactly its
share (floor or ceiling where 100 v is not an integer), its held-out blocks are scattered, and a shorter run draws with
the same share. Nothing depends on other records: adding a genome moves no chunk of another.
"""

import fnmatch
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megadna.data.inputs import SourceFile
from megadna.data.manifest import SPLITS
from megadna.data.options import PreprocessOptions
from megadna.data.order import mix, unit
from megadna.errors import UserError
from megadna.genome.contigs import fits, nearest

RUN_BLOCKS = 100
_STEP = 37
TRAIN, VALID, TEST = 0, 1, 2
NO_SPLIT = 3
"""Of a chunk that is dropped."""
NT_HELD_OUT = 50
_BLOCK_SALT, _GROUP_SALT = 0x626C6F636B, 0x67726F7570  # "block" and "group": hashes independent of those that draw

Block = tuple[int, int, int]
"""(hash, record number, block)."""
Forced = dict[int, tuple[tuple[int, int, int], ...]]
"""By source: (record number, block, split) of blocks given to splits that would be empty."""


def region_split(seed: int, keys: np.ndarray | int, blocks: np.ndarray, valid: float, test: float) -> np.ndarray:
    """Split (uint8: 0 train, 1 valid, 2 test) of each block.

    `keys` are the CRC-32 of the name of each block's record (or one for all), `blocks` its number on its record.
    """
    run, position = np.divmod(blocks, RUN_BLOCKS)
    offset = unit(mix(seed, keys, run)) * RUN_BLOCKS
    return by_share((position * _STEP + offset) % RUN_BLOCKS / RUN_BLOCKS, valid, test)


def by_share(draws: np.ndarray, valid: float, test: float) -> np.ndarray:
    """Split of each draw in [0, 1): valid below `valid`, test below `valid + test`, train otherwise."""
    return np.where(draws < valid, VALID, np.where(draws < valid + test, TEST, TRAIN)).astype(np.uint8)


@dataclass(frozen=True)
class SplitRule:
    """The rule for the chunks of one source."""

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
        """Split (uint8) of blocks from their record numbers, record keys and block numbers."""
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

    def lowest(self, numbers: np.ndarray, keys: np.ndarray, blocks: np.ndarray, splits: np.ndarray) -> Iterable[Block]:
        """The train blocks of chunks with the two lowest hashes; a contig is block 0."""
        train = splits == TRAIN
        units, numbers, keys = blocks[train] * (self.mode != "contig"), numbers[train], keys[train]
        changes = (units[1:] != units[:-1]) | (numbers[1:] != numbers[:-1])
        first = np.flatnonzero(np.append(True, changes)[: len(units)])  # of the chunks of each block
        hashes = mix(self.seed, keys[first], units[first], _BLOCK_SALT)
        few = np.argsort(hashes, kind="stable")[:2]
        return zip(hashes[few].tolist(), numbers[first][few].tolist(), units[first][few].tolist(), strict=True)


def split_rule(source: SourceFile, options: PreprocessOptions, forced: tuple[tuple[int, int, int], ...]) -> SplitRule:
    """The rule for the chunks of one source."""
    if source.split is not None:
        return SplitRule("whole", whole=source.split)
    if options.split == "contig" and options.named_contigs:
        return SplitRule("names", valid_names=options.valid_contigs, test_names=options.test_contigs)
    return SplitRule(options.split, options.seed, options.valid_fraction, options.test_fraction, forced=forced)


def assign_sources(sources: list[SourceFile], options: PreprocessOptions) -> tuple[list[SourceFile], list[str]]:
    """Splits of whole sources, and notes for the manifest; those that the sample sheet states stay.

    UserError where a glob fits no genome or puts one in two splits, and where a region split would leak.
    """
    if options.split == "genome" and (options.valid or options.test):
        return _by_globs(sources, options), []
    if options.split in ("genome", "column"):
        return _by_groups(sources, options)
    if options.split == "nucleotide_transformer":
        return _by_rows(sources), []
    if options.split == "region" and not options.allow_related:
        _refuse_related(sources)
    return sources, []


def _refuse_related(sources: list[SourceFile]) -> None:
    seen: dict[str, str] = {}
    for source in (source for source in sources if source.species and source.split is None):
        other = seen.setdefault(source.species.lower(), source.name)
        if other != source.name:
            raise UserError(
                f"{other} and {source.name} are both {source.species}: a region split would leak; use --split genome, "
                "contig or column, or say --allow_related"
            )


def _by_globs(sources: list[SourceFile], options: PreprocessOptions) -> list[SourceFile]:
    splits: dict[str, int] = {source.name: source.split for source in sources if source.split is not None}
    for key, split in (("valid", VALID), ("test", TEST)):
        for pattern in getattr(options, key):
            named = [source for source in sources if _fits_glob(pattern, source)]
            if not named:
                hint = nearest(pattern, (source.name for source in sources))
                raise UserError(f"--{key} {pattern}: fits no genome{hint}")
            for source in named:
                if splits.setdefault(source.name, split) != split:
                    other = SPLITS[splits[source.name]]
                    raise UserError(f"--{key} {pattern}: {source.name} is in {other} already; name it once")
    return [replace(source, split=splits.get(source.name, TRAIN)) for source in sources]


def _fits_glob(pattern: str, source: SourceFile) -> bool:
    names = source.name, source.path.name
    return pattern in names or any(fnmatch.fnmatch(name, pattern) for name in names)


def _by_groups(sources: list[SourceFile], options: PreprocessOptions) -> tuple[list[SourceFile], list[str]]:
    """Each group (a genome, or all rows with one value in a column) is drawn by a hash of (seed, group); an empty split
    gets the train group with the lowest hash."""
    group_of = {source.name: source.group(options.split_by) for source in sources if source.split is None}
    groups = sorted(set(group_of.values()))
    codes = {group: zlib.crc32(group.encode()) for group in groups}
    shares = options.valid_fraction, options.test_fraction
    chosen = {group: int(by_share(unit(mix(options.seed, codes[group])), *shares)) for group in groups}
    notes = []
    for split, share in zip((VALID, TEST), shares, strict=True):
        train = [group for group in groups if chosen[group] == TRAIN]
        if share and split not in chosen.values() and len(train) > 1:
            lowest = min(train, key=lambda group: int(mix(options.seed, codes[group], _GROUP_SALT)))
            chosen[lowest] = split
            notes.append(
                f"{SPLITS[split]} would have been empty: it got {lowest}, the {options.split} with the lowest hash"
            )
    return [s if s.split is not None else replace(s, split=chosen[group_of[s.name]]) for s in sources], notes


def _by_rows(sources: list[SourceFile]) -> list[SourceFile]:
    """The Nucleotide Transformer rule: of the ordered list the last 50 are test, the 50 before them validation. Rows
    without a path count, so that a list from which genomes were removed gives the same splits."""
    rows = sources[0].sheet_rows
    if rows <= 2 * NT_HELD_OUT:
        raise UserError(f"--split nucleotide_transformer needs a sheet of more than {2 * NT_HELD_OUT} rows, not {rows}")

    def split(source: SourceFile) -> int:
        from_end = rows - source.sheet_row
        return TEST if from_end <= NT_HELD_OUT else VALID if from_end <= 2 * NT_HELD_OUT else TRAIN

    return [s if s.split is not None else replace(s, split=split(s)) for s in sources]


def drawn_shares(options: PreprocessOptions) -> dict[int, float]:
    """Shares of the held-out splits that are drawn block by block or contig by contig."""
    if options.split not in ("region", "contig") or options.named_contigs:
        return {}
    return {split: share for split, share in ((VALID, options.valid_fraction), (TEST, options.test_fraction)) if share}


def may_be_empty(options: PreprocessOptions, sources: list[SourceFile]) -> bool:
    """Whether so few blocks will be held out that a split could be empty."""
    shares = drawn_shares(options).values()
    if not shares or options.split == "contig":
        return bool(shares)
    block = options.chunk_length * options.block_chunks
    return min(shares) * sum(source.size for source in sources) / block < 50  # a byte of a file is a base or more


def missing_splits(options: PreprocessOptions, chunks: Sequence[int]) -> list[int]:
    """Held-out splits that were asked for and got no chunk; `chunks` by split."""
    return [split for split in drawn_shares(options) if not chunks[split]]


def fill_splits(
    missing: list[int], lowest: list[list[Block]], sources: list[SourceFile], options: PreprocessOptions
) -> tuple[Forced, list[str]]:
    """The blocks with the lowest hashes for the splits that would be empty, and notes; `lowest` by source."""
    ranked = sorted(
        (found, number, record, block)
        for number, blocks in enumerate(lowest)
        for found, record, block in blocks
        if sources[number].split is None
    )
    forced, notes = Forced(), []
    unit_name = "contig" if options.split == "contig" else "block"
    for split, (_, number, record, block) in zip(missing, ranked, strict=False):
        forced[number] = (*forced.get(number, ()), (record, block, split))
        notes.append(
            f"{SPLITS[split]} would have been empty: it got the {unit_name} with the lowest hash "
            f"({sources[number].name}, record {record + 1}" + (f", block {block})" if unit_name == "block" else ")")
        )
    return forced, notes
