"""Names of contigs: which names of a file are which contigs of a genome, and which contigs a user's pattern fits.

One rule for the whole project. A name that the user types (an option) must be the contig's own; a message says the
nearest one. A name in a file (BED, annotation, bigWig) is matched, and a line says so: as it is, else by NCBI's
assembly report, else with or without `chr`, else as another usual name of the mitochondrion. Such a match is made only
where it is the only one on both sides, and never to a contig that another name of the file is equal to.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from megadna.errors import UserError
from megadna.genome.contigs import report_rows

_MITOCHONDRION = ("M", "MT", "Mt", "Mito", "MtDNA", "mitochondrion", "mitochondrion_genome")
_PREFIXES = ("", "chr", "Chr", "CHR")
_COMPARED = 10_000  # names that a hint is looked for among: comparing texts is slow


def _bare(name: str) -> str:
    return name[3:] if name[:3].lower() == "chr" else name


def _by_prefix(name: str) -> list[str]:
    bare = _bare(name)
    return [prefix + bare for prefix in _PREFIXES if bare and prefix + bare != name]


def _by_mitochondrion(name: str) -> list[str]:
    if _bare(name) not in _MITOCHONDRION:
        return []
    names = [prefix + other for prefix in _PREFIXES for other in _MITOCHONDRION]
    return [other for other in names if other != name]


def match_contigs(
    theirs: Iterable[str], ours: Collection[str], aliases: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Our contig for each of their names that has one, by the rule above; `aliases`: further names of a name."""
    names, known = list(dict.fromkeys(theirs)), set(ours)
    found = {name: name for name in names if name in known}

    def by_alias(name: str) -> Sequence[str]:
        return (aliases or {}).get(name, ())

    for others in (by_alias, _by_prefix, _by_mitochondrion):
        free = known.difference(found.values())
        offers = {name: free.intersection(others(name)) for name in names if name not in found}
        single = {name: offer.pop() for name, offer in offers.items() if len(offer) == 1}
        taken = Counter(single.values())
        found |= {name: contig for name, contig in single.items() if taken[contig] == 1}
    return found


def renamed(found: Mapping[str, str], most: int = 20) -> str:
    """`chrI -> I, chrVI -> VI` for the names that are not equal; "" if all are."""
    pairs = [f"{name} -> {contig}" for name, contig in found.items() if name != contig]
    return ", ".join(pairs[:most]) + f", ... ({len(pairs)} names)" * (len(pairs) > most)


def read_aliases(path: Path) -> dict[str, list[str]]:
    """Every name of a sequence by each of its names, from NCBI's assembly_report.txt."""
    if not path.is_file():
        raise UserError(f"{path}: no such assembly report")
    return {name: names for _, names in report_rows(path) for name in names}


def nearest(name: str, known: Iterable[str], same: Callable[[str, str], bool] = str.__eq__) -> str:
    """The end of a message about a name or pattern that fits nothing: `; did you mean VI?`, or some known names."""
    names = list(islice(dict.fromkeys(known), _COMPARED))
    close = [k for k in names if any(same(name, other) for other in (*_by_prefix(k), *_by_mitochondrion(k)))][:3]
    if not close:
        lower = {other.lower(): other for other in reversed(names)}
        close = [lower[other] for other in get_close_matches(name.lower(), lower, 1)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
