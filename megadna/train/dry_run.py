"""One rank of a large job, built on one CPU process without allocating its weights.

In:  a config with engine.dry_run = RANK/RANKS.
Out: text: position of that rank, its parameters, memory that does not depend on the batch, and every shard it holds.
The model, megatron's gradient buffers, its distributed optimizer and its schedules are the real ones, on torch's `meta`
device.
"""

from megadna.config import Config
from megadna.engine.distributed import World, imagined_world
from megadna.layout import parse_rank
from megadna.model.initial_weights import shards
from megadna.model.shapes import num_parameters, padded_vocab_size
from megadna.tokenizer.build import build_tokenizer
from megadna.train.state import TrainState, build_state

GB = 1e9


def describe_rank(config: Config) -> str:
    """What the rank of engine.dry_run holds; UserError where the layout is impossible."""
    rank, size = parse_rank(config.engine.dry_run)
    config.data_parallel_size(size)
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    rows = padded_vocab_size(config.tokenizer, vocab_size)
    with imagined_world(config.parallel, rank=rank, size=size) as world:
        state = build_state(config, vocab_size, world)
        memory = memory_bytes(state)
        lines = [_position(config, world), _layers(state)]
        own = sum(parameter.numel() for chunk in state.chunks for parameter in chunk.parameters())
        lines.append(f"parameters: {own:,} of {num_parameters(config.model, rows):,}")
        parts = [f"{name} {count / GB:.3f}" for name, count in memory.items()]
        lines.append(f"memory in GB without activations: {sum(memory.values()) / GB:.3f} = {' + '.join(parts)}")
        lines += _shard_lines(state)
    return "\n".join(lines) + "\n"


def memory_bytes(state: TrainState) -> dict[str, int]:
    """Bytes of weights, of gradient sums, and of this rank's share of master weights and Adam's moments."""
    buffers = [buffer for chunk in state.chunks for buffer in chunk.buffers]
    weights = sum(buffer.param_data.nbytes for buffer in buffers)
    gradients = sum(buffer.grad_data.nbytes for buffer in buffers)
    own = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    masters = sum(part.nbytes for part in own) if state.chunks[0].config.params_dtype.itemsize < 4 else 0
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
    chunks = []
    for chunk in state.chunks:
        module = getattr(chunk.module, "module", chunk.module)
        numbers = [layer.layer_number - 1 for layer in module.encoder.layers]
        ends = ["embedding"] * module.pre_process, ["head"] * module.post_process
        chunks.append(" ".join([*ends[0], f"{numbers[0]}-{numbers[-1]}", *ends[1]]))
    return f"layers: {', '.join(chunks)}"


def _shard_lines(state: TrainState) -> list[str]:
    held = [shard for chunk in state.chunks for shard in shards(getattr(chunk.module, "module", chunk.module))]
    width = max(len(shard.key) for shard in held)
    return [
        f"  {shard.key:{width}}  {list(shard.local_shape)} of {list(shard.global_shape)} at {list(shard.global_offset)}"
        for shard in held
    ]
