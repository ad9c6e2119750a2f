"""manifest.json of a dataset folder: what is in it, where it came from, and how it was made.

In:  DATASET/manifest.json, written last by the builder; a folder without it is not a finished dataset.
Out: frozen dataclasses. Counts are bases unless a name says otherwise; ranges are half-open sequence indices. Also the
     checksums of input files (SHA-256, in a thread) and of the dataset's files (XXH3, 128 bits).
The format is documented in docs/dataset_format.md.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import numpy as np
import xxhash

from megadna.errors import UserError
from megadna.reading import read_json

SPLITS = ("train", "valid", "test")
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_AGAIN = "run megadna preprocess again"
_LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file: what it contained and which chunks are its."""

    name: str
    """Unique in the dataset; the file's name without its endings, or the sample sheet's genome."""
    path: str
    """Absolute path at the time of the build."""
    species: str = ""
    """From the sample sheet; empty if unknown."""
    taxa: Mapping[str, str] = field(default_factory=dict)
    """Further columns of the sample sheet."""
    split: str = ""
    """Split of the whole file, where the sample sheet or an option decides; empty where its chunks are drawn."""
    size: int
    """Bytes of the file on disk."""
    sha256: str
    """Of the file on disk; empty for standard input."""
    modified: int = 0
    """0; in older manifests without a sha256, the time of the file's last change."""
    records: int
    """FASTA records."""
    bases: int
    """Bases of all records, dropped ones included."""
    gc: int
    """G and C, either case."""
    n: int
    """N, either case."""
    soft_masked: int
    """Lower-case bases."""
    other: Mapping[str, int] = field(default_factory=dict)
    """IUPAC codes, U and gap characters in the input, by upper-case character."""
    chunks: Mapping[str, int]
    """Chunks by split."""
    ranges: Mapping[str, tuple[int, int]]
    """Sequence indices [first, end) by split; empty ranges included."""
    kept: int
    """Bases on disk."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Bases left out, by reason; kept + all of these = bases."""
    dropped_chunks: Mapping[str, int] = field(default_factory=dict)
    """Chunks left out, by reason."""

    @property
    def gc_fraction(self) -> float:
        """G and C among the bases that are not N."""
        return self.gc / max(1, self.bases - self.n)

    @property
    def n_fraction(self) -> float:
        """N among all bases."""
        return self.n / max(1, self.bases)

    @property
    def soft_masked_fraction(self) -> float:
        """Lower case among all bases."""
        return self.soft_masked / max(1, self.bases)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the dataset, for integrity checks."""

    size: int
    """Bytes."""
    xxh128: str
    """XXH3 128-bit checksum, hexadecimal (`xxhsum -H128`)."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that describes a finished dataset."""

    format_version: int
    """Raised when an older reader could misread the folder."""
    program_version: str
    """megadna's version at the build."""
    dataset_id: str
    """Hash of the checksums of the .bin and .idx files: the dataset's identity."""
    chunk_length: int
    """Nucleotides per full chunk."""
    chunks: Mapping[str, int]
    """Chunks by split; 0 for a split that was not asked for (it has no files)."""
    bases: Mapping[str, int]
    """Nucleotides on disk by split."""
    sources: tuple[Source, ...]
    """In the order of their chunks on disk."""
    files: Mapping[str, FileEntry]
    """Size and checksum of the data files, by file name."""
    options: Mapping[str, Any]
    """Every option of the build that decides its content; older manifests record options that are gone."""
    side_files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the BED files and assembly reports that were read, by absolute path."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know, e.g. a split that got one block so as not to be empty."""
    leakage: Mapping[str, Any] = field(default_factory=dict)
    """Summary of the leakage report, if one was asked for."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold chunks, in the order train, valid, test."""
        return tuple(split for split in SPLITS if self.chunks[split])


def leakage_line(manifest: Manifest, split: str) -> str:
    """The leakage of a held-out split, with the remedy; "" where it was not measured."""
    found = manifest.leakage.get("splits", {}).get(split)
    if found is None:
        return ""
    line = f"leakage: {found['flagged']:,} of {found['chunks']:,} {split} chunks share more than "
    line += f"{manifest.leakage['max_containment']:g} of their sketch with train"
    if found["mean"] is not None:
        line += f" (mean {found['mean']}, highest {found['highest']})"
    if found["without_sketch"]:
        line += f"; {found['without_sketch']:,} are too short or too ambiguous to tell"
    if found["flagged"]:
        line += "; megadna preprocess with --leakage drop_from_train leaves what they share out of train"
    return line


def dataset_identity(files: Mapping[str, FileEntry]) -> str:
    """32 hexadecimal digits from the checksums of the .bin and .idx files; names and order of listing do not matter."""
    lines = [f"{name} {entry.xxh128}\n" for name, entry in sorted(files.items()) if name.endswith((".bin", ".idx"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def dump_manifest(manifest: Manifest) -> str:
    """The manifest as JSON text."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def load_manifest(path: Path | str) -> Manifest:
    """Manifest of a dataset folder; UserError that names the file and the remedy where it is missing or unreadable."""
    folder = Path(path)
    file = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset folder; make one with megadna preprocess --output {folder}")
    if not file.is_file():
        raise UserError(
            f"{file}: missing, so {folder} is not a finished dataset; run megadna preprocess again "
            "(with --resume if it was interrupted)"
        )
    raw = read_json(file, _AGAIN, what="a manifest, or damaged")
    version = raw.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        newer = f"dataset format {str(version)[:20]} is newer than this megadna reads ({FORMAT_VERSION})"
        raise UserError(f"{file}: {newer}; upgrade megadna")
    try:
        manifest = _typed(Manifest, raw, "")
        _check(manifest)
    except (_Unfit, RecursionError) as error:
        raise UserError(f"{file}: not a manifest, or damaged ({error}); {_AGAIN}") from error
    return manifest


class _Unfit(Exception):
    """A key, and what is wrong with its value."""


def _typed(kind: Any, value: Any, key: str) -> Any:
    """`value` of a JSON file as `kind`: a dataclass of this module, a mapping, a tuple, text, a count; else _Unfit."""
    if kind is Any:
        return value
    if kind in (int, str):
        fits = type(value) is kind and (kind is str or 0 <= value <= _LARGEST)
        return value if fits else _unfit(key, value, "text" if kind is str else "a count")
    of = get_args(kind)
    if get_origin(kind) is tuple:
        whole = of[1] is Ellipsis
        if not isinstance(value, list) or not (whole or len(value) == len(of)):
            return _unfit(key, value, "a list" if whole else f"a list of {len(of)}")
        return tuple(_typed(of[0], item, f"{key}[{number}]") for number, item in enumerate(value))
    if not isinstance(value, dict):
        return _unfit(key, value, "an object")
    if of:
        return {name: _typed(of[1], item, f"{key}.{name}") for name, item in value.items()}
    known = {entry.name: entry for entry in fields(kind)}
    inside = f"{key}." if key else ""
    if unknown := sorted(value.keys() - known.keys()):
        raise _Unfit(f"unknown key {inside}{unknown[0][:80]}")
    for name, entry in known.items():
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise _Unfit(f"no key {inside}{name}")
    return kind(**{name: _typed(known[name].type, item, inside + name) for name, item in value.items()})


def _unfit(key: str, value: Any, wanted: str) -> NoReturn:
    raise _Unfit(f"{key[:80] or 'the file'} is not {wanted} but {reprlib.repr(value)}")


def _check(manifest: Manifest) -> None:
    """_Unfit where a split has no count, a file is outside the folder or a source has chunks that its split lacks."""
    for where, table in (("chunks", manifest.chunks), ("bases", manifest.bases)):
        for split in SPLITS:
            if split not in table:
                raise _Unfit(f"no key {where}.{split}")
    for name in manifest.files:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise _Unfit(f"files: {name[:80]!r} is not the name of a file in this folder")
    if not manifest.chunk_length:
        raise _Unfit("chunk_length is 0")
    for split, row in _typed(Mapping[str, Any], manifest.leakage.get("splits", {}), "leakage.splits").items():
        numbers = [row.get(key) for key in ("flagged", "chunks")] if isinstance(row, dict) else [None]
        if not all(type(value) in (int, float) for value in (*numbers, manifest.leakage.get("max_containment"))):
            raise _Unfit(f"leakage.splits.{split[:80]}: flagged, chunks and leakage.max_containment are numbers")
    for number, source in enumerate(manifest.sources):
        for split in SPLITS:
            if split not in source.ranges or split not in source.chunks:
                raise _Unfit(f"sources[{number}] lacks {split} in ranges or chunks")
            first, end = source.ranges[split]
            if not first <= end <= manifest.chunks[split]:
                raise _Unfit(f"sources[{number}].ranges.{split} is not within the {manifest.chunks[split]} chunks")


_BLOCK = 1 << 18


class SourceHasher:
    """SHA-256 of files, one after the other in a background thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._results: dict[Path, Future[str]] = {}

    def start(self, path: Path) -> None:
        """Begin, once; standard input has no checksum."""
        if path not in self._results and str(path) != "-":
            self._results[path] = self._pool.submit(_hashed, path, hashlib.sha256())

    def result(self, path: Path) -> str:
        """Hexadecimal checksum, waiting for it; empty where there is none."""
        return self._results[path].result() if path in self._results else ""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return _hashed(path, hashlib.sha256())


def _hashed(path: Path, digest: Any) -> str:
    """Hexadecimal digest of a file's bytes."""
    view = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(view):
            digest.update(view[:size])
    return str(digest.hexdigest())


class Bins:
    """The three .bin files of a build, appended to and hashed as they grow."""

    def __init__(self, work: Path, sizes: list[int]) -> None:
        """Truncate the files to what an interrupted build has finished (`sizes` by split), and hash that."""
        self._files = [(work / f"{split}.bin").open("a+b", buffering=0) for split in SPLITS]
        self._digests = [xxhash.xxh3_128() for _ in SPLITS]
        for file, digest, size in zip(self._files, self._digests, sizes, strict=True):
            file.truncate(size)
            file.seek(0)
            while block := file.read(_BLOCK):
                digest.update(block)

    def write(self, runs: list[np.ndarray], buffer: np.ndarray) -> None:
        """Append runs of the buffer: int64 [W, 2] (start, end) by split."""
        bases = memoryview(buffer)  # type: ignore[arg-type]
        for file, digest, mine in zip(self._files, self._digests, runs, strict=True):
            for start, end in mine.tolist():
                rest = bases[start:end]
                digest.update(rest)
                while rest:  # a nearly full disk takes a part
                    rest = rest[file.write(rest) :]

    def close(self) -> list[str]:
        """Hexadecimal checksum of each file."""
        for file in self._files:
            file.close()
        return [digest.hexdigest() for digest in self._digests]


def checksum(path: Path) -> FileEntry:
    """Size and checksum of a file."""
    return FileEntry(size=path.stat().st_size, xxh128=_hashed(path, xxhash.xxh3_128()))


def checksum_files(work: Path, bins: list[str]) -> dict[str, FileEntry]:
    """Entries of all data files of a dataset; `bins` are the checksums of the .bin files by split."""
    files = {}
    for name, digest in zip(SPLITS, bins, strict=True):
        if (work / f"{name}.bin").exists():
            files[f"{name}.bin"] = FileEntry(size=(work / f"{name}.bin").stat().st_size, xxh128=digest)
            for kind in ("idx", "start.npy"):
                files[f"{name}.{kind}"] = checksum(work / f"{name}.{kind}")
    files["contigs.tsv"] = checksum(work / "contigs.tsv")
    return files
