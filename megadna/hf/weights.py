"""The weight files of a Hugging Face folder, tensor by tensor: read in any published form, written as safetensors.

In:  *.safetensors, or pytorch_model*.bin where there are none. The names come from the files themselves, so an index
     that names files which have since been replaced does no harm. Aliases of tied weights are left out.
Out: model.safetensors, or shards of at most 5 GB with model.safetensors.index.json.

One tensor is in memory at a time. Therefore a safetensors file is opened for each tensor that is read: its pages are
mapped, and count as memory of this process until the tensor is gone. And therefore the file is written here: the
library's save_file wants all tensors of a file at once, 5 GB of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megadna.errors import UserError
from megadna.files import write_json
from megadna.progress import Progress
from megadna.reading import first_line

SHARD_BYTES = 5_000_000_000
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIASES = ("decoder.weight", "decoder.bias", "position_ids")
"""Ends of names that repeat a tied weight, or hold no weight."""
OTHER_HEADS = (".pooler.", "cls.seq_relationship.")
"""Parts of names of heads that are not the masked language model's."""


class FolderWeights:
    """Tensors of a Hugging Face folder by name; `renamed` (old, new) pairs change parts of the names."""

    def __init__(self, folder: Path, renamed: list[tuple[str, str]] | None = None) -> None:
        self._found: dict[str, tuple[Path, str, str] | Tensor] = {}
        """File, name in it and type of each tensor of a safetensors file; a mapped tensor of a .bin file."""
        for path in sorted(folder.glob("*.safetensors")):
            with _opened(path) as file:
                types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
            self._found |= {_renamed(name, renamed): (path, name, kind) for name, kind in types.items()}
        for path in [] if self._found else sorted(folder.glob("pytorch_model*.bin")):
            self._found |= {_renamed(name, renamed): tensor for name, tensor in _unpickled(path).items()}
        if not self._found:
            raise UserError(f"{folder}: no *.safetensors and no pytorch_model*.bin; give a Hugging Face model folder")

    def names(self) -> list[str]:
        """Every name but the aliases and other heads."""
        names = (name for name in self._found if not name.endswith(ALIASES))
        return [name for name in names if not any(part in name for part in OTHER_HEADS)]

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def dtype(self, name: str) -> torch.dtype:
        """Type that a tensor is stored in; UserError where it is none of DTYPES."""
        found = self._found[name]
        if isinstance(found, Tensor):
            return found.dtype
        path, stored, kind = found
        if kind not in DTYPES:
            raise UserError(f"{path}: {stored} is stored as {kind}; convert it to one of {', '.join(DTYPES)}")
        return DTYPES[kind]

    def read(self, name: str) -> Tensor:
        """One tensor; UserError where there is none of that name."""
        if name not in self:
            raise UserError(f"the Hugging Face model lacks {name}; its architecture is not that of config.json")
        found = self._found[name]
        if isinstance(found, Tensor):
            return found.clone()
        self.dtype(name)
        path, stored, _ = found
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor


def _renamed(name: str, pairs: list[tuple[str, str]] | None) -> str:
    for old, new in pairs or []:
        name = name.replace(old, new)
    return name


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, whose header safetensors has compared with its size; UserError where it does not fit."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a safetensors file ({first_line(error)}); fetch it again") from error


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


def write_weights(
    folder: Path, groups: Mapping[str, Mapping[str, Tensor]], read: Callable[[str], Mapping[str, Tensor]]
) -> int:
    """Write shards into `folder`; return the number of parameters.

    groups: by group the tensors it will give, on the meta device: what fixes shapes and shards. read: the same group
    with its numbers. A group is read once and is in one shard.
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
        write_json(folder / "model.safetensors.index.json", index)
    return sum(tensor.numel() for tensors in groups.values() for tensor in tensors.values())


def _new_header(planned: Mapping[str, Tensor]) -> bytes:
    """Length, then the JSON of names, types, shapes and offsets in the order of `planned`, padded to 8 bytes.

    https://huggingface.co/docs/safetensors
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in planned.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
