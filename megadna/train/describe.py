"""What a run folder or a checkpoint holds, as lines of text; reads no weights beyond their checksums."""

import math
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megadna.config import Config
from megadna.errors import UserError
from megadna.reading import parse_json
from megadna.train.checkpoint import complete_checkpoints, optimizer_format, read_config, read_numbers
from megadna.train.integrity import MARKER, check, refuse_foreign_pickles


def describe_checkpoint(folder: Path, *, tensors: bool) -> Iterator[str]:
    """Step, config, shards, integrity; one line a tensor where `tensors` asks for it. UserError where it is damaged."""
    if not (folder / MARKER).is_file():
        raise UserError(
            f"{folder}: no marker '{MARKER}', so it was never finished; the run goes on from the one before"
        )
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
        yield f"  valid {numbers['valid_bits_per_base']:.4f} bits per base"
    yield f"  {len(shapes)} tensors in {len(shards)} shards, {size / 1e6:,.1f} MB; every checksum fits"
    yield f"  optimizer format {optimizer_format(numbers)}"
    if tensors:
        for name in sorted(shapes):
            yield f"    {name} {list(shapes[name])}"


def describe_run(run: Path) -> Iterator[str]:
    """Progress and checkpoints of a run."""
    metrics = run / "metrics.jsonl"
    last = metrics.read_text(encoding="utf-8").splitlines()[-1:] if metrics.is_file() else []
    if last:
        step = parse_json(last[0], f"{metrics}: last line").get("step")
        if type(step) is not int:
            raise UserError(f"{metrics}: its last line states no step; remove it")
        yield f"run at step {step:,}: {metrics}"
    folders = complete_checkpoints(run)
    yield f"{len(folders)} whole checkpoints" + (":" if folders else "")
    for folder in folders:
        numbers = read_numbers(folder)
        bits = numbers.get("valid_bits_per_base")
        yield f"  {folder.name}" + ("" if bits is None else f"  valid {bits:.4f} bits per base")


def _model_line(config: Config) -> str:
    model = config.model
    return (
        f"{model.num_layers} layers x {model.hidden_size}, {model.num_attention_heads} heads, {config.engine.precision}"
    )
