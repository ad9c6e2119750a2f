"""Checkpoint folders that are complete or do not count, and that contain nothing but tensors and numbers.

`seal` syncs every file and writes the marker `complete` last: a JSON of each file's size and checksum. `check` compares
them. `refuse_foreign_pickles` reads what torch would unpickle through allow-lists, before torch or megatron sees it.
"""

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megadna.errors import UserError
from megadna.files import sync_tree
from megadna.reading import first_line, read_json

MARKER = "complete"
ALWAYS = ("state.json", "config.yaml", "weights/.metadata", "weights/common.pt", "weights/metadata.json")
"""Files that every checkpoint has, besides its shards."""
MOST_OBJECTS = 1 << 24
BLOCK = 1 << 20
THREADS = 4

ALLOWED = {
    "torch": {"Size", "bfloat16", "float16", "float32", "float64", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
}
"""Globals that `.metadata` of a checkpoint of tensors may name; none of them runs code that a file can choose."""


def seal(folder: Path) -> None:
    """Sync every file of `folder`, then write and sync the marker."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    with ThreadPoolExecutor(THREADS) as pool:
        entries = dict(
            zip((path.relative_to(folder).as_posix() for path in files), pool.map(_entry, files), strict=True)
        )
    marker = folder / MARKER
    marker.write_text(json.dumps(entries, indent=1) + "\n")
    sync_tree(folder)


def check(folder: Path) -> None:
    """UserError that names a file (the marker included) that is missing, cut short or changed since `seal`."""
    entries = read_marker(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_entry_or_problem, (folder / name for name in entries))
        for (name, expected), entry in zip(entries.items(), found, strict=True):
            if isinstance(entry, str):
                raise UserError(f"{folder / name}: {entry}; the checkpoint is damaged")
            if entry["bytes"] != expected["bytes"]:
                sizes = f"{entry['bytes']} bytes, {expected['bytes']} were written"
                raise UserError(f"{folder / name}: {sizes}; the checkpoint is damaged")
            if entry != expected:
                raise UserError(f"{folder / name}: its checksum is not the one written; the checkpoint is damaged")


def read_marker(folder: Path) -> dict[str, dict[str, int]]:
    """Size and checksum by file; UserError if the marker is not what `seal` writes for these files."""
    marker = folder / MARKER
    if not marker.exists():
        raise UserError(f"{marker}: missing, so the checkpoint was never finished or is damaged")
    entries = read_json(marker, "the checkpoint is damaged")
    if not all(map(_is_entry, entries.values())):
        raise UserError(f"{marker}: does not give size and checksum of each file; the checkpoint is damaged")
    for name in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{marker}: {name[:80]!r} is no file of a checkpoint; the checkpoint is damaged")
    shards = (path.relative_to(folder).as_posix() for path in (folder / "weights").glob("*.distcp"))
    for name in (*ALWAYS, *shards):
        if name not in entries:
            raise UserError(f"{marker}: does not name {name}; the checkpoint is damaged")
    return entries


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict) and value.keys() == {"bytes", "crc32"} and all(type(n) is int for n in value.values())
    )


def refuse_foreign_pickles(weights: Path) -> None:
    """UserError if `.metadata` or `common.pt` contain anything but tensor descriptions and plain values."""
    with _refusing(weights / ".metadata", "not a description of tensors") as path, path.open("rb") as file:
        for name, entry in _AllowList(file).load().state_dict_metadata.items():
            if type(entry).__name__ != "TensorStorageMetadata":
                raise pickle.UnpicklingError(f"{name} is no tensor")
    with _refusing(weights / "common.pt", "holds more than plain values") as path:
        torch.load(path, weights_only=True)


@contextmanager
def _refusing(path: Path, problem: str) -> Iterator[Path]:
    """UserError that names the file where it cannot be read, or unpickling fails in any of a dozen ways."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); the checkpoint is damaged") from error
    except Exception as error:  # MemoryError and RecursionError among them
        raise UserError(f"{path}: refused, {problem} ({first_line(error)})") from error


def tensor_entries(weights: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and type of each tensor by name, once `refuse_foreign_pickles` has passed the folder."""
    refuse_foreign_pickles(weights)
    entries: Any = FileSystemReader(weights).read_metadata().state_dict_metadata
    return dict(entries)


_Unpickler: Any = pickle._Unpickler


class _AllowList(_Unpickler):
    """Python's unpickler written in Python, whose memo is a dictionary. The one in C, with which torch reads the file
    next, allocates a slot for every number up to the largest, so ten bytes can claim 64 GB: these are refused here."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, if it is one of ALLOWED."""
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def load_long_binput(self) -> None:
        """Refuse memo numbers that no file of tensors needs."""
        number = int.from_bytes(self.read(4), "little")
        if number > MOST_OBJECTS:
            raise pickle.UnpicklingError(f"it numbers an object {number}")
        self.memo[number] = self.stack[-1]

    def load_put(self) -> None:
        """Refuse the text form, which torch's writer does not use."""
        raise pickle.UnpicklingError("it is of pickle protocol 0")

    dispatch = _Unpickler.dispatch | {
        pickle.LONG_BINPUT[0]: load_long_binput,
        pickle.PUT[0]: load_put,
    }


def _entry_or_problem(path: Path) -> dict[str, int] | str:
    try:
        return _entry(path) if path.is_file() else "not a file" if path.exists() else "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _entry(path: Path) -> dict[str, int]:
    """Size and CRC-32 of the file; isa-l computes it at memory speed."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = isal_zlib.crc32(block, value)
    return {"bytes": path.stat().st_size, "crc32": value}
