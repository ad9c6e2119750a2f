"""The weight files of a Hugging Face folder, tensor by tensor: read in any published form, written as safetensors.

In:  *.safetensors, or pytorch_model*.bin where there are none. The names come from the files themselves, so an index
     that names files which have since been replaced does no harm. Aliases of tied weights are left out.
Out: model.safetensors, or shards of at most 5 GB with model.safetensors.index.json. Headers are written first, so one
     tensor is in memory at a time. Format: https://huggingface.co/docs/safetensors, header padded to 8 bytes.
Files are read and not mapped: pages of a mapped file would count as memory of this process.

The weights of a megadna checkpoint, tensor by tensor: read from any layout, written as a checkpoint of weights only.

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
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.serialization import get_crc32_options, set_crc32_options

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.errors import UserError
from megadna.progress import Progress
from megadna.reading import first_line, parse_json
from megadna.train.checkpoint import MASTER_PREFIX
from megadna.train.integrity import refuse_foreign_pickles, seal
from megadna.train.saving import versions

SHARD_BYTES = 5_000_000_000
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}
METADATA = {"format": "pt"}
ALIASES = ("decoder.weight", "decoder.bias", "position_ids")
"""Ends of names that repeat a tied weight, or hold no weight."""
OTHER_HEADS = (".pooler.", "cls.seq_relationship.")
"""Parts of names of heads that are not the masked language model's."""


def keep_freed_memory() -> None:
    """Let glibc use freed tensors again instead of asking the kernel for zeroed pages.

    A quarter to a third fewer CPU seconds for a conversion (docs/benchmarks.md).

    mallopt(3): M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1. Elsewhere it does nothing.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, (1 << 31) - 1)


class FolderWeights:
    """Tensors of a Hugging Face folder by name; `renamed` (old, new) pairs change parts of the names."""

    def __init__(self, folder: Path, renamed: list[tuple[str, str]] | None = None) -> None:
        self._places: dict[str, tuple[Path, dict[str, Any] | None, int]] = {}
        self._pickled: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            header, start = _header(path)
            self._places |= {name: (path, entry, start) for name, entry in header.items()}
        if not self._places:
            for path in sorted(folder.glob("pytorch_model*.bin")):
                self._pickled |= _unpickled(path)
                self._places |= dict.fromkeys(self._pickled, (path, None, 0))
        if not self._places:
            raise UserError(f"{folder}: no *.safetensors and no pytorch_model*.bin; give a Hugging Face model folder")
        for old, new in renamed or []:
            self._places = {name.replace(old, new): place for name, place in self._places.items()}
            self._pickled = {name.replace(old, new): tensor for name, tensor in self._pickled.items()}

    def names(self) -> list[str]:
        """Every name but the aliases and other heads."""
        names = (name for name in self._places if not name.endswith(ALIASES))
        return [name for name in names if not any(part in name for part in OTHER_HEADS)]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def dtype(self, name: str) -> torch.dtype:
        """Type that a tensor is stored in."""
        entry = self._places[name][1]
        return self._pickled[name].dtype if entry is None else DTYPES[entry["dtype"]]

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own; UserError where there is none of that name or the file is cut short."""
        if name not in self._places:
            raise UserError(f"the Hugging Face model lacks {name}; its architecture is not that of config.json")
        path, entry, start = self._places[name]
        if entry is None:
            return self._pickled[name].clone()
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name} is stored as {entry['dtype']}; convert it to {', '.join(DTYPES)}")
        first, end = entry["data_offsets"]
        if start + end > path.stat().st_size:  # before memory is set aside for it
            raise UserError(f"{path}: ends before {name} does; the file is damaged, fetch it again")
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        with path.open("rb") as file:
            file.seek(start + first)
            if file.readinto(_bytes(tensor)) != end - first:
                raise UserError(f"{path}: ends before {name} does; the file is damaged, fetch it again")
        return tensor


def write_weights(
    folder: Path, groups: Mapping[str, Mapping[str, Tensor]], read: Callable[[str], Mapping[str, Tensor]]
) -> int:
    """Write shards into `folder`; return the number of parameters.

    groups: by group the tensors it will give, on the meta device: what fixes shapes and shards. read: the same group
    with its numbers. A group is read once and stands in one shard.
    """
    shards: list[list[str]] = [[]]
    filled = total = 0
    for group, tensors in groups.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        total += size
        if shards[-1] and filled + size > SHARD_BYTES:
            shards, filled = [*shards, []], 0
        shards[-1].append(group)
        filled += size
    files: dict[str, str] = {}
    with Progress("writing", len(groups), "tensors") as progress:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            planned = {key: tensor for group in shard for key, tensor in groups[group].items()}
            with (folder / name).open("wb") as file:
                file.write(_new_header(planned))
                for group in shard:
                    for key, tensor in read(group).items():
                        expected = planned[key]
                        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), key
                        file.write(_bytes(tensor))
                    progress.advance()
            files |= dict.fromkeys(planned, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sum(tensor.numel() for tensors in groups.values() for tensor in tensors.values())


def _new_header(planned: Mapping[str, Tensor]) -> bytes:
    """Length, then the JSON of names, types, shapes and places in the order of `planned`."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    at = 0
    for key, tensor in planned.items():
        header[key] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at := at + tensor.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Entries by tensor name, and where the data begin; UserError where it is no safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(100 << 20, path.stat().st_size):
                raise ValueError("no header")
            header = parse_json(file.read(length), str(path), "fetch it again", what="a safetensors file")
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise UserError(f"{path}: not a safetensors file (the entry of {name[:80]}); fetch it again")
    return header, 8 + length


def _is_entry(entry: Any) -> bool:
    """Whether a tensor's type, shape and range of bytes are stated, and belong together."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    for numbers in (entry.get("shape"), entry.get("data_offsets")):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            return False
    if len(entry["data_offsets"]) != 2:
        return False
    first, end = entry["data_offsets"]
    dtype = DTYPES.get(entry["dtype"])
    return first <= end and (dtype is None or math.prod(entry["shape"]) * dtype.itemsize == end - first)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A .bin file through torch's reader of tensors alone, mapped into memory where its format allows."""
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: refused, not a file of tensors ({first_line(error)})") from error
    size = path.stat().st_size
    for name, tensor in found.items() if isinstance(found, dict) else [("its content", found)]:
        # A pickle may state any shape over a few bytes, or none of its own.
        whole = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not whole or not isinstance(name, str) or tensor.nbytes > size:
            raise UserError(f"{path}: refused, not a file of tensors ({str(name)[:80]} is none that fits the file)")
    return found


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
COMMON = {"common_backend": "torch", "common_backend_version": 1}
"""metadata.json of megatron-core's distributed format."""


class CheckpointTensors:
    """Full tensors of a checkpoint by megatron-core name: the fp32 master weights, or the model's own."""

    def __init__(self, checkpoint: Path, *, master: bool) -> None:
        """`master` falls back to the model's own weights where the checkpoint has no optimizer."""
        refuse_foreign_pickles(checkpoint / "weights")
        self._reader = FileSystemReader(checkpoint / "weights")
        entries = self._reader.read_metadata().state_dict_metadata
        self._bytes = sum(path.stat().st_size for path in (checkpoint / "weights").glob("*.distcp"))
        tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        self.has_master = any(name.startswith(MASTER_PREFIX) for name in tensors)
        self._prefix = MASTER_PREFIX if master and self.has_master else ""
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
    """Without torch's remark, at every tensor, that there is one process; UserError and Ctrl-C pass as they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            reason, _ = next(iter(error.failures.values()))
            raise (reason if isinstance(reason, UserError | KeyboardInterrupt) else error) from None


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Let torch.save leave out its sums, a tenth of an import: a sealed checkpoint has its own."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


class _Streamed(DefaultSavePlanner):
    """Asks for a tensor when its turn to be written has come; torch's own planner holds them all."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._read = read

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._read(index.fqn)


class _Nameless(FileSystemWriter):
    """Leaves the folder's path out of the description; as a Path it would be a foreign object in the pickle."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def write_tensors(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], *, dtype: torch.dtype
) -> None:
    """Write the weights of a checkpoint into the empty `folder`, asking `read` for one tensor after the other."""
    weights = folder / "weights"
    hollow = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    # A file each: torch holds every tensor of a file until the file is finished. Sealing syncs.
    writer = _Nameless(weights, single_file_per_rank=False, thread_count=1, sync_files=False)
    with _alone(), _without_crc32(), Progress("writing", len(shapes), "tensors") as progress:

        def told(name: str) -> Tensor:
            progress.advance()
            return read(name)

        dcp.save(hollow, storage_writer=writer, planner=_Streamed(told), no_dist=True)
    (weights / "metadata.json").write_text(json.dumps(BACKEND | COMMON))
    torch.save({}, weights / "common.pt")


def seal_checkpoint(folder: Path, config: Config, facts: dict[str, Any]) -> None:
    """Make the tensors of `write_tensors` a checkpoint of step 0; `facts` go into its state.json."""
    start = {"step": 0, "consumed_samples": 0, "skipped": [], "optimizer_format": "none"}
    numbers = start | facts | {"versions": versions()}
    (folder / "state.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "config.yaml").write_text(dump_config(config))
    with Progress("checksums"):
        seal(folder)
