"""What a run folder or a checkpoint holds, and what would be trained, as text.

`inspect`: reads no weights beyond their checksums.
`train --dry_run`: the whole job. Its data are opened and its first batch and validation samples are drawn.
engine.dry_run = RANK/RANKS: position of that rank, its parameters, memory that does not depend on the batch, and every
shard it holds, in one CPU process that allocates no weights. The model, megatron's gradient buffers, its distributed
optimizer and its schedules are the real ones, on torch's `meta` device.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megadna.arguments import load_config
from megadna.config import Config
from megadna.data.dataset import open_chunks
from megadna.data.evaluation import EvaluationSamples
from megadna.data.loader import resolve_sequence_length
from megadna.data.samples import Samples, resolve_schedule
from megadna.engine.distributed import World, imagined_world
from megadna.errors import UserError, require
from megadna.model.initial_weights import shards
from megadna.model.shapes import num_parameters, padded_vocab_size
from megadna.tokenizer.build import build_tokenizer
from megadna.train.checkpoint import read_config, read_numbers, step_folders
from megadna.train.integrity import check, read_marker, tensor_entries
from megadna.train.metrics import MetricLines
from megadna.train.run_folder import beside_guessing, read_evaluation, verdict
from megadna.train.step import TrainState, build_state

GB = 1e9


def describe_job(config: Config, num_ranks: int) -> str:
    """Data, model, layout and length of the run; UserError if its samples cannot be drawn."""
    tokenizer, train = build_tokenizer(config.tokenizer), config.train
    pools = {split: open_chunks(config.data.path, split) for split in ("train", "valid")}
    length = resolve_sequence_length(config, pools["train"].chunk_length, tokenizer)
    samples = Samples(resolve_schedule(config), tokenizer, pools["train"], sequence_length=length)
    samples.rows(np.arange(train.micro_batch_size))
    EvaluationSamples(pools["valid"], tokenizer, length, samples=1, seed=config.seed)[0]
    rows, size = padded_vocab_size(config.tokenizer, tokenizer.vocab_size), config.data_parallel_size(num_ranks)
    total, parallel = train.samples_after(train.steps), config.parallel
    micro_batches = train.global_batch_size // (size * train.micro_batch_size)
    lines = [f"{split}: {len(pool):,} chunks of up to {pool.chunk_length:,} bases" for split, pool in pools.items()]
    lines += [
        f"  {part.group.name}: {part.group.bases:,} bases, {len(part):,} samples an epoch, "
        f"{total * part.group.share / len(part):.3g} passes"
        for part in samples.groups
    ]
    lines += [
        f"model: {num_parameters(config.model, rows):,} parameters, rows of {length:,} tokens",
        f"layout: {num_ranks} ranks: tensor {parallel.tensor}, pipeline {parallel.pipeline}, context "
        f"{parallel.context}, data {size}",
        f"run: {train.steps:,} steps of {train.global_batch_size * length:,} tokens; of each, a replica reads "
        f"{micro_batches:,} times {train.micro_batch_size} samples",
        "nothing was written; memory and time: megadna plan",
    ]
    return "\n".join(lines) + "\n"


def parse_rank(text: str) -> tuple[int, int]:
    """(rank, number of ranks) of engine.dry_run, as 0/256."""
    rank, _, size = text.partition("/")
    require(
        rank.isdecimal() and size.isdecimal() and int(rank) < int(size),
        f"engine.dry_run must be RANK/RANKS with RANK below RANKS, as 0/256, got {text}",
    )
    return int(rank), int(size)


def describe_rank(config: Config) -> str:
    """What the rank of engine.dry_run holds; UserError if the layout is impossible."""
    rank, size = parse_rank(config.engine.dry_run)
    config.data_parallel_size(size)
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    rows = padded_vocab_size(config.tokenizer, vocab_size)
    with imagined_world(config.parallel, rank=rank, size=size) as world:
        state = build_state(config, vocab_size, world)
        memory = memory_bytes(state)
        lines = [_position(config, world), _layers(state)]
        own = sum(parameter.numel() for part in state.model_parts for parameter in part.parameters())
        lines.append(f"parameters: {own:,} of {num_parameters(config.model, rows):,}")
        parts = [f"{name} {count / GB:.3f}" for name, count in memory.items()]
        lines.append(f"memory in GB without activations: {sum(memory.values()) / GB:.3f} = {' + '.join(parts)}")
        lines += _shard_lines(state)
    return "\n".join(lines) + "\n"


def memory_bytes(state: TrainState) -> dict[str, int]:
    """Bytes of weights, of gradient sums, and of this rank's share of master weights and Adam's moments."""
    buffers = [buffer for part in state.model_parts for buffer in part.buffers]
    weights = sum(buffer.param_data.nbytes for buffer in buffers)
    gradients = sum(buffer.grad_data.nbytes for buffer in buffers)
    own = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    masters = sum(part.nbytes for part in own) if state.model_parts[0].config.params_dtype.itemsize < 4 else 0
    return {"weights": weights, "gradients": gradients, "optimizer": masters + sum(8 * part.numel() for part in own)}


def _position(config: Config, world: World) -> str:
    from megatron.core import parallel_state

    parallel = config.parallel
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return (
        f"rank {world.rank} of {world.size}: tensor {world.tensor_rank} of {parallel.tensor}, pipeline {stage} of "
        f"{parallel.pipeline}, context {world.context_rank} of {parallel.context}, data {world.data_rank} of "
        f"{world.data_size}"
    )


def _layers(state: TrainState) -> str:
    parts = []
    for part in state.model_parts:
        module = getattr(part.module, "module", part.module)
        numbers = [layer.layer_number - 1 for layer in module.encoder.layers]
        ends = ["embedding"] * module.pre_process, ["head"] * module.post_process
        parts.append(" ".join([*ends[0], f"{numbers[0]}-{numbers[-1]}", *ends[1]]))
    return f"layers: {', '.join(parts)}"


def _shard_lines(state: TrainState) -> list[str]:
    held = [shard for part in state.model_parts for shard in shards(getattr(part.module, "module", part.module))]
    width = max(len(shard.key) for shard in held)
    return [
        f"  {shard.key:{width}}  {list(shard.local_shape)} of {list(shard.global_shape)} at {list(shard.global_offset)}"
        for shard in held
    ]


def describe_checkpoint(folder: Path, *, tensors: bool) -> Iterator[str]:
    """Step, config, shards, integrity; with `tensors`, one line per tensor. UserError if it is damaged."""
    check(folder)
    numbers, config = read_numbers(folder), read_config(folder)
    shapes = {name: tuple(entry.size) for name, entry in tensor_entries(folder / "weights").items()}
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
