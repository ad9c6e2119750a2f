"""A folder -> the genomes in it: files, species, bases, near-identical ones, and every file left out, with the reason.

In:  a folder with FASTA files, subfolders and links included, and anything else.
Out: Genomes. A file that cannot be read, is no nucleotide FASTA, is empty or repeats another file is left out and
     named; UserError only where no genome remains.

Near-identical records and files share more than MAX_CONTAINMENT of the smaller one's sketch of 31-mers
(megadna/data/leakage.py): a region held out of one is also in the other. At 31 bases, two sequences that differ in 1 %
of their bases share 73 % of the sketch, in 5 % 20 %. A sketch begins with one 31-mer in 64 and is halved whenever all
sketches together exceed MOST_HASHES. Records of fewer than LEAST_HASHES (about 1,000 bases at first) are too short to
compare one by one; therefore whole files are compared as well.

Shapes: S segments of a piece, P pairs of a hash and an owner that has it, sorted by hash, then by owner.
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

from megadna.data.inputs import SEQUENCE_FILE, SourceFile, find_sources
from megadna.data.leakage import MAX_CONTAINMENT, SCALE, K, sketch_by_chunk
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError, require
from megadna.genome.contigs import contig_filter, names_of
from megadna.genome.fasta import Piece
from megadna.genome.pieces import scan_file
from megadna.progress import tracked

MOST_HASHES, LEAST_HASHES = 1 << 22, 16
_STRETCH = 1 << 17  # bases sketched at a time: the arrays stay in the cache
HELD_OUT_BASES = 200 * 4000
"""Of each split, so that bits per base have a standard error below 0.004 (data/parts.py)."""
_BINOMIAL = re.compile(rb"\S+ ([A-Z][a-z]{2,} [a-z]{3,})\b")
_ENSEMBL = re.compile(r"([A-Z][a-z]{2,})_([a-z]{3,})[._]")
_TRANSCRIPTS = re.compile(r"(^|[._])(cds|cdna|ncrna|rna|transcripts?)([._]|$)", re.I)
_KINDS = (
    (
        r"\.(csv|tsv|parquet|txt)",
        "a table or text; megadna preprocess --input FILE --column NAME (reads it",
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
class Relations:
    """What was found."""

    groups: list[list[str]] = field(default_factory=list)
    """Names of the near-identical records or files, the largest group first."""
    copies: Counter[int] = field(default_factory=Counter)
    """Sketched 31-mers by the number of near-identical records that contain them."""

    @property
    def redundancy(self) -> float:
        """Bases by distinct bases: 2 where everything is there twice."""
        distinct = sum(count / copies for copies, count in self.copies.items())
        return sum(self.copies.values()) / distinct if distinct else 1.0

    def share_left(self, held_out: float) -> float:
        """Share of the bases outside the held-out regions that is left when copies of those regions are dropped too."""
        total = sum(self.copies.values())
        left = sum(count * (1 - held_out) ** (copies - 1) for copies, count in self.copies.items())
        return left / total if total else 1.0


class Sketches:
    """The sketches of all records, while they are read."""

    def __init__(self) -> None:
        self._scale, self._count = SCALE, 0
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._names: dict[int, str] = {}
        self._files: list[str] = []

    def start_file(self, name: str) -> None:
        """Records added from here on belong to this file."""
        self._files.append(name)
        self._before = len(self._parts)

    def drop_file(self) -> None:
        """Forget the file that was started last."""
        self._files.pop()
        del self._parts[self._before :]
        self._count = sum(len(hashes) for hashes, *_ in self._parts)

    def add(self, bases: NDArray[np.uint8], record_S: NDArray[np.int64], ends_S: NDArray[np.int64]) -> set[int]:
        """Sketch the segments that end at `ends_S`, each of a record (negative: not to be compared).

        Returns the records with a hash in the sketch, which need a `name`.
        """
        seen: set[int] = set()
        for start in range(0, len(bases), _STRETCH):
            hashes, segments = sketch_by_chunk(bases[start : start + _STRETCH + K - 1], ends_S - start, self._scale)
            owners = record_S[segments]
            kept = owners >= 0
            self._parts.append((hashes[kept], owners[kept], np.full(kept.sum(), len(self._files) - 1)))
            self._count += int(kept.sum())
            seen.update(np.unique(owners[kept]).tolist())
            if self._count > MOST_HASHES:
                self._halve()
        return seen

    def name(self, record: int, name: str) -> None:
        """Name a record of the current file."""
        self._names.setdefault(record, f"{self._files[-1]}:{name}")

    def _halve(self) -> None:
        self._scale *= 2
        highest = np.uint64(2**64 // self._scale - 1)
        for number, (hashes, records, files) in enumerate(self._parts):
            kept = hashes <= highest
            self._parts[number] = hashes[kept], records[kept], files[kept]
        self._count = sum(len(hashes) for hashes, *_ in self._parts)

    def relations(self) -> Relations:
        """Compare records with each other, then files."""
        if not self._count:
            return Relations()
        hashes, records, files = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        number, record_P = np.unique(records, return_inverse=True)
        groups, copies = _grouped(hashes, record_P)
        named = [[self._names[int(number[record])] for record in group] for group in groups]
        in_files = {name.partition(":")[0] for group in named for name in group}
        of_files, copies_of_files = _grouped(hashes, files)
        for group in of_files:
            names = [self._files[file] for file in group]
            if not set(names) <= in_files:  # their contigs are too short to be compared one by one
                named.append(names)
                copies = max(copies, copies_of_files, key=lambda one: Relations(copies=one).redundancy)
        if len(self._files) == 1:
            named = [[name.partition(":")[2] for name in group] for group in named]
        return Relations(sorted(named, key=len, reverse=True), copies)


def _grouped(hashes: NDArray[np.uint64], owners: NDArray[np.int64]) -> tuple[list[list[int]], Counter[int]]:
    """Groups of near-identical owners; the pairs counted by how many linked owners have their hash."""
    order = np.lexsort((owners, hashes))
    hash_P, owner_P = hashes[order], owners[order]
    new = np.append(True, (hash_P[1:] != hash_P[:-1]) | (owner_P[1:] != owner_P[:-1]))
    hash_P, owner_P = hash_P[new], owner_P[new]
    size = np.bincount(owner_P)
    first_P = np.flatnonzero(np.append(True, hash_P[1:] != hash_P[:-1]))
    copies = np.diff(first_P, append=len(hash_P))
    copies_P, leader_P = np.repeat(copies, copies), np.repeat(owner_P[first_P], copies)
    # Pairs with the first owner of each hash only: all pairs of 10,000 copies would be 50 million a hash.
    code, count = np.unique((leader_P * len(size) + owner_P)[owner_P != leader_P], return_counts=True)
    one, two = np.divmod(code, len(size))
    smaller = np.minimum(size[one], size[two])
    linked = (smaller >= LEAST_HASHES) & (count > MAX_CONTAINMENT * smaller)
    root = np.arange(len(size))
    for a, b in zip(one[linked].tolist(), two[linked].tolist(), strict=True):
        a, b = _root(root, a), _root(root, b)
        root[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for owner in np.unique(np.concatenate((one[linked], two[linked]))).tolist():
        members.setdefault(_root(root, owner), []).append(owner)
    is_member = np.zeros(len(size), bool)
    is_member[[owner for group in members.values() for owner in group]] = True
    return list(members.values()), Counter(np.where(is_member[owner_P], copies_P, 1).tolist())


def _root(root: NDArray[np.int64], owner: int) -> int:
    while root[owner] != owner:
        root[owner] = root[root[owner]]
        owner = int(root[owner])
    return owner


@dataclass(frozen=True)
class Genomes:
    """The genomes of a folder."""

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
        """Usable bases that are neither held out nor dropped from train as copies of what is."""
        return max(1, self.usable) * (1 - 2 * self.held_out) * self.relations.share_left(2 * self.held_out)

    @property
    def are_related(self) -> bool:
        """Whether a region held out of one record may be in another: of two files of one species, or near-identical."""
        species = [species for *_, species in self.rows if species]
        return len(set(species)) < len(species) or bool(self.relations.groups)


class _Survey:
    """State while the files are read."""

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
        """Read a file, or record why it is left out."""
        name = str(path.relative_to(self.folder))
        self.sketches.start_file(name)
        try:
            _check_name(path)
            before = self._same_file.setdefault(path.resolve(), name)
            require(before == name, f"the same file as {before}")
            self._read_file(path, name)
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        else:
            return
        self.sketches.drop_file()
        self.ignored.append((name, reason))

    def _read_file(self, path: Path, name: str) -> None:
        """UserError says why a file is left out."""
        (source,) = find_sources(PreprocessOptions(input=[path], output=self.folder))
        require(not _TRANSCRIPTS.search(source.name), "transcripts by its name")
        bases, row, digest = self._read(source)
        twin = self._same_text.setdefault(digest, name)
        require(bases["contigs"] > 0, "empty: no header line that begins with '>'")
        left = ", ".join(key.removeprefix("contig_") for key in bases if key.startswith("contig_") and bases[key])
        require(bases["kept"] > 0, f"every contig is left out ({left})" if left else "holds no base")
        require(bases["kept"] > bases["n"], "holds N alone")
        require(twin == name, f"holds the same sequences as {twin}")
        self.rows.append(row)
        self.bases.update(bases)

    def _read(self, source: SourceFile) -> tuple[Counter[str], tuple[str, str, str], str]:
        """Bases of one file, its row of the sample sheet, and a digest of its sequences.

        Species: of a file name as Ensembl's, or the two words after the accession, as NCBI and ENA write them.
        """
        options, bases, digest = self.options, Counter[str](), xxhash.xxh3_128()
        select = contig_filter(options.contigs, source.path)
        first, name, reason, before = b"", b"", None, 0
        for piece, characters in scan_file(source):
            first = first or next(iter(piece.headers), b"")
            digest.update((characters & 0xDF).tobytes())  # upper case
            digest.update((piece.positions + before).tobytes())
            before += piece.size
            reasons = [reason, *select.reasons(piece.headers)]
            names = [name, *names_of(piece.headers)]
            self._count(characters, piece, reasons, names, bases)
            reason, name = reasons[-1], names[-1]
        ensembl, binomial = _ENSEMBL.match(source.path.name), _BINOMIAL.match(first)
        species = " ".join(ensembl.groups()) if ensembl else binomial.group(1).decode() if binomial else ""
        return bases, (str(source.path.absolute()), source.name, species), digest.hexdigest()

    def _count(
        self,
        characters: NDArray[np.uint8],
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
        known = _KNOWN[characters]
        bases["n"] += int((kept & ~known).sum())
        bases["soft_masked"] += int((kept & known & (characters >= ord("a"))).sum())
        bases["contigs"] += len(piece.headers)
        numbers = self.num_records - 1 + np.arange(len(reasons))
        for record in self.sketches.add(characters, np.where(is_kept, numbers, -1), ends):
            self.sketches.name(record, names[record - int(numbers[0])].decode(errors="replace"))
        self.num_records += len(piece.headers)


def survey(folder: Path) -> Genomes:
    """Read every FASTA file of `folder` as `megadna preprocess` will; UserError if there is nothing to train on."""
    require(not folder.is_file(), f"{folder}: is a file; name the folder that holds it")
    require(folder.is_dir(), f"{folder}: no such folder; name the one that holds the FASTA files")
    found = _Survey(folder)
    paths = list(_files(folder, found.ignored))
    for path in tracked(paths, f"reading {folder}", len(paths), "files"):
        found.take(path)
    if not found.rows:
        looked = [(name, reason) for name, reason in found.ignored if reason != _OTHER] or found.ignored
        why = f"; {looked[0][0]}: {looked[0][1]}" if looked else ""
        raise UserError(f"{folder}: no genome to train on in {len(found.ignored)} files{why}")
    return Genomes(found.rows, found.bases, sorted(found.ignored), found.sketches.relations())


def _files(folder: Path, ignored: list[tuple[str, str]]) -> Iterator[Path]:
    """Every file in and below a folder, by name; folders that cannot be entered are added to `ignored`."""
    entered: set[Path] = set()

    def refuse(error: OSError) -> None:
        ignored.append((str(Path(error.filename).relative_to(folder)), f"cannot be read ({error.strerror})"))

    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(root)
        if here.resolve() in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add(here.resolve())
        folders.sort()
        for name in sorted(names):
            if not _REPORT.search(name):  # read with its FASTA file
                yield here / name


def _check_name(path: Path) -> None:
    """UserError says why a file is left out unread."""
    require(path.exists(), "a link to nothing")
    require(path.is_file(), "no regular file")
    if not SEQUENCE_FILE.search(path.name):
        packed = r"(\.(gz|bgz|zst))?$"
        raise UserError(next((kind for ending, kind in _KINDS if re.search(ending + packed, path.name, re.I)), _OTHER))
    require(path.stat().st_size > 0, "empty")
