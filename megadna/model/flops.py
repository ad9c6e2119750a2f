"""Parameters and FLOPs of the encoder by formula, from ModelConfig alone; no torch, no megatron.

Convention (of encoders): one multiply-add is 2 FLOPs; attention is full, S x S for each head, nothing halved for
causality; matrix products only (norms, softmax, activations, biases and look-ups are left out, below 1 %). Per token:

    layer       2 x (h (N + 2 G) D  +  N D h  +  m h f)         m = 3 for SwiGLU (gate, up, down), 2 for GELU
    attention   4 x S N D                                       q k^T and weights x v
    head        2 x (h^2 + h V)                                 dense, and the decoder tied to the embedding; training
                                                                runs them for the predicted share of the tokens alone

Backward costs twice forward: training is 3 x. For h = N D, G = N this is the usual 6 N_params + 12 L h S per token.
Symbols: h hidden, N heads, G key-value heads, D head dimension, f feed-forward width, L layers, S tokens of a sequence,
V rows of the vocabulary with padding.
"""

from megadna.config import ModelConfig

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


def peak_tflops(device_name: str) -> float | None:
    """Peak of a card, TFLOP/s; None where the table does not know it."""
    words = set(device_name.replace("-", " ").split())
    return next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def forward_flops(model: ModelConfig, vocab_rows: int, sequence_length: int, *, predicted: float = 1.0) -> float:
    """FLOPs of one sequence forward, with the logits of a share `predicted` of its tokens."""
    return sequence_length * token_flops(model, vocab_rows, sequence_length, predicted=predicted)


def encoder_flops(model: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one sequence forward through the layers alone, without the masked-language-model head."""
    return forward_flops(model, 0, sequence_length, predicted=0.0)


def training_flops(model: ModelConfig, vocab_rows: int, sequence_length: int, *, predicted: float = 1.0) -> float:
    """FLOPs of one sequence forward and backward; recomputed activations do not count."""
    return (1 + BACKWARD) * forward_flops(model, vocab_rows, sequence_length, predicted=predicted)


def token_flops(model: ModelConfig, vocab_rows: int, attended: float, *, predicted: float = 1.0) -> float:
    """FLOPs forward of one token that attends to `attended` tokens (a mean may be broken); padding is no token."""
    attention = 4 * attended * model.num_attention_heads * model.head_size
    head = 2 * (model.hidden_size**2 + model.hidden_size * vocab_rows)
    return model.num_layers * (2 * _layer_matrices(model) + attention) + predicted * head


def num_parameters(model: ModelConfig, vocab_rows: int) -> int:
    """Parameters of the whole encoder with its head, the tied decoder counted once, padding rows included."""
    h, width, bias = model.hidden_size, model.num_attention_heads * model.head_size, int(model.linear_bias)
    norm = h * (2 if model.normalization == "layernorm" else 1)
    head_norms = 2 * model.head_size * (norm // h) if model.qk_norm else 0
    projections = width + 2 * model.query_groups * model.head_size
    up = (2 if model.activation == "swiglu" else 1) * model.ffn_hidden_size
    biases = bias * (projections + h + up + h)
    layers = model.num_layers * (_layer_matrices(model) + biases + 2 * norm + head_norms)
    tables = vocab_rows + model.token_types + (model.max_positions if model.positions == "learned" else 0)
    head = h * h + bias * h + norm + vocab_rows
    # The norm behind the embeddings (post-LN) or behind the last layer (pre-LN): one of the two.
    return layers + tables * h + norm + head


def _layer_matrices(model: ModelConfig) -> int:
    """Entries of the weight matrices of one layer."""
    width = model.num_attention_heads * model.head_size
    attention = model.hidden_size * (width + 2 * model.query_groups * model.head_size) + width * model.hidden_size
    return attention + (3 if model.activation == "swiglu" else 2) * model.hidden_size * model.ffn_hidden_size
