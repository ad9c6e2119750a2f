"""Checksums of input files (SHA-256, in a thread) and of the dataset's files (XXH3, 128 bits)."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megadna.data.manifest import SPLITS, FileEntry

_BLOCK = 1 << 18


class SourceHasher:
    """SHA-256 of files, one after the other in a background thread."""

    def __init__(self, *, enabled: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if enabled else None
        self._results: dict[Path, Future[str]] = {}

    def start(self, path: Path) -> None:
        """Begin unless it has begun; standard input and a disabled hasher have no checksum."""
        if self._pool is not None and path not in self._results and str(path) != "-":
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
        """Cut the files to what an interrupted build has finished, if anything; hash that."""
        self._files = [(work / f"{split}.bin").open("a+b", buffering=0) for split in SPLITS]
        self._digests = [xxhash.xxh3_128() for _ in SPLITS]
        for file, digest, size in zip(self._files, self._digests, sizes, strict=True):
            file.truncate(size)
            file.seek(0)
            while block := file.read(_BLOCK):
                digest.update(block)

    def write(self, runs: list[np.ndarray], buffer: np.ndarray) -> None:
        """Append stretches of the letters: int64 [W, 2] (start, end) by split."""
        letters = memoryview(buffer)  # type: ignore[arg-type]
        for file, digest, stretches in zip(self._files, self._digests, runs, strict=True):
            for start, end in stretches.tolist():
                stretch = letters[start:end]
                digest.update(stretch)
                while stretch:  # a nearly full disk takes a part
                    stretch = stretch[file.write(stretch) :]

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
