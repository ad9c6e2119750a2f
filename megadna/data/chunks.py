"""The chunks of one split of one or several datasets, under one numbering, and the groups to blend them by.

In:  dataset folders, a split.
Out: `pool[c]` = letters of chunk c; groups = half-open ranges of chunk numbers with a share each.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megadna.config import BlendConfig
from megadna.data.dataset import ChunkDataset
from megadna.data.manifest import Source
from megadna.errors import UserError


class ChunkPool:
    """Datasets laid end to end."""

    def __init__(self, datasets: list[ChunkDataset]) -> None:
        self.datasets = datasets
        self.chunk_length = max(dataset.manifest.chunk_length for dataset in datasets)
        self.offsets = [0, *np.cumsum([len(dataset) for dataset in datasets]).tolist()]

    @property
    def dataset_id(self) -> str:
        """Identity of the data: the dataset's own, or a hash of those of several in their order."""
        names = [dataset.manifest.dataset_id for dataset in self.datasets]
        return names[0] if len(names) == 1 else hashlib.sha256("".join(names).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return self.offsets[-1]

    def __getitem__(self, chunk: int) -> np.ndarray:
        """Letters of a chunk, uint8, a read-only view of the file."""
        number = bisect_right(self.offsets, chunk) - 1
        return self.datasets[number][chunk - self.offsets[number]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N], bases of each chunk."""
        return self.lengths_of(0, len(self))

    def lengths_of(self, start: int, stop: int) -> np.ndarray:
        """Bases of the chunks start..stop-1, int32; a view of the file where one dataset holds them."""
        pieces = [
            dataset.lengths[max(0, start - offset) : max(0, stop - offset)]
            for dataset, offset in zip(self.datasets, self.offsets, strict=False)
        ]
        pieces = [piece for piece in pieces if len(piece)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def open_chunks(path: str | list[str], split: str) -> ChunkPool:
    """The split of the dataset folder or folders."""
    paths = [path] if isinstance(path, str) else path
    return ChunkPool([ChunkDataset(folder, split) for folder in paths])


@dataclass(frozen=True)
class Group:
    """What blending gives one share to."""

    name: str
    ranges: list[tuple[int, int]]
    """Half-open ranges of chunk numbers of the pool."""
    share: float
    """Of all samples; the shares of all groups sum to 1."""
    bases: int
    """Bases in the ranges."""


def blend_groups(pool: ChunkPool, split: str, blend: BlendConfig) -> list[Group]:
    """The groups that `blend` asks for, in the order of their first chunk; one of everything where it asks for none."""
    if not blend.by:
        bases_of_all = sum(dataset.manifest.bases[split] for dataset in pool.datasets)
        return [Group("all", [(0, len(pool))], 1.0, bases_of_all)]
    ranges: dict[str, list[tuple[int, int]]] = {}
    if blend.by == "dataset":
        for dataset, start in zip(pool.datasets, pool.offsets, strict=False):
            ranges.setdefault(Path(dataset.path).name, []).append((start, start + len(dataset)))
    else:
        _by_source(pool, split, blend.by, ranges)
    bases = {name: sum(int(pool.lengths_of(*span).sum()) for span in spans) for name, spans in ranges.items()}
    shares = _shares(bases, blend)
    return [Group(name, spans, shares[name], bases[name]) for name, spans in ranges.items() if name in shares]


def _by_source(pool: ChunkPool, split: str, column: str, ranges: dict[str, list[tuple[int, int]]]) -> None:
    for dataset, offset in zip(pool.datasets, pool.offsets, strict=False):
        for source in dataset.manifest.sources:
            start, stop = source.ranges[split]
            if start < stop:
                name = _column(source, column, dataset)
                ranges.setdefault(name, []).append((offset + start, offset + stop))


def _column(source: Source, column: str, dataset: ChunkDataset) -> str:
    values = {"source": source.name, "species": source.species, **source.taxa}
    if not values.get(column):
        known = ", ".join(["dataset", *values])
        raise UserError(f"data.blend.by {column}: {dataset.path} does not state it for {source.name}; known: {known}")
    return values[column]


def _shares(bases: dict[str, int], blend: BlendConfig) -> dict[str, float]:
    unknown = [name for name in blend.weights if name not in bases]
    if unknown:
        raise UserError(f"data.blend.weights: no {blend.by} {unknown[0]!r} in the data; there are {', '.join(bases)}")
    weights = blend.weights or {name: count ** (1 / blend.temperature) for name, count in bases.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
