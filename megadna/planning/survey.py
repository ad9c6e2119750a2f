"""A folder -> the genomes in it: files, species, bases, near-identical ones, and every file left out, with the reason.

In:  a folder with FASTA files, subfolders and links included, and whatever else lies there.
Out: Genomes. A file that cannot be read, is no nucleotide FASTA, holds nothing or what another file holds already is
     left out and named; UserError only where no genome remains.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from megadna.data.inputs import SEQUENCE_FILE, SourceFile, find_sources, table_format
from megadna.data.options import PreprocessOptions
from megadna.data.pieces import Recipe, stream_pieces
from megadna.errors import UserError, require
from megadna.genome.contigs import contig_filter, names_of
from megadna.genome.fasta import Piece
from megadna.genome.letters import storage_table
from megadna.planning.related import Relations, Sketches
from megadna.progress import tracked

HELD_OUT_BASES = 200 * 4000
"""Of each split, so that bits per base have a standard error below 0.004 (data/finish.py)."""
_BINOMIAL = re.compile(rb"\S+ ([A-Z][a-z]{2,} [a-z]{3,})\b")
_ENSEMBL = re.compile(r"([A-Z][a-z]{2,})_([a-z]{3,})[._]")
_TRANSCRIPTS = re.compile(r"(^|[._])(cds|cdna|ncrna|rna|transcripts?)([._]|$)", re.I)
_KINDS = (
    (
        r"\.(csv|tsv|parquet|txt)",
        "a table or text; megadna preprocess --input FILE --column NAME (or --lines) reads it",
    ),
    (r"\.(gff3?|gtf|bed|vcf|narrowpeak|bw|bigwig)", "an annotation"),
    (r"\.(fastq|fq|bam|cram|sam)", "sequencing reads"),
    (r"\.(faa|pep)", "proteins"),
    (r"\.(gb|gbk|gbff|embl)", "an annotated record; fetch its FASTA"),
    (r"\.(bz2|xz|zip|tar|tgz|7z|rar)", "an archive; unpack it, or pack it as gzip, BGZF or zstd"),
    (r"\.(fai|gzi|dict)", "an index"),
)
_OTHER = "no sequence file by its name (.fa .fna .fasta .2bit, also .gz .bgz .zst)"
_REPORT = re.compile(r"assembly_report\.txt$")
_KNOWN = np.zeros(256, bool)
_KNOWN[list(b"ACGTUacgtu")] = True


@dataclass(frozen=True)
class Genomes:
    """What a folder holds."""

    rows: list[tuple[str, str, str]]
    """Absolute path, name and species ("" unknown) of each file."""
    bases: Counter[str]
    """Bases `kept`, and left out by reason; `n` (N and other codes of several bases) and `soft_masked` among those
    kept; number of `contigs`."""
    ignored: list[tuple[str, str]] = field(default_factory=list)
    """Files that were left out, within the folder, and why."""
    relations: Relations = field(default_factory=Relations)
    """Near-identical records and files."""

    @property
    def usable(self) -> int:
        """A, C, G and T of the contigs that are kept."""
        return self.bases["kept"] - self.bases["n"]

    @property
    def held_out(self) -> float:
        """Share for validation, and again for testing: HELD_OUT_BASES, from 1 % to a tenth of the distinct bases."""
        wanted = max(0.01, math.ceil(100 * HELD_OUT_BASES / self.usable) / 100)
        return max(0.01, round(min(0.1 / self.relations.redundancy, wanted), 3))

    @property
    def train_bases(self) -> float:
        """Usable bases that are neither held out nor go from train as copies of what is."""
        return max(1, self.usable) * (1 - 2 * self.held_out) * self.relations.share_left(2 * self.held_out)

    @property
    def are_related(self) -> bool:
        """Whether a region held out of one record may stand in another: two files are of one species, or records or
        files are near-identical."""
        species = [species for *_, species in self.rows if species]
        return len(set(species)) < len(species) or bool(self.relations.groups)


class _Survey:
    """What is gathered while the files are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = PreprocessOptions(input=[folder], output=folder)
        self.rows: list[tuple[str, str, str]] = []
        self.bases: Counter[str] = Counter()
        self.ignored: list[tuple[str, str]] = []
        self.sketches = Sketches()
        self.num_records = 0
        self._same_file: dict[Path, str] = {}
        self._same_text: dict[str, str] = {}

    def take(self, path: Path) -> None:
        """Read a file, or note why it is left out."""
        name = str(path.relative_to(self.folder))
        reason = _by_name(path)
        resolved = path.resolve()
        if not reason and resolved in self._same_file:
            reason = f"the same file as {self._same_file[resolved]}"
        if not reason:
            reason = self._read_safely(path, name)
            self._same_file[resolved] = name
        if reason:
            self.ignored.append((name, reason))

    def _read_safely(self, path: Path, name: str) -> str:
        self.sketches.start_file(name)
        try:
            (source,), _ = find_sources(PreprocessOptions(input=[path], output=self.folder))
            if _TRANSCRIPTS.search(source.name):
                raise UserError("transcripts by its name")
            bases, row, digest = self._read(source)
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = self._reason(bases, self._same_text.get(digest))
            self._same_text.setdefault(digest, name)
        if reason:
            self.sketches.drop_file()
            return reason
        self.rows.append(row)
        self.bases.update(bases)
        return ""

    @staticmethod
    def _reason(bases: Counter[str], twin: str | None) -> str:
        """Why a file that was read is of no use; empty where it is."""
        if not bases["contigs"]:
            return "empty: no header line that begins with '>'"
        if not bases["kept"]:
            left = [key.removeprefix("contig_") for key in bases if key.startswith("contig_") and bases[key]]
            return f"every contig is left out ({', '.join(left)})" if left else "holds no base"
        if bases["kept"] == bases["n"]:
            return "holds N alone"
        return f"holds the same sequences as {twin}" if twin else ""

    def _read(self, source: SourceFile) -> tuple[Counter[str], tuple[str, str, str], str]:
        """Bases of one file, its row of the sample sheet, and a digest of its sequences.

        Species: of a file name as Ensembl's, or the two words after the accession, as NCBI and ENA write them.
        """
        options, bases, digest = self.options, Counter[str](), xxhash.xxh3_128()
        recipe = Recipe(table_format(options), storage_table(ambiguous=options.ambiguous, uracil=options.uracil))
        scanner, select = recipe.scanner(), contig_filter(options.contigs, source.path)
        first, name, reason, before = b"", b"", None, 0
        for piece, _ in stream_pieces(source, recipe, scanner):
            first = first or next(iter(piece.headers), b"")
            letters = scanner.buffer[: piece.size]
            digest.update((letters & 0xDF).tobytes())  # upper case
            digest.update((piece.positions + before).tobytes())
            before += piece.size
            reasons = [reason, *select.reasons(piece.headers)]
            names = [name, *names_of(piece.headers)]
            self._count(letters, piece, reasons, names, bases)
            reason, name = reasons[-1], names[-1]
        named, told = _ENSEMBL.match(source.path.name), _BINOMIAL.match(first)
        species = " ".join(named.groups()) if named else told.group(1).decode() if told else ""
        return bases, (str(source.path.absolute()), source.name, species), digest.hexdigest()

    def _count(
        self,
        letters: NDArray[np.uint8],
        piece: Piece,
        reasons: list[str | None],
        names: list[bytes],
        bases: Counter[str],
    ) -> None:
        """Add a piece, whose first segment continues the record before it."""
        ends = np.append(piece.positions, piece.size)
        is_kept = np.array([reason is None for reason in reasons])
        sizes = np.diff(ends, prepend=0)
        for reason, size in zip(reasons, sizes.tolist(), strict=True):
            bases[reason or "kept"] += size
        kept = np.repeat(is_kept, sizes)
        known = _KNOWN[letters]
        bases["n"] += int((kept & ~known).sum())
        bases["soft_masked"] += int((kept & known & (letters >= ord("a"))).sum())
        bases["contigs"] += len(piece.headers)
        numbers = self.num_records - 1 + np.arange(len(reasons))
        for record in self.sketches.add(letters, np.where(is_kept, numbers, -1), ends):
            self.sketches.name(record, names[record - int(numbers[0])].decode(errors="replace"))
        self.num_records += len(piece.headers)


def survey(folder: Path) -> Genomes:
    """Read every FASTA file of `folder` as `megadna preprocess` will; UserError where there is nothing to train on."""
    require(not folder.is_file(), f"{folder}: is a file; name the folder that holds it")
    require(folder.is_dir(), f"{folder}: no such folder; name the one that holds the FASTA files")
    found = _Survey(folder)
    for path in tracked(list(_files(folder, found.ignored)), f"reading {folder}", unit="files"):
        found.take(path)
    if not found.rows:
        looked = [(name, reason) for name, reason in found.ignored if reason != _OTHER] or found.ignored
        why = f"; {looked[0][0]}: {looked[0][1]}" if looked else ""
        raise UserError(f"{folder}: no genome to train on in {len(found.ignored)} files{why}")
    return Genomes(found.rows, found.bases, sorted(found.ignored), found.sketches.relations())


def _files(folder: Path, ignored: list[tuple[str, str]]) -> Iterator[Path]:
    """Every file in and below a folder, in the order of their names; folders that cannot be entered are noted."""
    entered: set[Path] = set()

    def refuse(error: OSError) -> None:
        ignored.append((str(Path(error.filename).relative_to(folder)), f"cannot be read ({error.strerror})"))

    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(root)
        if here.resolve() in entered:  # a link back to where we were
            folders.clear()
            continue
        entered.add(here.resolve())
        folders.sort()
        for name in sorted(names):
            if not _REPORT.search(name):  # read beside its FASTA file
                yield here / name


def _by_name(path: Path) -> str:
    """Why a file is left out unread; empty for a FASTA file."""
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "no regular file"
    if not SEQUENCE_FILE.search(path.name):
        packed = r"(\.(gz|bgz|zst))?$"
        return next((kind for ending, kind in _KINDS if re.search(ending + packed, path.name, re.I)), _OTHER)
    return "" if path.stat().st_size else "empty"
