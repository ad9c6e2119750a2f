"""What is known of a VCF on a genome before a model is loaded: contigs, counts, and whether it fits the assembly.

In:  a VCF and a genome in memory.
Out: Survey, and a summary in the log. UserError where a line is no record, no contig is known, or REF differs from the
     genome at most records: a pass over the file costs little beside a model's hours.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.errors import UserError, require
from megadna.genome.contigs import match_contigs, nearest, renamed
from megadna.genome.records import Genome
from megadna.genome.vcf import (
    OK,
    UNSCORED,
    Allele,
    Header,
    Record,
    alt_reason,
    read_header,
    read_records,
    reference_reason,
    trimmed,
)
from megadna.log import counted, get_logger
from megadna.progress import tracked

log = get_logger(__name__)

_NOT_SEQUENCE = ("no_alt", "spanning_deletion", "symbolic", "breakend")
_MITOCHONDRIAL = {"M", "MT", "chrM", "chrMT"}
_LONGEST_TBI = 1 << 29  # positions that a .tbi index can hold


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A VCF on a genome."""

    header: Header
    contigs: dict[str, str]
    """The genome's contig of each of the file's names that has one."""
    num_records: int
    counts: Counter[str]
    """Alleles by `ok` or the reason why they have no score."""
    is_sorted: bool
    """Contig by contig, by rising POS: what an index needs."""
    needs_csi: bool
    """Whether a position is too large for a .tbi index."""


def survey(path: Path, genome: Genome) -> Survey:
    """Read the whole file once for its contigs, once for its alleles."""
    header = read_header(path)
    names, last, num_records, is_sorted, largest = dict[str, None](), ("", 0), 0, True, 0
    for record in tracked(read_records(path), f"reading {path}", unit="records"):
        new = record.contig != last[0]
        is_sorted = is_sorted and (record.contig not in names if new else record.position >= last[1])
        names[record.contig] = None
        last, largest = (record.contig, record.position), max(largest, record.position)
        num_records += 1
    if not num_records:
        log.warning("%s: holds no record", path)
    contigs = _matched(path, names, header, genome) if names else {}
    found = Survey(
        header=header,
        contigs=contigs,
        num_records=num_records,
        counts=_counts(path, contigs, genome) if contigs else Counter(),
        is_sorted=is_sorted,
        needs_csi=largest + 1000 >= _LONGEST_TBI,
    )
    _tell(path, found)
    return found


def described(record: Record, alt: bytes, bases: np.ndarray | None) -> tuple[str, Allele | None]:
    """(`ok` or the reason why the allele has no score; the allele if `ok`)."""
    reason = alt_reason(record, alt)
    if reason not in _NOT_SEQUENCE:
        reason = reference_reason(record, bases) or reason
    if reason or bases is None:
        return reason, None
    return OK, trimmed(record, alt, bases)


def _matched(path: Path, names: dict[str, None], header: Header, genome: Genome) -> dict[str, str]:
    """match_contigs, where another name is taken for the same contig only if the stated lengths agree."""
    found = match_contigs(names, genome.bases)
    for name, contig in list(found.items()):
        stated, length = header.lengths.get(name), genome.lengths[contig]
        if stated not in (None, length):
            differs = f"{path}: contig {name} has {stated:,} bases by its header, {contig} of {genome.path} {length:,}"
            if name != contig:
                del found[name]
                log.warning("%s: not the same sequence, so its records have no score", differs)
            else:
                log.warning("%s: another version or a part of it? REF is compared at every record", differs)
        elif stated is None and name != contig and name in _MITOCHONDRIAL:
            text = "%s: %s is taken for %s (%d bases): chrM of hg19 (16,571) is another sequence than MT (16,569)"
            log.warning(text, path, name, contig, length)
    if not found:
        first = next(iter(names))
        raise UserError(f"{path}: no contig of it is in {genome.path} ({first}, ...){nearest(first, genome.bases)}")
    if text := renamed(found):
        log.info("contig names matched: %s", text)
    if missing := [name for name in names if name not in found]:
        text = "%s: %s not in %s: %s"
        log.warning(text, path, counted(len(missing), "contig"), genome.path, ", ".join(missing[:10]))
    return found


def _counts(path: Path, contigs: dict[str, str], genome: Genome) -> Counter[str]:
    counts: Counter[str] = Counter()
    compared = differ = 0
    first = ""
    for record in tracked(read_records(path), f"comparing {path} with {genome.path}", unit="records"):
        bases = genome.bases.get(contigs.get(record.contig, ""))
        reason = reference_reason(record, bases)
        compared += reason in ("", "ref_mismatch")
        if reason == "ref_mismatch":
            assert bases is not None
            differ += 1
            here = bases[record.start : record.start + min(20, len(record.ref))].tobytes().decode()
            ref = record.ref[:20].decode()
            first = first or f"line {record.line}, {record.contig}:{record.position}, REF {ref}, genome {here}"
        for alt in record.alts:
            status, allele = described(record, alt, bases)
            counts[status] += 1
            counts["indel"] += allele is not None and not allele.is_substitution
    require(
        2 * differ <= compared,
        f"{path}: REF differs from {genome.path} at {differ:,} of {compared:,} records ({first}): another assembly? "
        "give the genome that the variants were called on",
    )
    if differ:
        log.warning(
            "%s: REF differs from %s at %d of %d records, first in %s", path, genome.path, differ, compared, first
        )
    return counts


def _tell(path: Path, found: Survey) -> None:
    scored, indels = found.counts[OK], found.counts["indel"]
    text = "%s: %s; of the alleles %s and %s"
    kinds = counted(indels, "insertion, deletion or the like", "insertions, deletions and the like")
    log.info(text, path, counted(found.num_records, "record"), counted(scored - indels, "substitution"), kinds)
    for reason, meaning in UNSCORED.items():
        if found.counts[reason]:
            log.info("no score for %s: %s (%s)", counted(found.counts[reason], "allele"), meaning, reason)
