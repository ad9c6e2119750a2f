"""The weights of a megadna checkpoint, tensor by tensor: read from any layout, written as a checkpoint of weights only.

Read and written with torch's own distributed checkpoint, in one process without a process group. A checkpoint of
weights only holds every tensor whole, under its megatron-core name, and neither optimizer nor schedule; training
starts from it with checkpoint.init_from.
"""

import ctypes
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.serialization import get_crc32_options, set_crc32_options

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.errors import UserError
from megadna.files import write_json
from megadna.progress import Progress
from megadna.train.checkpoint import MASTER_PREFIX
from megadna.train.integrity import seal, tensor_entries
from megadna.train.saving import versions

BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
COMMON = {"common_backend": "torch", "common_backend_version": 1}
"""metadata.json of megatron-core's distributed format."""


class CheckpointTensors:
    """Full tensors of a checkpoint by megatron-core name: the fp32 master weights, or the model's own."""

    def __init__(self, checkpoint: Path, *, master: bool) -> None:
        """`master` falls back to the model's own weights where the checkpoint has no optimizer."""
        tensors = tensor_entries(checkpoint / "weights")
        self._reader = FileSystemReader(checkpoint / "weights")
        self._bytes = sum(path.stat().st_size for path in (checkpoint / "weights").glob("*.distcp"))
        has_master = any(name.startswith(MASTER_PREFIX) for name in tensors)
        self._prefix = MASTER_PREFIX if master and has_master else ""
        self._entries = {
            name.removeprefix(self._prefix): entry
            for name, entry in tensors.items()
            if name.startswith(self._prefix) and (self._prefix or not name.startswith("optimizer."))
        }

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._entries)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the weights are stored in."""
        return next(iter(self._entries.values())).properties.dtype

    def read(self, name: str) -> Tensor:
        """One tensor, whole; UserError where the shards are too small to hold it."""
        entry = self._entries[name]
        if math.prod(entry.size) * entry.properties.dtype.itemsize > self._bytes:  # before memory is set aside for it
            raise UserError(f"{self._reader.path}: {name} {list(entry.size)} does not fit its files; it is damaged")
        wanted = {self._prefix + name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        with _alone():
            load_shards(wanted, storage_reader=self._reader, no_dist=True)
        return wanted[self._prefix + name]


@contextmanager
def _alone() -> Iterator[None]:
    """Silences torch's warning, at every tensor, that there is one process; UserError and Ctrl-C pass unchanged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            reason, _ = next(iter(error.failures.values()))
            raise (reason if isinstance(reason, UserError | KeyboardInterrupt) else error) from None


@contextmanager
def _without_crc32() -> Iterator[None]:
    """torch.save without its checksums, a tenth of the time of an import: a sealed checkpoint has its own."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


class _Streamed(DefaultSavePlanner):
    """Reads a tensor when it is written; torch's own planner holds all of them in memory."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._read = read

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._read(index.fqn)


class _Nameless(FileSystemWriter):
    """Leaves the folder's path out of the metadata; as a Path it would be a foreign object in the pickle."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of asking the kernel for zeroed pages.

    A conversion takes a quarter to a third fewer CPU seconds (docs/benchmarks.md). mallopt(3): M_MMAP_MAX is -4,
    M_TRIM_THRESHOLD -1. Without glibc it does nothing.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, (1 << 31) - 1)


def write_tensors(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], *, dtype: torch.dtype
) -> None:
    """Write the weights of a checkpoint into the empty `folder`, reading one tensor after the other."""
    weights = folder / "weights"
    hollow = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    # One file a tensor: torch holds every tensor of a file until the file is finished. Sealing syncs to disk.
    writer = _Nameless(weights, single_file_per_rank=False, thread_count=1, sync_files=False)
    with _alone(), _without_crc32(), Progress("writing", len(shapes), "tensors") as progress:

        def counted(name: str) -> Tensor:
            progress.advance()
            return read(name)

        dcp.save(hollow, storage_writer=writer, planner=_Streamed(counted), no_dist=True)
    (weights / "metadata.json").write_text(json.dumps(BACKEND | COMMON))
    torch.save({}, weights / "common.pt")


def seal_checkpoint(folder: Path, config: Config, facts: dict[str, Any]) -> None:
    """Turn the tensors of `write_tensors` into a checkpoint of step 0; `facts` go into its state.json."""
    start = {"step": 0, "consumed_samples": 0, "skipped": []}
    numbers = start | facts | {"versions": versions()}
    write_json(folder / "state.json", numbers)
    (folder / "config.yaml").write_text(dump_config(config))
    with Progress("checksums"):
        seal(folder)
