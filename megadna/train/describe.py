"""What a run folder or a checkpoint holds, as lines of text; reads no weights beyond their checksums."""

import math
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megadna.arguments import load_config
from megadna.config import Config
from megadna.errors import UserError
from megadna.train.checkpoint import read_config, read_numbers, step_folders
from megadna.train.integrity import check, read_marker, refuse_foreign_pickles
from megadna.train.metrics import MetricLines
from megadna.train.run_folder import beside_guessing, read_evaluation, verdict


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
    """How far a run is, its model, scores and checkpoints; the damage that shows without reading the weights."""
    metrics, config = run / "metrics.jsonl", _config_of(run)
    if metrics.exists():
        step, lines = None, MetricLines(metrics)
        for line in lines:
            step = line["step"]
        if step is not None:
            yield f"run at step {step:,}{f' of {config.train.steps:,}' if config else ''}: {metrics}"
        yield from (f"  {note}" for note in lines.notes())
    if config:
        path = config.data.path
        data = path if isinstance(path, str) else ", ".join(path)
        yield f"  {_model_line(config)}; tokenizer {config.tokenizer.kind}; trained on {data}"
    yield from _scores(run)
    folders = step_folders(run)
    found = [_status(folder) for folder in folders]
    known = [bits for bits, _ in found if bits is not None and not math.isnan(bits)]
    damaged = sum(bool(text) for _, text in found)
    more = f", {damaged} damaged" * bool(damaged)
    yield f"{len(found) - damaged} whole checkpoints{more}{':' * bool(found)}"
    for folder, (bits, text) in zip(folders, found, strict=True):
        lowest = ", the lowest" if len(known) > 1 and bits == min(known) else ""
        score = "" if bits is None else f"  valid {bits:.4f} bits per base{beside_guessing(bits)}{lowest}"
        yield f"  {folder.name}{text or score}"


def _config_of(run: Path) -> Config | None:
    """config.yaml of the run; None where it is missing or damaged, which training would say."""
    try:
        return load_config(run / "config.yaml", is_trained=True)
    except UserError:
        return None


def _scores(run: Path) -> Iterator[str]:
    """A line for each split that was evaluated, beside baselines."""
    files = sorted(run.glob("evaluation-*.json"))
    for file in files:
        try:
            found = read_evaluation(file)
        except UserError as error:
            yield f"  {error}"
            continue
        others = ", ".join(f"{name} {score['bits_per_base']:.4f}" for name, score in found["baselines"].items())
        bits, spread = found["model"]["bits_per_base"], found["model"].get("standard_error")
        spread = "" if spread is None else f" ± {spread:.4f}"
        yield f"  {found['split']}: {bits:.4f}{spread} bits per base at step {found.get('step', '-')}; {others}"
        yield from (f"    {text}" for text in filter(None, [verdict(found["model"], found["baselines"])]))
    if not files:
        yield f"  not yet beside baselines: megadna evaluate --model {run} --split test"


def _status(folder: Path) -> tuple[float | None, str]:
    """The validation, if the marker names its files and state.json can be read; else what is wrong."""
    try:
        read_marker(folder)
        return read_numbers(folder).get("valid_bits_per_base"), ""
    except UserError as error:
        return None, f"  {error}"


def _model_line(config: Config) -> str:
    model = config.model
    return (
        f"{model.num_layers} layers x {model.hidden_size}, {model.num_attention_heads} heads, {config.engine.precision}"
    )
