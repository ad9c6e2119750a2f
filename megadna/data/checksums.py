"""Checksums of input files (SHA-256, in a thread) and of the dataset's files (XXH3, 128 bits)."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

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
            self._results[path] = self._pool.submit(_sha256, path)

    def result(self, path: Path) -> str:
        """Hexadecimal checksum, waiting for it; empty where there is none."""
        return self._results[path].result() if path in self._results else ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


class BinHasher:
    """XXH3 of the growing .bin files: from memory, or read back while they are still in the page cache."""

    def __init__(self, work: Path) -> None:
        self._paths = [work / f"{split}.bin" for split in SPLITS]
        self._digests = [xxhash.xxh3_128() for _ in SPLITS]
        self._done = [0] * len(SPLITS)
        self._buffer = memoryview(bytearray(_BLOCK))

    def advance(self, offsets: list[int]) -> None:
        """Hash up to these offsets."""
        for split, end in enumerate(offsets):
            if self._done[split] < end:
                with self._paths[split].open("rb", buffering=0) as file:
                    file.seek(self._done[split])
                    while self._done[split] < end:
                        size = file.readinto(self._buffer[: end - self._done[split]])
                        self._digests[split].update(self._buffer[:size])
                        self._done[split] += size

    def update(self, split: int, letters: memoryview) -> None:
        """Hash letters that are being appended, straight from memory."""
        self._digests[split].update(letters)
        self._done[split] += len(letters)

    def entry(self, split: int) -> FileEntry:
        """Size and checksum of a .bin file."""
        self.advance([path.stat().st_size if path.exists() else 0 for path in self._paths])
        return FileEntry(size=self._done[split], xxh128=self._digests[split].hexdigest())


def checksum(path: Path) -> FileEntry:
    """Size and checksum of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return FileEntry(size=path.stat().st_size, xxh128=digest.hexdigest())


def checksum_files(work: Path, bins: BinHasher) -> dict[str, FileEntry]:
    """Entries of all data files of a dataset."""
    files = {}
    for split, name in enumerate(SPLITS):
        if (work / f"{name}.bin").exists():
            files[f"{name}.bin"] = bins.entry(split)
            for kind in ("idx", "start.npy"):
                files[f"{name}.{kind}"] = checksum(work / f"{name}.{kind}")
    files["contigs.tsv"] = checksum(work / "contigs.tsv")
    return files
