"""What a run folder or a checkpoint holds, as lines of text; reads no weights beyond their checksums."""

import math
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megadna.config import Config
from megadna.errors import UserError
from megadna.train.checkpoint import read_config, read_numbers, step_folders
from megadna.train.integrity import check, read_marker, refuse_foreign_pickles
from megadna.train.metrics import MetricLines
from megadna.train.run_folder import beside_guessing


def describe_checkpoint(folder: Path, *, tensors: bool) -> Iterator[str]:
    """Step, config, shards, integrity; with `tensors`, one line per tensor. UserError if it is damaged."""
    check(folder)
    refuse_foreign_pickles(folder / "weights")
    numbers, config = read_numbers(folder), read_config(folder)
    entries = FileSystemReader(folder / "weights").read_metadata().state_dict_metadata
    shapes = {name: tuple(entry.size) for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    parameters = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("optimizer."))
    shards = sorted((folder / "weights").glob("*.distcp"))
    size = sum(shard.stat().st_size for shard in shards)
    yield f"checkpoint of step {numbers['step']:,}, {numbers['consumed_samples']:,} samples consumed"
    yield f"  {_model_line(config)}, {parameters:,} parameters"
    yield f"  tokenizer {numbers.get('tokenizer')}, dataset {numbers.get('dataset_id')}"
    yield "  written by " + ", ".join(f"{name} {version}" for name, version in numbers.get("versions", {}).items())
    if "valid_bits_per_base" in numbers:
        bits = numbers["valid_bits_per_base"]
        yield f"  valid {bits:.4f} bits per base{beside_guessing(bits)}"
    yield f"  {len(shapes)} tensors in {len(shards)} shards, {size / 1e6:,.1f} MB; every checksum fits"
    if tensors:
        for name in sorted(shapes):
            yield f"    {name} {list(shapes[name])}"


def describe_run(run: Path) -> Iterator[str]:
    """Progress and checkpoints of a run; damage that shows without reading the weights, line by line."""
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        step, lines = None, MetricLines(metrics)
        for line in lines:
            step = line["step"]
        if step is not None:
            yield f"run at step {step:,}: {metrics}"
        yield from (f"  {note}" for note in lines.notes())
    folders = step_folders(run)
    found = [_status(folder) for folder in folders]
    whole = sum(is_whole for is_whole, _ in found)
    yield (
        f"{whole} whole checkpoints"
        + (f", {len(found) - whole} damaged" if whole < len(found) else "")
        + ":" * bool(found)
    )
    for folder, (_, text) in zip(folders, found, strict=True):
        yield f"  {folder.name}" + text


def _status(folder: Path) -> tuple[bool, str]:
    """Whether the marker names its files and state.json can be read; the validation, or what is wrong."""
    try:
        read_marker(folder)
        bits = read_numbers(folder).get("valid_bits_per_base")
    except UserError as error:
        return False, f"  {error}"
    return True, "" if bits is None else f"  valid {bits:.4f} bits per base{beside_guessing(bits)}"


def _model_line(config: Config) -> str:
    model = config.model
    return (
        f"{model.num_layers} layers x {model.hidden_size}, {model.num_attention_heads} heads, {config.engine.precision}"
    )
