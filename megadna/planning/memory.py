"""Memory of one GPU by part: weights, gradients and optimizer exactly, activations by what each layer keeps.

State: what `--engine.dry_run` counts, by arithmetic. The gradient buffer of a pipeline stage takes its parameters in
megatron's order from the last to the first, each at a multiple of 64 elements, in buckets that the data-parallel ranks
(context ranks among them) divide evenly; of each bucket a rank owns one part, and holds master weights and Adam's two
moments for it (megatron/core/distributed/param_and_grad_buffer.py).

Activations: what a layer keeps for its backward pass, in elements a token (h hidden, w query width, g key-value width,
f feed-forward width):

    norms and matrices   4 h            inputs of both norms, and their outputs, which the matrices read
    attention            3 w + 2 g      query, key and value; the output as the kernel lays it out and as the next
                                        matrix reads it
    rotation             w + g          rotated query and key (a CPU keeps those alone, not the others); the sines and
                                        cosines of each are small, and the same for all rows
    feed-forward         3 f, 2 f       SwiGLU: gate, up and their product (a CPU keeps the activated gate too); GELU:
                                        its input and output

Not counted, as below 1 %: statistics of the norms and of attention. Tensor parallelism divides all but the first row,
which sequence parallelism divides; context parallelism divides the tokens. A recomputed layer keeps its input alone.
Counted as in arXiv:2205.05198, with an attention kernel that keeps no S x S scores; tests compare the figures with what
torch saves.
"""

import math
from dataclasses import dataclass

from megadna.config import Config
from megadna.model.shapes import WORD_EMBEDDINGS, embedding_weights, head_weights, layer_weights

PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
"""Elements to which megatron pads the start of a parameter and the end of a bucket."""
MOMENT_BYTES = 8
"""Adam's two moments in fp32."""
CONTEXT_BYTES = 2e9
"""CUDA context, workspaces of the matrix library, buffers of NCCL: a guess, as is the next."""
FRAGMENTATION = 0.05
"""Share of everything else that the allocator loses between its blocks."""


@dataclass(frozen=True)
class Position:
    """Position of a rank in the layout, whose fastest dimension is tensor, then context, data, pipeline."""

    stage: int
    shard: int
    """Which part of each bucket it owns, of context x data."""
    shards: int

    @classmethod
    def of(cls, config: Config, rank: int, num_ranks: int) -> "Position":
        """The position of `rank` among `num_ranks`."""
        parallel = config.parallel
        shards = num_ranks // (parallel.tensor * parallel.pipeline)
        return cls(rank // (parallel.tensor * shards), rank // parallel.tensor % shards, shards)


def state_bytes(config: Config, vocab_rows: int, position: Position) -> dict[str, int]:
    """Bytes of `weights`, `gradients` and `optimizer` on the rank at `position`."""
    width = 4 if config.engine.precision == "fp32" else 2
    padded = own = 0
    for number in range(config.parallel.virtual_pipeline):
        weights = part_weights(config, vocab_rows, position.stage, number)
        buffer, mine = _buffer(weights, position, _bucket_size(config, position, number))
        padded, own = padded + buffer, own + mine
    masters = 0 if width == 4 else 4
    return {"weights": width * padded, "gradients": 4 * padded, "optimizer": (masters + MOMENT_BYTES) * own}


def part_weights(config: Config, vocab_rows: int, stage: int, number: int = 0) -> list[tuple[int, bool]]:
    """Tensors of model part `number` of a pipeline stage on one tensor-parallel rank, in megatron's order.

    Each is its elements, and whether it is the embedding table of a model on several stages, which is on the first and
    the last of them: megatron gives it a bucket of its own.
    """
    model, parallel = config.model, config.parallel
    is_first = stage == 0 and number == 0
    is_last = stage == parallel.pipeline - 1 and number == parallel.virtual_pipeline - 1
    embedding = embedding_weights(model, vocab_rows)
    weights = embedding if is_first else []
    if parallel.pipeline_layers:
        first = sum(parallel.pipeline_layers[:stage])
    else:
        first = part_layers(config, stage) * (number * parallel.pipeline + stage)
    for layer in range(first, first + part_layers(config, stage)):
        weights = weights + layer_weights(model, layer)
    if is_last:
        *head, bias = head_weights(model, vocab_rows)
        weights += [*head, *([] if is_first else embedding[:1]), bias]
    return [
        (
            weight.size // (parallel.tensor if weight.is_split else 1),
            weight.name == WORD_EMBEDDINGS and parallel.pipeline > 1,
        )
        for weight in weights
    ]


def part_layers(config: Config, stage: int) -> int:
    """Layers of one model part of a stage."""
    parallel = config.parallel
    if parallel.pipeline_layers:
        return parallel.pipeline_layers[stage]
    return config.model.num_layers // (parallel.pipeline * parallel.virtual_pipeline)


def _bucket_size(config: Config, position: Position, number: int) -> int | None:
    """megatron's: several buckets where gradients are summed while the backward pass of the first stage still runs."""
    several = config.parallel.overlap_grad_reduce and position.stage == number == 0
    return max(40_000_000, 1_000_000 * position.shards) if several else None


def _buffer(weights: list[tuple[int, bool]], position: Position, bucket_size: int | None) -> tuple[int, int]:
    """(elements of the buffer with its padding, elements of parameters that the rank at `position` owns)."""
    alignment = math.lcm(position.shards, BUCKET_ALIGNMENT)
    bucket: list[tuple[int, int]] = []  # spans of the parameters of the open bucket
    start = end = own = 0

    def close() -> None:
        nonlocal bucket, start, end, own
        stop = _round_up(end, alignment)
        part = (stop - start) // position.shards
        low = start + position.shard * part
        own += sum(max(0, min(last, low + part) - max(first, low)) for first, last in bucket)
        bucket, start, end = [], stop, stop

    for size, is_shared in reversed(weights):
        if is_shared and bucket:
            end = _round_up(end, PARAMETER_ALIGNMENT)
            close()
        first = _round_up(end, PARAMETER_ALIGNMENT)
        end = first + size
        bucket.append((first, end))
        if is_shared or (bucket_size is not None and end - start >= bucket_size):
            close()
    if bucket:
        close()
    return end, own


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Of the layers, of all micro-batches in flight."""
    logits: float
    """What head and loss keep."""
    working: float
    """Gradients of the activations of one layer, and those recomputed, while its backward pass runs."""
    context: float
    margin: float

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(vars(self).values())


def fullest_memory(config: Config, vocab_rows: int, sequence_length: int, num_ranks: int) -> Memory:
    """Memory of the pipeline stage that needs most; sequence_length in tokens."""
    stages = config.parallel.pipeline
    first = (Position.of(config, stage * num_ranks // stages, num_ranks) for stage in range(stages))
    memories = (_stage_memory(config, vocab_rows, sequence_length, position) for position in first)
    return max(memories, key=lambda memory: memory.total)


def _stage_memory(config: Config, vocab_rows: int, sequence_length: int, position: Position) -> Memory:
    parallel = config.parallel
    tokens = config.train.micro_batch_size * sequence_length // parallel.context
    replicas = position.shards // parallel.context
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * replicas)
    layer, recomputed = layer_bytes(config, tokens), recomputed_layer_bytes(config, tokens)
    layers = part_layers(config, position.stage)
    few = -(-layers // parallel.recompute_interval) if parallel.recompute == "full" else 0
    in_flight = parts_in_flight(config, position.stage, micro_batches)
    is_last = position.stage == parallel.pipeline - 1
    parts: dict[str, float] = {
        **state_bytes(config, vocab_rows, position),
        "activations": in_flight * (few * recomputed + (layers - few) * layer),
        "logits": head_bytes(config, vocab_rows, tokens) if is_last else 0.0,
        "working": layer * (2 if few else 1),
    }
    held = sum(parts.values())
    return Memory(**parts, context=CONTEXT_BYTES, margin=FRAGMENTATION * held)


def parts_in_flight(config: Config, stage: int, micro_batches: int) -> int:
    """Forward passes of model parts that a stage has done when its first backward pass begins.

    1F1B: stages - stage; interleaved: megatron's warm-up, 2 (stages - stage - 1) + (parts - 1) stages, and one more.
    """
    stages, parts = config.parallel.pipeline, config.parallel.virtual_pipeline
    if parts == 1:
        return min(micro_batches, stages - stage)
    return min(micro_batches * parts, 2 * (stages - stage - 1) + (parts - 1) * stages + 1)


def layer_bytes(config: Config, tokens: int, *, on_gpu: bool = True) -> float:
    """What one layer keeps on one rank for `tokens` of its rows; on_gpu: see above."""
    model, tensor = config.model, config.parallel.tensor
    width, groups = model.num_attention_heads * model.head_size, model.query_groups * model.head_size
    split = 3 * width + 2 * groups + (width + groups) * (on_gpu and model.positions == "rotary")
    split += (width + groups) * model.qk_norm  # the inputs of the norms as well as their outputs
    split += (4 - on_gpu if model.activation == "swiglu" else 2) * model.ffn_hidden_size
    whole = 4 * model.hidden_size / _sequence_parts(config)
    drops = (2 * model.hidden_size / _sequence_parts(config)) if model.dropout else 0  # masks of a byte an element
    angles = 4 * model.head_size / config.train.micro_batch_size if model.positions == "rotary" else 0.0
    return tokens * (element_bytes(config) * (whole + angles + split / tensor) + drops)


def recomputed_layer_bytes(config: Config, tokens: int) -> float:
    """The input of a layer."""
    return tokens * element_bytes(config) * config.model.hidden_size / _sequence_parts(config)


def head_bytes(config: Config, vocab_rows: int, tokens: int) -> float:
    """What head and loss keep: they see the predicted tokens alone (train/step.py).

    Final norm over all tokens; then the inputs of dense layer, GELU, norm and decoder; logits, in fp32 again, and the
    exponentials of the loss.
    """
    hidden, element = config.model.hidden_size, element_bytes(config)
    chosen = config.data.masking.fraction * tokens
    logits = chosen * vocab_rows / config.parallel.tensor * (element + 8)
    return ((tokens + 4 * chosen) / _sequence_parts(config)) * element * hidden + logits


def element_bytes(config: Config) -> int:
    """Bytes of an activation."""
    return 4 if config.engine.precision == "fp32" else 2


def _sequence_parts(config: Config) -> int:
    return config.parallel.tensor if config.parallel.sequence else 1
