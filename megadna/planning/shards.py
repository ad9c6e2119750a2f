"""Bytes of weights, gradient sums and optimizer of one rank, by arithmetic: what `--engine.dry_run` counts, at once.

The parameters of a pipeline stage stand in megatron's order. Its gradient buffer takes them from the last to the first,
each at a multiple of 64 elements, in buckets that the data-parallel ranks (context ranks among them) divide evenly; of
each bucket a rank owns one part, and holds master weights and Adam's two moments for it
(megatron/core/distributed/param_and_grad_buffer.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megadna.config import Config, ModelConfig

PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
"""Elements to which megatron pads the start of a parameter and the end of a bucket."""
MOMENT_BYTES = 8
"""Adam's two moments in fp32."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rank."""

    size: int
    """Elements on this rank."""
    is_shared: bool = False
    """The embedding table where it is on two pipeline stages: megatron gives it a bucket of its own."""


@dataclass(frozen=True)
class Place:
    """Position of a rank in the layout, whose fastest dimension is tensor, then context, data, pipeline."""

    stage: int
    shard: int
    """Which part of each bucket it owns, of context x data."""
    shards: int

    @classmethod
    def of(cls, config: Config, rank: int, num_ranks: int) -> "Place":
        """The position of `rank` among `num_ranks`."""
        parallel = config.parallel
        shards = num_ranks // (parallel.tensor * parallel.pipeline)
        return cls(rank // (parallel.tensor * shards), rank // parallel.tensor % shards, shards)


def state_bytes(config: Config, vocab_rows: int, place: Place) -> dict[str, int]:
    """Bytes of `weights`, `gradients` and `optimizer` on the rank at `place`."""
    width = 4 if config.engine.precision == "fp32" else 2
    padded = own = 0
    for number in range(config.parallel.virtual_pipeline):
        parameters = chunk_parameters(config, vocab_rows, place.stage, number)
        buffer, mine = _buffer(parameters, place, _bucket_size(config, place, number))
        padded, own = padded + buffer, own + mine
    masters = 0 if width == 4 else 4
    return {"weights": width * padded, "gradients": 4 * padded, "optimizer": (masters + MOMENT_BYTES) * own}


def chunk_parameters(config: Config, vocab_rows: int, stage: int, number: int = 0) -> list[Parameter]:
    """Parameters of model chunk `number` of a pipeline stage on one tensor-parallel rank, in megatron's order."""
    model, parallel = config.model, config.parallel
    is_first = stage == 0 and number == 0
    is_last = stage == parallel.pipeline - 1 and number == parallel.virtual_pipeline - 1
    h, norm = model.hidden_size, _norm(model, model.hidden_size)
    table = Parameter(vocab_rows // parallel.tensor * h, is_shared=parallel.pipeline > 1)
    found: list[Parameter] = []
    if is_first:
        learned = model.max_positions * h if model.positions == "learned" else 0
        found += [table, *_some(learned, model.token_types * h)]
        found += norm if model.norm_placement == "post" else []
    found += list(_layer(model, parallel.tensor)) * chunk_layers(config, stage)
    if is_last:
        found += norm if model.norm_placement == "pre" else []
        found += [*_some(h * h, h * model.linear_bias), *norm]
        found += ([] if is_first else [table]) + _some(vocab_rows // parallel.tensor)
    return found


def chunk_layers(config: Config, stage: int) -> int:
    """Layers of one model chunk of a stage."""
    parallel = config.parallel
    if parallel.pipeline_layers:
        return parallel.pipeline_layers[stage]
    return config.model.num_layers // (parallel.pipeline * parallel.virtual_pipeline)


def _layer(model: ModelConfig, tensor: int) -> Iterator[Parameter]:
    """Norms and the biases after row-split matrices are whole on every tensor-parallel rank, all else is split."""
    h, bias, norm = model.hidden_size, model.linear_bias, _norm(model, model.hidden_size)
    width = model.num_attention_heads * model.head_size
    projections = (width + 2 * model.query_groups * model.head_size) // tensor
    up = (2 if model.activation == "swiglu" else 1) * model.ffn_hidden_size // tensor
    is_pre = model.norm_placement == "pre"
    yield from norm if is_pre else []
    yield from _some(h * width // tensor, h * bias, projections * h, projections * bias)
    yield from 2 * _norm(model, model.head_size) if model.qk_norm else []
    yield from norm if is_pre else []
    yield from _some(up * h, up * bias, h * model.ffn_hidden_size // tensor, h * bias)
    yield from [] if is_pre else 2 * norm


def _norm(model: ModelConfig, size: int) -> list[Parameter]:
    return [Parameter(size)] * (2 if model.normalization == "layernorm" else 1)


def _some(*sizes: int) -> list[Parameter]:
    return [Parameter(size) for size in sizes if size]


def _bucket_size(config: Config, place: Place, number: int) -> int | None:
    """megatron's: several buckets where gradients are summed while the backward pass of the first stage still runs."""
    several = config.parallel.overlap_grad_reduce and place.stage == number == 0
    return max(40_000_000, 1_000_000 * place.shards) if several else None


def _buffer(parameters: list[Parameter], place: Place, bucket_size: int | None) -> tuple[int, int]:
    """(elements of the buffer with its padding, elements of parameters that the rank at `place` owns)."""
    alignment = math.lcm(place.shards, BUCKET_ALIGNMENT)
    bucket: list[tuple[int, int]] = []  # spans of the parameters of the open bucket
    start = end = own = 0

    def close() -> None:
        nonlocal bucket, start, end, own
        stop = _round_up(end, alignment)
        part = (stop - start) // place.shards
        low = start + place.shard * part
        own += sum(max(0, min(last, low + part) - max(first, low)) for first, last in bucket)
        bucket, start, end = [], stop, stop

    for parameter in reversed(parameters):
        if parameter.is_shared and bucket:
            end = _round_up(end, PARAMETER_ALIGNMENT)
            close()
        first = _round_up(end, PARAMETER_ALIGNMENT)
        end = first + parameter.size
        bucket.append((first, end))
        if parameter.is_shared or (bucket_size is not None and end - start >= bucket_size):
            close()
    if bucket:
        close()
    return end, own


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
