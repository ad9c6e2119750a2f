"""Which records of an assembly to take: the primary contigs, all, or those whose name fits a pattern.

Primary leaves out alternate loci, patches, haplotypes and decoys: by NCBI's assembly_report.txt beside the FASTA where
there is one (Sequence-Role), by names and header words otherwise. Unlocalised and unplaced scaffolds are primary.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megadna.errors import UserError
from megadna.genome.packed import open_bytes

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
    """Whether any pattern of _BY_NAME could fit somewhere in the text (letter by letter is quickest, a pattern is
    slowest)."""
    text = text.lower()
    return any(all(letter in text for letter in hint) and hint in text for hint in _HINTS)


@dataclass(frozen=True)
class ContigFilter:
    """Why a record is left out; None keeps it."""

    mode: str = "primary"
    """primary, all, or a pattern (see `fits`)."""
    roles: dict[bytes, str] = field(default_factory=dict)
    """From assembly_report.txt: name -> reason ("" keeps it)."""

    def reasons(self, headers: list[bytes]) -> list[str | None]:
        """Reason per header line; quick where no header of many needs a closer look."""
        plain = self.mode == "all" or (self.mode == "primary" and not self.roles)
        if plain and (self.mode == "all" or not _hinted(b"\n".join(headers))):
            return [None] * len(headers)
        return [self(header) for header in headers]

    def __call__(self, header: bytes) -> str | None:
        """Reason to leave out the record with this header line (without '>'), `contig_` and a role."""
        if self.mode == "all":
            return None
        if self.mode != "primary":
            name = names_of([header])[0].decode(errors="replace")
            return None if fits(self.mode, name) else "contig_pattern"
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
    """The filter for one FASTA file; reads the assembly report beside it where `mode` is primary."""
    report = assembly_report_of(path) if mode == "primary" else None
    return ContigFilter(mode, read_assembly_report(report) if report else {})


def assembly_report_of(path: Path) -> Path | None:
    """NCBI's assembly report beside a FASTA file, if there is one."""
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
    """(Sequence-Role, every name of the sequence) by line of NCBI's report; UserError with the line that is none."""
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
