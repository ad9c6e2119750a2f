"""Checkpoints: megatron's distributed format (torch_dist) in RUN/checkpoints/step-00000100/, whole or absent.

    step-00000100/weights/     shards, layout-free: model, fp32 master weights and moments under global names
    step-00000100/state.json   step, consumed samples, versions
    step-00000100/config.yaml  the resolved config
    step-00000100/complete     the commit marker, written last: sizes and checksums of all files

A folder without the marker does not count (integrity.py); saving.py writes them.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from megadna.arguments import load_config
from megadna.config import Config, ParallelConfig
from megadna.engine.distributed import World
from megadna.engine.optimizer import allocate_moments, gather_weights, load_optimizer
from megadna.errors import UserError
from megadna.log import get_logger
from megadna.model.encoder import build_encoder
from megadna.model.sharding import SHARDING_METADATA, sharded_weights
from megadna.train.integrity import MARKER, check, refuse_foreign_pickles
from megadna.train.state import TrainState

log = get_logger(__name__)

METADATA = {**SHARDING_METADATA, "distrib_optim_sharding_type": "fully_reshardable"}
MASTER_PREFIX = "optimizer.state.param."
"""Name prefix of the fp32 master weights among the tensors of a checkpoint."""


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Fill `state` from a checkpoint of any layout; every tensor of the model must be there (strict)."""
    refuse_foreign_pickles(folder / "weights")
    loaded = dist_checkpointing.load(sharded_state(state, is_loading=True), str(folder / "weights"))
    for name, module in _modules(state).items():
        module.load_state_dict(loaded["model"][name])
    load_optimizer(state.optimizer, loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    numbers = read_numbers(folder)
    state.step, state.consumed_samples = numbers["step"], numbers["consumed_samples"]
    state.skipped = [(first, end) for first, end in numbers["skipped"]]


def checkpoint_model(folder: Path, vocab_size: int, world: World) -> MegatronModule:
    """The whole model of a checkpoint in fp32 on one rank, for evaluation and comparison."""
    model = build_encoder(single_rank(read_config(folder)), vocab_size, world.device)
    _load_master_weights(model, folder)
    return model.eval()


def single_rank(config: Config) -> Config:
    """The same model in fp32 on one rank."""
    return replace(config, parallel=ParallelConfig(), engine=replace(config.engine, precision="fp32", num_processes=1))


def _load_master_weights(model: MegatronModule, folder: Path) -> None:
    refuse_foreign_pickles(folder / "weights")
    sharded = sharded_weights(model)
    for tensor in _tensors(sharded):
        tensor.key = MASTER_PREFIX + tensor.key
    model.load_state_dict(dist_checkpointing.load({"model": sharded}, str(folder / "weights"))["model"])


def complete_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run folder, oldest first."""
    return sorted(marker.parent for marker in run.glob(f"checkpoints/step-*/{MARKER}"))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a run folder (its newest) or a step folder; UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such run or checkpoint folder")
    if (path / MARKER).is_file():
        check(path)
        return path
    for folder in reversed(complete_checkpoints(path)):
        try:
            check(folder)
        except UserError as error:
            log.warning("%s; taking the one before it", error)
            continue
        return folder
    raise UserError(f"{path}: no whole checkpoint here (looked for {MARKER} in checkpoints/step-*)")


def read_config(checkpoint: Path) -> Config:
    """The resolved config that a checkpoint was trained with."""
    return load_config(checkpoint / "config.yaml")


def read_numbers(checkpoint: Path) -> dict[str, Any]:
    """state.json: step, consumed samples, the last validation, what the run must agree with."""
    numbers: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return numbers


def master_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """fp32 master weights of a checkpoint of any layout, whole, by megatron name; one process, no process group."""
    refuse_foreign_pickles(checkpoint / "weights")
    reader = FileSystemReader(checkpoint / "weights")
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(MASTER_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    load_shards(wanted, storage_reader=reader, no_dist=True)
    return {name.removeprefix(MASTER_PREFIX): tensor for name, tensor in wanted.items()}


def sharded_state(state: TrainState, *, is_loading: bool) -> dict[str, Any]:
    """What megatron saves or fills: model, optimizer and schedule under layout-free names."""
    allocate_moments(state.optimizer)
    gather_weights(state.chunks)
    model = {name: sharded_weights(module, METADATA) for name, module in _modules(state).items()}
    return {
        "model": model,
        "optimizer": state.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=dict(METADATA)),
        "scheduler": state.scheduler.state_dict(),
    }


def _modules(state: TrainState) -> dict[str, MegatronModule]:
    """This rank's model chunks out of megatron's wrappers (data parallel, and bf16 or fp16)."""
    modules = [chunk.module for chunk in state.chunks]
    return {f"chunk-{number}": getattr(module, "module", module) for number, module in enumerate(modules)}


def _tensors(sharded: dict[str, Any]) -> Iterable[Any]:
    return (value for value in nested_values(sharded) if isinstance(value, ShardedBase))
