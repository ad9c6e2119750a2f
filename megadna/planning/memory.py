"""Memory of one GPU by part: the state by exact arithmetic, activations by what each layer keeps for its backward pass.

What a layer keeps, in elements a token (h hidden, w query width, g key-value width, f feed-forward width):

    norms and matrices   4 h            inputs of both norms, and their outputs, which the matrices read
    attention            3 w + 2 g      query, key and value; the output as the kernel lays it and as the next matrix
    rotation             w + g          rotated query and key (a CPU keeps those alone, not the others); the sines and
                                        cosines of each are small, and the same for all rows
    feed-forward         3 f, 2 f       SwiGLU: gate, up and their product (a CPU keeps the activated gate too); GELU:
                                        its input and output

Tensor parallelism divides all but the first row, which sequence parallelism divides; context parallelism divides the
tokens. A recomputed layer keeps its input alone. Counted as in arXiv:2205.05198, with an attention kernel that keeps no
S x S scores; tests hold the figures against what torch saves.
"""

from dataclasses import dataclass

from megadna.config import Config
from megadna.planning.shards import Place, chunk_layers, state_bytes

CONTEXT_BYTES = 2e9
"""CUDA context, workspaces of the matrix library, buffers of NCCL: ours, as is the next."""
FRAGMENTATION = 0.05
"""Share of everything else that the allocator loses between its blocks."""
NORM_STATISTICS = 8
"""Bytes a token: mean and inverse deviation in fp32."""


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
    """Of the pipeline stages, the one that needs most; sequence_length in tokens."""
    stages = config.parallel.pipeline
    ranks = (stage * num_ranks // stages for stage in range(stages))
    memories = (_stage_memory(config, vocab_rows, sequence_length, Place.of(config, rank, num_ranks)) for rank in ranks)
    return max(memories, key=lambda memory: memory.total)


def _stage_memory(config: Config, vocab_rows: int, sequence_length: int, place: Place) -> Memory:
    parallel = config.parallel
    tokens = config.train.micro_batch_size * sequence_length // parallel.context
    replicas = place.shards // parallel.context
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * replicas)
    layer, recomputed = layer_bytes(config, tokens), recomputed_layer_bytes(config, tokens)
    layers = chunk_layers(config, place.stage)
    few = -(-layers // parallel.recompute_interval) if parallel.recompute == "full" else 0
    chunks = chunks_in_flight(config, place.stage, micro_batches)
    is_last = place.stage == parallel.pipeline - 1
    parts: dict[str, float] = {
        **state_bytes(config, vocab_rows, place),
        "activations": chunks * (few * recomputed + (layers - few) * layer),
        "logits": head_bytes(config, vocab_rows, tokens) if is_last else 0.0,
        "working": layer * (2 if few else 1),
    }
    held = sum(parts.values())
    return Memory(**parts, context=CONTEXT_BYTES, margin=FRAGMENTATION * held)


def chunks_in_flight(config: Config, stage: int, micro_batches: int) -> int:
    """Forward passes of model chunks that a stage has done when its first backward pass begins.

    1F1B: stages - stage; interleaved: megatron's warm-up, 2 (stages - stage - 1) + (chunks - 1) stages, and one more.
    """
    stages, chunks = config.parallel.pipeline, config.parallel.virtual_pipeline
    if chunks == 1:
        return min(micro_batches, stages - stage)
    return min(micro_batches * chunks, 2 * (stages - stage - 1) + (chunks - 1) * stages + 1)


def layer_bytes(config: Config, tokens: int, *, on_gpu: bool = True) -> float:
    """What one layer keeps on one rank for `tokens` of its rows; on_gpu: see above."""
    model, tensor = config.model, config.parallel.tensor
    width, groups = model.num_attention_heads * model.head_size, model.query_groups * model.head_size
    split = 3 * width + 2 * groups + (width + groups) * (on_gpu and model.positions == "rotary")
    split += (width + groups) * model.qk_norm  # the inputs of the norms beside their outputs
    split += (4 - on_gpu if model.activation == "swiglu" else 2) * model.ffn_hidden_size
    whole = 4 * model.hidden_size / _sequence_parts(config)
    drops = (2 * model.hidden_size / _sequence_parts(config)) if model.dropout else 0  # masks of a byte an element
    statistics = 2 * NORM_STATISTICS / _sequence_parts(config) + 4 * model.num_attention_heads / tensor
    angles = 4 * model.head_size / config.train.micro_batch_size if model.positions == "rotary" else 0.0
    return tokens * (element_bytes(config) * (whole + angles + split / tensor) + drops + statistics)


def recomputed_layer_bytes(config: Config, tokens: int) -> float:
    """The input of a layer."""
    return tokens * element_bytes(config) * config.model.hidden_size / _sequence_parts(config)


def head_bytes(config: Config, vocab_rows: int, tokens: int) -> float:
    """What head and loss keep: they see the predicted tokens alone (train/answers.py).

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
