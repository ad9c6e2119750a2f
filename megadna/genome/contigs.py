"""Names of contigs: which names of a file are which contigs of a genome, and which contigs to take.

In:  names of the user, of a file (BED, annotation, bigWig) or of FASTA headers; NCBI's assembly_report.txt.
Out: the genome's contig for each name; the reason to leave a record out.

One rule for the whole project. A name that the user types (an option) must be the contig's own; a message gives the
nearest one. A name in a file is matched, and a line says so: as it is, else by the assembly report, else with or
without `chr`, else as another usual name of the mitochondrion. Such a match is made only where it is the only one on
both sides, and never to a contig that another name of the file is equal to.

Primary contigs exclude alternate loci, patches, haplotypes and decoys: by the Sequence-Role of the assembly report next
to the FASTA where there is one, by names and header words otherwise. Unlocalised and unplaced scaffolds are primary.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from megadna.errors import UserError
from megadna.genome.packed import open_bytes
from megadna.log import get_logger

log = get_logger(__name__)

_MITOCHONDRION = ("M", "MT", "Mt", "Mito", "MtDNA", "mitochondrion", "mitochondrion_genome")
_PREFIXES = ("", "chr", "Chr", "CHR")
_COMPARED = 10_000  # names compared to find a hint: comparing texts is slow


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


_BY_NAME = (
    ("decoy", re.compile(rb"decoy|^hs37d5$|^hs38d1$", re.I)),
    ("virus", re.compile(rb"^(chr)?EBV\b|^NC_007605(\.\d+)?\b", re.I)),
    ("fix_patch", re.compile(rb"^\S*_fix\b|^CHR_H\w*_PATCH|\bfix patch\b|\bpatch of type FIX\b", re.I)),
    (
        "alternate",
        re.compile(
            rb"^\S*_(alt|hap\d*)\b|^CHR_H|\balternate (locus|loci|assembly)\b|\bnovel patch\b|\bpatch of type NOVEL\b",
            re.I,
        ),
    ),
)
_HINTS = b"decoy hs37d5 hs38d1 ebv nc_007605 _fix _alt _hap chr_h patch alternate".split()
_ROLES = {"alt-scaffold": "alternate", "fix-patch": "fix_patch", "novel-patch": "alternate"}


def names_of(headers: list[bytes]) -> list[bytes]:
    """First word of each header line (without '>'); `unnamed` where there is none."""
    text = b"".join(headers)
    if not any(blank in text for blank in (b"\t", b"\v", b"\f", b"\r", b"\n")):
        names = [header.partition(b" ")[0] for header in headers]
        if all(names):
            return names
    return [(header.split(None, 1) or [b"unnamed"])[0] for header in headers]


def name_of(header: bytes) -> str:
    """First word of a header line."""
    return names_of([header])[0].decode(errors="replace")


def fits(pattern: str, name: str) -> bool:
    """Whether a contig has the name, or its whole name fits the regular expression. (A name may hold `|`.)"""
    return pattern == name or re.fullmatch(pattern, name) is not None


def alternatives(pattern: str) -> list[str]:
    """The regular expressions between the outermost `|`: `VI|chr(1|2)` -> `VI`, `chr(1|2)`."""
    found: list[str] = []
    part = ""
    for word in pattern.split("|"):
        part = f"{part}|{word}" if part else word
        try:
            re.compile(part)
        except re.error:
            continue  # the | is inside brackets
        found.append(part)
        part = ""
    return [pattern] if part else [one for one in found if one]


def _hinted(text: bytes) -> bool:
    """Whether any pattern of _BY_NAME could match somewhere in the text; checking single bytes first is fastest."""
    text = text.lower()
    return any(all(byte in text for byte in hint) and hint in text for hint in _HINTS)


@dataclass(frozen=True)
class ContigFilter:
    """Why a record is left out; None keeps it."""

    mode: str = "primary"
    """primary, all, or a pattern (see `fits`)."""
    roles: dict[bytes, str] = field(default_factory=dict)
    """From assembly_report.txt: name -> reason ("" keeps it)."""

    def reasons(self, headers: list[bytes]) -> list[str | None]:
        """Reason per header line; fast where no header needs a closer look."""
        plain = self.mode == "all" or (self.mode == "primary" and not self.roles)
        if plain and (self.mode == "all" or not _hinted(b"\n".join(headers))):
            return [None] * len(headers)
        return [self(header) for header in headers]

    def __call__(self, header: bytes) -> str | None:
        """Reason to leave out the record with this header line (without '>'), `contig_` and a role."""
        if self.mode == "all":
            return None
        if self.mode != "primary":
            return None if fits(self.mode, name_of(header)) else "contig_pattern"
        if self.roles:
            role = self.roles.get((header.split(None, 1) or [b""])[0])
            if role is not None:
                return f"contig_{role}" if role else None
        if _hinted(header):
            for reason, pattern in _BY_NAME:
                if pattern.search(header):
                    return f"contig_{reason}"
        return None


def contig_filter(mode: str, path: Path) -> ContigFilter:
    """The filter for one FASTA file; reads the assembly report next to it where `mode` is primary."""
    report = assembly_report_of(path) if mode == "primary" else None
    return ContigFilter(mode, read_assembly_report(report) if report else {})


def assembly_report_of(path: Path) -> Path | None:
    """NCBI's assembly report next to a FASTA file, if there is one."""
    if not path.parent.is_dir():
        return None
    base = re.sub(r"(_genomic)?\.(fa|fna|fasta|2bit)(\.\w+)?$", "", path.name)
    for name in (f"{base}_assembly_report.txt", f"{base}.assembly_report.txt"):
        if (path.parent / name).is_file():
            return path.parent / name
    alone = path.parent / "assembly_report.txt"
    return alone if alone.is_file() else None


def read_assembly_report(path: Path) -> dict[bytes, str]:
    """Reason by sequence name (every column that names it), from the Sequence-Role column of NCBI's report."""
    return {name.encode(): _ROLES.get(role, "") for role, names in report_rows(path) for name in names}


def report_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(Sequence-Role, every name of the sequence) by line of NCBI's report; UserError with the line that is wrong."""
    with open_bytes(path) as file:
        lines = file.read().decode("utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < 7:
            raise UserError(f"{path}: line {number}: {len(columns)} columns; an assembly report has 10")
        others = (columns[position].strip() for position in (4, 6, 9) if position < len(columns))
        known = [name for name in others if name != "na"]  # no accession; the first column may be called so
        yield columns[1], [name for name in (columns[0].strip(), *known) if name]
