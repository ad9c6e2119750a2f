"""One rank of a large job, built in one CPU process without allocating its weights.

In:  a config with engine.dry_run = RANK/RANKS.
Out: text: the position of that rank in the layout, its parameters, memory that does not depend on the batch, and every
     shard it holds; or the communications of one of its steps.
The model, megatron's gradient buffers, its distributed optimizer and its schedules are the real ones, on torch's `meta`
device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from megadna.config import Config
from megadna.data.batch import Batch
from megadna.engine.distributed import World, imagined_world
from megadna.engine.recording import RECORDING, Event, recorded
from megadna.errors import require
from megadna.model.flops import num_parameters
from megadna.model.initial_weights import shards
from megadna.model.vocabulary import padded_vocab_size
from megadna.tokenizer.build import build_tokenizer
from megadna.train.faults import StopRequest
from megadna.train.step import TrainState, build_state, train_step

GB = 1e9


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


def record_step(config: Config) -> list[Event]:
    """The communications of one optimizer step of the rank of engine.dry_run; data.sequence_length is a number.

    All micro-batches, the update, and the sum over ranks that the loop makes after it; rows are full. If gradients are
    summed during the backward pass it is the second step: in the first, megatron records the order in which they come.
    """
    rank, size = parse_rank(config.engine.dry_run)
    config.data_parallel_size(size)
    multiple = config.parallel.sequence_multiple
    length = -(-int(config.data.sequence_length) // multiple) * multiple
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    with imagined_world(config.parallel, rank=rank, size=size, backend=RECORDING) as world, _host_reads_zero():
        state, batches = build_state(config, vocab_size, world), _imagined_batches(config, world, length)
        for group in state.optimizer.param_groups:
            group["params"] = []  # Adam's arithmetic sends nothing, and torch's fused kernel refuses this device
        one_each = config.parallel.pipeline * config.train.micro_batch_size * world.data_size
        stop = StopRequest(world, minutes=0.0)
        for batch_size in [one_each] * config.parallel.overlap_grad_reduce + [config.train.global_batch_size]:
            train = replace(config.train, global_batch_size=batch_size)
            with recorded() as events:
                train_step(state, batches, replace(config, train=train), world, sequence_length=length)
                stop.agreed()
    return events


@contextmanager
def _host_reads_zero() -> Iterator[None]:
    """The host reads 0 from a tensor without data: no loss, no overflow, no reason to stop."""
    library, original = torch.library.Library("aten", "IMPL", "Meta"), torch.Tensor.tolist
    library.impl("_local_scalar_dense", lambda tensor: 0, allow_override=True)
    torch.Tensor.tolist = lambda self: original(torch.zeros(self.shape) if self.is_meta else self)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.tolist = original  # type: ignore[method-assign]
        library._destroy()


def _imagined_batches(config: Config, world: World, sequence_length: int) -> Iterator[Batch]:
    """Micro-batches with about as many predicted tokens as masking gives, their number varying; ranks that share a
    sample have the same."""
    shape = (config.train.micro_batch_size, sequence_length)
    generator = torch.Generator().manual_seed(world.data_rank)
    while True:
        chosen_BS = torch.rand(shape, generator=generator) < config.data.masking.fraction
        tokens_BS = torch.zeros(shape, dtype=torch.int64)
        yield Batch(
            tokens_BS=tokens_BS,
            labels_BS=tokens_BS,
            weights_BS=chosen_BS.float(),
            lengths_B=None,
            samples_B=torch.zeros(shape[0], dtype=torch.int64),
        )


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
