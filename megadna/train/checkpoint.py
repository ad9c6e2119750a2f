"""Checkpoints: megatron's distributed format (torch_dist) in RUN/checkpoints/step-00000100/, whole or absent.

    step-00000100/weights/     shards: model, fp32 master weights and moments, all layout-free under global names
    step-00000100/state.json   step, consumed samples, last validation, versions
    step-00000100/config.yaml  the resolved config
    step-00000100/complete     the commit marker, written last: sizes and checksums of all files

In:  a checkpoint or run folder, and a TrainState or model to fill.
Out: the state as it was, under any layout, or only its weights. UserError that names what is missing or different.

A folder without the marker does not count (integrity.py); saving.py writes them. A resumed run may change anything but
the model, the tokenizer and the order of the data: weights, token ids and "sample i" must mean the same before and
after. Layout, steps, schedule, logging and the dataset's folder may differ, and every difference is logged. A new run
from old weights (checkpoint.init_from) needs their architecture and vocabulary.
"""

import gc
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.transformer.module import MegatronModule

from megadna.arguments import load_config
from megadna.config import Config, ParallelConfig
from megadna.engine.distributed import World
from megadna.engine.optimizer import (
    allocate_moments,
    follow_schedule,
    gather_weights,
    load_optimizer,
    optimizer_shards,
    reload_master_weights,
)
from megadna.errors import UserError, require
from megadna.log import get_logger
from megadna.model.encoder import build_encoder
from megadna.model.initial_weights import SHARDING_METADATA, flat, sharded_weights
from megadna.reading import read_json
from megadna.train.integrity import MARKER, check, tensor_entries
from megadna.train.run_folder import flat_keys
from megadna.train.step import TrainState

log = get_logger(__name__)

STEP = re.compile(r"step-[0-9]+")
"""Name of a checkpoint folder."""
MASTER_PREFIX = "optimizer.state.param."
"""Name prefix of the fp32 master weights among the tensors of a checkpoint."""
MOST_LAYERS = 10_000
"""A checkpoint may come from somebody else; each layer is a Python object before any weight is read."""
FIXED = ("seed", "tokenizer.", "model.", "data.sequence_length")
FREE = ("model.attention", "model.init_std", "model.dropout")
"""Keys that a resumed run may not change, and those among them that it may."""


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Fill `state` from a checkpoint; UserError that names a tensor if it is missing or not one of the model."""
    numbers = read_numbers(folder)
    loaded = _load(sharded_state(state, is_loading=True), folder, whole=True)
    for name, module in _modules(state).items():
        module.load_state_dict(loaded["model"][name])
    load_optimizer(state.optimizer, loaded["optimizer"])
    state.step, state.consumed_samples = numbers["step"], numbers["consumed_samples"]
    follow_schedule(state.scheduler, state.consumed_samples)
    state.skipped = [(first, end) for first, end in numbers["skipped"]]


def load_weights(state: TrainState, folder: Path) -> None:
    """Fill only the weights of `state` from a checkpoint of any layout: master weights in fp32, if it has them."""
    modules = _modules(state)
    loaded = _load_fp32(modules, folder)
    for name, module in modules.items():
        module.load_state_dict(loaded[name])
    reload_master_weights(state.optimizer, list(loaded.values()))


def checkpoint_model(folder: Path, vocab_size: int, world: World) -> MegatronModule:
    """The whole model of a checkpoint in fp32 on one rank, for evaluation and comparison."""
    model = build_encoder(single_rank(read_config(folder)), vocab_size, world.device)
    model.load_state_dict(_load_fp32({"model": model}, folder)["model"])
    return model.eval()


def single_rank(config: Config) -> Config:
    """The same model in fp32 on one rank."""
    return replace(config, parallel=ParallelConfig(), engine=replace(config.engine, precision="fp32", num_processes=1))


def _load_fp32(modules: dict[str, MegatronModule], folder: Path) -> dict[str, Any]:
    """State dicts of the modules with the checkpoint's weights in fp32."""
    prefix = _weights_prefix(folder)
    sharded = {name: sharded_weights(module) for name, module in modules.items()}
    for tensor in nested_values(sharded):
        tensor.key = prefix + tensor.key
        tensor.data = torch.empty_like(tensor.data, dtype=torch.float32)
        if hasattr(tensor, "dtype"):  # the factory of SwiGLU's two halves has none
            tensor.dtype = torch.float32
    loaded = _load(sharded, folder, whole=False)
    return {name: loaded[name] for name in modules}


def _weights_prefix(folder: Path) -> str:
    """MASTER_PREFIX; empty if the checkpoint has no optimizer (an import), or only its buffers (earlier versions)."""
    names = tensor_entries(folder / "weights")
    if any(name.startswith(MASTER_PREFIX) for name in names):
        return MASTER_PREFIX
    if any(name.startswith("optimizer.") for name in names):
        log.warning("%s: no fp32 master weights, so its weights are read in the precision of the training", folder)
    return ""


def _load(sharded: dict[str, Any], folder: Path, *, whole: bool) -> dict[str, Any]:
    """megatron's load into `sharded`, after a check that names and shapes of its tensors are those of the checkpoint.

    UserError with the name on all ranks; whole: a tensor that the checkpoint has and no rank asks for is an error too.
    """
    weights = folder / "weights"
    entries = tensor_entries(weights)
    asked: list[dict[str, tuple[int, ...]]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(asked, {shard.key: tuple(shard.global_shape) for shard in flat(sharded)})
    wanted = {name: shape for shapes in asked for name, shape in shapes.items()}
    found = {name: tuple(entry.size) for name, entry in entries.items()}
    for name in sorted(wanted.keys() | found.keys() if whole else wanted):
        if found.get(name) != wanted.get(name):
            shapes = [f"of shape {list(shape)}" if shape else "none" for shape in (found.get(name), wanted.get(name))]
            raise UserError(
                f"{weights}: of the tensor {name} it holds {shapes[0]}, this model has {shapes[1]}; it belongs to "
                "another model, or to an earlier version of megadna"
            )
    loaded: dict[str, Any] = dist_checkpointing.load(sharded, str(weights))
    return loaded


def step_folders(run: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first, whole or damaged; unfinished ones have another name."""
    return sorted(path for path in run.glob("checkpoints/step-*") if STEP.fullmatch(path.name))


def has_checkpoints(run: Path) -> bool:
    """True if there is a checkpoint to continue from, whole or damaged."""
    return bool(step_folders(run))


def complete_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run folder, oldest first; their files are not read."""
    return [folder for folder in step_folders(run) if any(folder.glob(MARKER))]


def find_checkpoint(path: Path, *, warn: bool = True) -> Path:
    """The checkpoint folder that a path means: a step folder itself, or the newest whole one of a run folder.

    Damaged ones that are skipped are logged with the file and what is wrong with it, unless `warn` is False. UserError
    if there is none, or the step folder is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run or checkpoint folder")
    if any(os.path.lexists(path / name) for name in (MARKER, "state.json", "weights")):
        _check_whole(path)
        return path
    problems: list[str] = []
    for folder in reversed(step_folders(path)):
        try:
            _check_whole(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems if warn else ():
            log.warning("%s; taking the one before it", problem)
        return folder
    if problems:
        raise UserError(f"{path}: none of its {len(problems)} checkpoints is whole; the newest: {problems[0]}")
    raise UserError(f"{path}: no whole checkpoint here (looked for {MARKER} in checkpoints/step-*)")


def _check_whole(folder: Path) -> None:
    check(folder)
    read_numbers(folder)


def read_config(checkpoint: Path) -> Config:
    """The resolved config that a checkpoint was trained with."""
    config = load_config(checkpoint / "config.yaml", is_trained=True)
    layers = config.model.num_layers
    require(layers <= MOST_LAYERS, f"{checkpoint / 'config.yaml'}: model.num_layers is {layers}; it is damaged")
    return config


def read_numbers(checkpoint: Path) -> dict[str, Any]:
    """state.json: step, consumed samples, the last validation, what a resumed run must agree with.

    UserError if it is damaged, or is not what saving.py writes.
    """
    path, damaged = checkpoint / "state.json", "the checkpoint is damaged"
    numbers = read_json(path, damaged)
    problem = _problem_of(numbers)
    if problem:
        raise UserError(f"{path}: {problem}; {damaged}")
    return numbers


def _problem_of(numbers: dict[str, Any]) -> str:
    """What is wrong with the content of state.json; empty if nothing is."""
    for name in ("step", "consumed_samples"):
        if type(numbers.get(name)) is not int or not 0 <= numbers[name] < 1 << 63:
            return f"{name} is {numbers.get(name)!r}, not a count"
    skipped = numbers.get("skipped")
    if not isinstance(skipped, list) or not all(_is_range(one) for one in skipped):
        return f"skipped is {skipped!r}, not a list of ranges of samples"
    if not isinstance(numbers.get("versions"), dict):
        return f"versions is {numbers.get('versions')!r}, not versions by program"
    if not isinstance(numbers.get("imported", {}), dict):
        return f"imported is {numbers['imported']!r}, not what an import states"
    for name, value in numbers.items():
        if name.startswith("valid_") and name != "valid_protocol" and not isinstance(value, int | float | None):
            return f"{name} is {value!r}, not a number"
    return ""


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value)


def check_resume(checkpoint: Path, config: Config, facts: dict[str, Any]) -> None:
    """UserError with both values if a key changed that must not; other changes are logged.

    facts: what the writer puts into state.json (tokenizer, dataset_id).
    """
    saved = read_numbers(checkpoint)
    for key, value in facts.items():
        if saved.get(key) != value:
            raise UserError(
                f"{checkpoint}: was trained with {key} {saved.get(key)}, this run has {value}; use the same one, or "
                "start a new run from its weights with --checkpoint.init_from"
            )
    for key, old, new in _differences(checkpoint, config):
        if key.startswith(FIXED) and key not in FREE:
            raise UserError(
                f"--resume cannot change {key}: the run has {old}, you gave {new}; keep it, or start a new run "
                "from its weights with --checkpoint.init_from"
            )
        log.info("resuming with %s %s instead of %s", key, new, old)


def check_weights(checkpoint: Path, config: Config) -> None:
    """UserError with both values if `checkpoint` has weights of another architecture or vocabulary."""
    for key, old, new in _differences(checkpoint, config):
        if key.startswith(("tokenizer.", "model.")) and key not in (*FREE, "model.rotary_interpolation"):
            raise UserError(
                f"checkpoint.init_from {checkpoint}: has {key} {old}, this run has {new}; give this run the "
                "architecture and vocabulary of the weights"
            )


def _differences(checkpoint: Path, config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ between the checkpoint's config and this one, with both values."""
    before, now = flat_keys(asdict(read_config(checkpoint))), flat_keys(asdict(config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def sharded_state(state: TrainState, *, is_loading: bool) -> dict[str, Any]:
    """What megatron saves or fills: model, optimizer and schedule under names that do not depend on the layout."""
    allocate_moments(state.optimizer)
    gather_weights(state.model_parts)
    model = {name: sharded_weights(module) for name, module in _modules(state).items()}
    gc.freeze()  # megatron collects garbage here, which would visit all objects of the imported modules: 0.2 s
    try:
        optimizer = optimizer_shards(
            state.optimizer, state.model_parts, model, SHARDING_METADATA, is_loading=is_loading
        )
    finally:
        gc.unfreeze()
    return {"model": model, "optimizer": optimizer, "scheduler": state.scheduler.state_dict()}


def _modules(state: TrainState) -> dict[str, MegatronModule]:
    """This rank's model parts without megatron's wrappers (data parallel, and bf16 or fp16)."""
    modules = [part.module for part in state.model_parts]
    return {f"chunk-{number}": getattr(module, "module", module) for number, module in enumerate(modules)}
