"""Names, shapes, parameters and FLOPs of the encoder by formula, from ModelConfig alone; no torch, no megatron.

One table: every tensor with its megatron-core name, its full shape, and whether tensor parallelism splits it, in the
order in which megatron builds them. The exporter (hf/formats.py), the planner (planning/memory.py) and the counts below
read it.

FLOPs, by the convention of encoders: one multiply-add is 2; attention is full, S x S for each head, nothing halved for
causality; matrix products only (norms, softmax, activations, biases and look-ups are left out, below 1 %). Per token:

    layer       2 x (h (N + 2 G) D  +  N D h  +  m h f)         m = 3 for SwiGLU (gate, up, down), 2 for GELU
    attention   4 x S N D                                       q k^T and weights x v
    head        2 x (h^2 + h V)                                 dense, and the decoder tied to the embedding; training
                                                                runs them for the predicted share of the tokens alone

Backward costs twice forward: training is 3 x. For h = N D, G = N this is the usual 6 N_params + 12 L h S per token.
Symbols: h hidden, N heads, G key-value heads, D head dimension, f feed-forward width, L layers, S tokens of a sequence,
V rows of the vocabulary with padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megadna.config import ModelConfig, TokenizerConfig

VOCAB_MULTIPLE = 64
WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
CONTEXT_TABLES = ("left", "right", "around")
CONTEXT_ROWS = 6**5
"""Rows of a context table: five symbols, each one of four bases, hidden, or beyond the sequence."""
CONVOLUTION_WIDTH, CONVOLVED_LAYERS = 31, 2
"""Tokens that a convolution spans; the first layers, which have one."""
BACKWARD = 2
"""Backward FLOPs in units of the forward ones: gradients of inputs and of weights."""
PEAK_TFLOPS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "B200": 2250.0,
}
"""Dense 16-bit peak of the data sheets, by words of torch's device name; the first whose words are all in it."""


@dataclass(frozen=True)
class Weight:
    """One tensor."""

    name: str
    """megatron-core's; within its layer for the tensors of a layer."""
    shape: tuple[int, ...]
    is_split: bool = False
    """Whether each tensor-parallel rank holds a part of it; the others are whole on every rank."""

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)


def padded_vocab_size(tokenizer: TokenizerConfig, vocab_size: int) -> int:
    """Rows of the embedding for a vocabulary of `vocab_size` tokens, the same under every layout.

    The nucleotide vocabulary stays 16, so that its tensors are AIDO.DNA's; others are padded to the next multiple of
    64, which every tensor-parallel size that is a power of two up to 64 divides. Padding rows are never predicted:
    their logits are minus infinity, and an export cuts them off.
    """
    if tokenizer.kind == "nucleotide":
        return vocab_size
    return (vocab_size + VOCAB_MULTIPLE - 1) // VOCAB_MULTIPLE * VOCAB_MULTIPLE


def embedding_weights(model: ModelConfig, vocab_rows: int) -> list[Weight]:
    """Tensors before the first layer."""
    h = model.hidden_size
    found = [Weight(WORD_EMBEDDINGS, (vocab_rows, h), is_split=True)]
    if model.positions == "learned":
        found.append(Weight("embedding.position_embeddings.weight", (model.max_positions, h)))
    if model.token_types:
        found.append(Weight("embedding.tokentype_embeddings.weight", (model.token_types, h)))
    if model.has_context_tables:
        found += [Weight(f"embedding.context.{name}.weight", (CONTEXT_ROWS, h)) for name in CONTEXT_TABLES]
    if model.norm_placement == "post":
        found += _norm(model, "embedding.norm", h)
    return found


def layer_weights(model: ModelConfig, number: int) -> list[Weight]:
    """Tensors of layer `number`, from 0. Matrices split by columns add up over the ranks, so their biases are whole."""
    h, f, d, is_pre = model.hidden_size, model.ffn_hidden_size, model.head_size, model.norm_placement == "pre"
    width, up = model.num_attention_heads * d, f * (2 if model.activation == "swiglu" else 1)
    found = list(_norm(model, "input_layernorm", h)) if is_pre else []
    found += _linear(model, "self_attention.linear_proj", h, width, splits="columns")
    found += _linear(model, "self_attention.linear_qkv", width + 2 * model.query_groups * d, h, splits="rows")
    if model.qk_norm:
        found += [*_norm(model, "self_attention.q_layernorm", d), *_norm(model, "self_attention.k_layernorm", d)]
    if model.has_convolutions and number < CONVOLVED_LAYERS:
        found.append(Weight("self_attention.convolution.weight", (CONVOLUTION_WIDTH, h)))
    found += _norm(model, "pre_mlp_layernorm", h) if is_pre else []
    found += _linear(model, "mlp.linear_fc1", up, h, splits="rows")
    found += _linear(model, "mlp.linear_fc2", h, f, splits="columns")
    if not is_pre:
        found += [*_norm(model, "post_attention_layernorm", h), *_norm(model, "post_mlp_layernorm", h)]
    return found


def head_weights(model: ModelConfig, vocab_rows: int) -> list[Weight]:
    """Tensors after the last layer, without the decoder's matrix, which is that of the embedding."""
    h = model.hidden_size
    found = list(_norm(model, "encoder.final_layernorm", h)) if model.norm_placement == "pre" else []
    found += _linear(model, "lm_head.dense", h, h)
    found += _norm(model, "lm_head.layer_norm", h)
    return [*found, Weight("output_layer.bias", (vocab_rows,), is_split=True)]


def _linear(model: ModelConfig, name: str, rows: int, columns: int, *, splits: str = "") -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (rows, columns), is_split=bool(splits))
    if model.linear_bias:
        yield Weight(f"{name}.bias", (rows,), is_split=splits == "rows")


def _norm(model: ModelConfig, name: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,))
    if model.normalization == "layernorm":
        yield Weight(f"{name}.bias", (size,))


def tensor_shapes(model: ModelConfig, vocab_rows: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder by its megatron-core name, with its full shape."""
    found = embedding_weights(model, vocab_rows)
    for number in range(model.num_layers):
        layer = layer_weights(model, number)
        found += [Weight(f"encoder.layers.{number}.{weight.name}", weight.shape) for weight in layer]
    found += head_weights(model, vocab_rows)
    return {weight.name: weight.shape for weight in found}


def num_parameters(model: ModelConfig, vocab_rows: int) -> int:
    """Parameters of the whole encoder with its head, the tied decoder counted once, padding rows included."""
    return sum(map(prod, tensor_shapes(model, vocab_rows).values()))


def peak_tflops(device_name: str) -> float | None:
    """Peak of a card, TFLOP/s; None where the table does not know it."""
    words = set(device_name.replace("-", " ").split())
    return next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def token_flops(model: ModelConfig, vocab_rows: int, attended: float, *, predicted: float = 1.0) -> float:
    """Forward FLOPs of one token that attends to `attended` tokens (a mean may be fractional); padding is no token."""
    layers = (weight for number in range(model.num_layers) for weight in layer_weights(model, number))
    matrices = sum(weight.size for weight in layers if len(weight.shape) == 2)
    attention = 4 * attended * model.num_attention_heads * model.head_size
    head = 2 * (model.hidden_size**2 + model.hidden_size * vocab_rows)
    return 2 * matrices + model.num_layers * attention + predicted * head


def forward_flops(model: ModelConfig, vocab_rows: int, sequence_length: int, *, predicted: float = 1.0) -> float:
    """FLOPs of one sequence forward, with the logits of a share `predicted` of its tokens."""
    return sequence_length * token_flops(model, vocab_rows, sequence_length, predicted=predicted)


def training_flops(model: ModelConfig, vocab_rows: int, sequence_length: int, *, predicted: float = 1.0) -> float:
    """FLOPs of one sequence forward and backward; recomputed activations do not count."""
    return (1 + BACKWARD) * forward_flops(model, vocab_rows, sequence_length, predicted=predicted)
