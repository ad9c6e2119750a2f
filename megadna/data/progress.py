"""Progress of reading sources, in bases out of an estimate of the total."""

from megadna.data.inputs import SourceFile
from megadna.progress import Progress

_BASES_PER_BYTE = {"gzip": 4.0, "bgzf": 3.6, "zstd": 4.2, "2bit": 4.0}  # a guess


def reading(sources: list[SourceFile], finished: int) -> Progress:
    """Around the sources after the `finished` ones; no total where one is standard input."""
    expected = [int(source.size * _BASES_PER_BYTE.get(source.kind, 0.98)) for source in sources[finished:]]
    return Progress("reading", sum(expected) if all(expected) else None, "bases")
