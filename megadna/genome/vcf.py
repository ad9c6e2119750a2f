"""Variant Call Format: lines as they are, their records, and each ALT allele on a genome.

In:  VCF text (plain, gzip, BGZF, zstd), or BCF through pysam, which prints it as text; a genome in memory.
Out: Record for every data line, in file order; Allele: trimmed, left-aligned, with the reason why it has no score.

Lines are split, never rebuilt: whoever writes a VCF appends to the INFO column and leaves the other bytes alone. A line
that is no record is a UserError with its number. (Libraries refuse undeclared contigs and filters, read POS 0 as the
contig's last base, and round numbers.)
Specification: https://samtools.github.io/hts-specs/VCFv4.3.pdf
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megadna.alphabet import BASE_CODES, OTHER
from megadna.errors import UserError, require
from megadna.genome.packed import open_bytes, refuse

OK = "ok"
UNSCORED = {
    "no_alt": "ALT is a dot",
    "spanning_deletion": "ALT is *: a deletion that another record describes",
    "symbolic": "ALT is a symbol such as <DEL> or <NON_REF>",
    "breakend": "ALT is a breakend",
    "ambiguous": "REF, ALT or the genome has a base other than A, C, G and T there",
    "same_as_ref": "ALT equals REF",
    "unknown_contig": "the genome has no such contig",
    "outside_contig": "POS is 0, or REF ends after the contig",
    "ref_mismatch": "REF differs from the genome",
}
"""Why an allele has no score, whatever the model."""
_DNA = re.compile(b"[ACGTacgt]+")
_MOST_DIGITS = 15
_HEADER_COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


class Record(NamedTuple):
    """The first columns of a data line."""

    line: int
    """Number of the line in the file, from 1."""
    contig: str
    position: int
    """POS as it is written: 1-based; 0 is the telomere."""
    ref: bytes
    alts: tuple[bytes, ...]
    """At least one; a dot if there is no ALT allele."""

    @property
    def start(self) -> int:
        """0-based position of the first base of REF; -1 for the telomere."""
        return self.position - 1

    @property
    def end(self) -> int:
        """One more than `start`: a record counts as one in a progress bar."""
        return self.position


class Allele(NamedTuple):
    """An ALT allele as a change of the genome."""

    start: int
    """0-based position of the first base that is replaced, or before which bases are inserted."""
    ref: bytes
    """Upper-case bases that are replaced; empty for an insertion."""
    alt: bytes
    """Upper-case bases instead of them; empty for a deletion."""

    @property
    def is_substitution(self) -> bool:
        """Whether the length stays the same."""
        return len(self.ref) == len(self.alt)

    @property
    def changed(self) -> tuple[int, ...]:
        """0-based positions of the bases that a substitution changes."""
        return tuple(
            self.start + i for i, (one, other) in enumerate(zip(self.ref, self.alt, strict=True)) if one != other
        )


@dataclass(frozen=True)
class Header:
    """What precedes the records."""

    lines: list[bytes]
    """Without line ends; [] for a file of records alone."""
    lengths: dict[str, int]
    """Bases of each contig that a ##contig line states."""

    @property
    def has_columns(self) -> bool:
        """Whether its last line names the columns."""
        return bool(self.lines) and self.lines[-1].startswith(_HEADER_COLUMNS)


def is_bcf(path: Path) -> bool:
    """Whether the file is BCF (packed or not); UserError if it is missing, or no file of text."""
    with open_bytes(path) as file:
        head = file.read(18)
    refuse(path, head)
    return head[:3] == b"BCF"


def vcf_lines(path: Path) -> Iterator[bytes]:
    """Every line without its line feed, header included; empty ones are left out."""
    if is_bcf(path):
        yield from _bcf_lines(path)
        return
    with open_bytes(path) as file:
        for line in file:
            text = line.removesuffix(b"\n")
            if text.strip():
                yield text


def _bcf_lines(path: Path) -> Iterator[bytes]:
    import pysam

    pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(path)) as file:
            yield from str(file.header).encode().splitlines()
            for record in file:
                yield str(record).encode().removesuffix(b"\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the BCF file is cut short or damaged ({error}); fetch it again") from error


def read_header(path: Path) -> Header:
    """The lines before the first record."""
    lines, lengths = [], {}
    for line in vcf_lines(path):
        if not line.startswith(b"#"):
            break
        lines.append(line)
        if line.startswith(b"##contig=<"):
            name = re.search(rb"[<,]ID=([^,>]+)", line)
            length = re.search(rb"[<,]length=(\d{1,15})[,>]", line)
            if name and length:
                lengths[name[1].decode(errors="replace")] = int(length[1])
    return Header(lines, lengths)


def read_records(path: Path) -> Iterator[Record]:
    """Every data line."""
    for number, line in enumerate(vcf_lines(path), start=1):
        if not line.startswith(b"#"):
            yield _parse(line, number, path)


def data_lines(path: Path) -> Iterator[bytes]:
    """Every data line without its line feed, in the order of read_records."""
    return (line for line in vcf_lines(path) if not line.startswith(b"#"))


def _parse(line: bytes, number: int, path: Path) -> Record:
    columns = line.split(b"\t", 5)
    if len(columns) < 5:
        shown = line[:40].decode(errors="replace")
        raise UserError(f"{path}: line {number}: not a VCF record (CHROM, POS, ID, REF, ALT between tabs): {shown!r}")
    contig, position, _, ref, alts = columns[:5]
    if not position.isdigit() or len(position) > _MOST_DIGITS:
        raise UserError(f"{path}: line {number}: POS {position[:20].decode(errors='replace')!r} is no position")
    alts = alts.removesuffix(b"\r")
    require(bool(contig and ref and alts), f"{path}: line {number}: CHROM, REF or ALT is empty; a dot stands for none")
    return Record(number, contig.decode(errors="replace"), int(position), ref, tuple(alts.split(b",")))


def reference_reason(record: Record, bases: np.ndarray | None) -> str:
    """Why no allele of the record has a score ("" if REF agrees with the genome). bases: uint8 of its contig, None if
    the genome has none."""
    if bases is None:
        return "unknown_contig"
    start, end = record.start, record.start + len(record.ref)
    if start < 0 or end > len(bases):
        return "outside_contig"
    here = bases[start:end]
    if not _DNA.fullmatch(record.ref) or (BASE_CODES[here] == OTHER).any():
        return "ambiguous"
    return "" if here.tobytes().upper() == record.ref.upper() else "ref_mismatch"


def alt_reason(record: Record, alt: bytes) -> str:
    """Why this ALT has no score ("" if it spells bases)."""
    if _DNA.fullmatch(alt):
        return "same_as_ref" if alt.upper() == record.ref.upper() else ""
    if alt == b".":
        return "no_alt"
    if alt == b"*":
        return "spanning_deletion"
    if b"[" in alt or b"]" in alt or (len(alt) > 1 and (alt[:1] == b"." or alt[-1:] == b".")):
        return "breakend"
    return "symbolic" if alt[:1] == b"<" else "ambiguous"


def trimmed(record: Record, alt: bytes, bases: np.ndarray) -> Allele:
    """The allele without the bases that REF and ALT share, an insertion or deletion as far left as it can be (Tan et
    al. 2015, "Unified representation of genetic variants", without the base that anchors it). Both spell bases."""
    ref, alt, start = record.ref.upper(), alt.upper(), record.start
    shared = min(len(ref), len(alt))
    after = next((i for i in range(shared) if ref[-1 - i] != alt[-1 - i]), shared)
    ref, alt = ref[: len(ref) - after], alt[: len(alt) - after]
    shared = min(len(ref), len(alt))
    before = next((i for i in range(shared) if ref[i] != alt[i]), shared)
    ref, alt, start = ref[before:], alt[before:], start + before
    if ref and alt:
        return Allele(start, ref, alt)
    start, moved = _left_aligned(start, ref or alt, bases)
    return Allele(start, moved, b"") if ref else Allele(start, b"", moved)


def _left_aligned(start: int, text: bytes, bases: np.ndarray) -> tuple[int, bytes]:
    """An insertion or deletion of `text`, moved left while that gives the same sequence."""
    steps, size = 0, len(text)
    while start - steps > 0 and (bases[start - steps - 1] & 0xDF) == text[size - 1 - steps % size]:
        steps += 1
    turn = size - steps % size
    return start - steps, text[turn:] + text[:turn]
