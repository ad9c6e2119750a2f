"""Configuration of a megadna encoder for transformers (4.48 or newer, 5.x included).

This file travels with an exported model and needs transformers only.

SPDX-License-Identifier: Apache-2.0
"""

from typing import Any

from transformers import PretrainedConfig


class MegaDnaConfig(PretrainedConfig):
    """Pre-LN encoder with rotary positions and SwiGLU over single nucleotides (the shape of AIDO.DNA).

    Args:
        vocab_size: tokens of the tokenizer.
        hidden_size: width of the residual stream.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads; hidden_size / num_attention_heads must be a whole, even number.
        intermediate_size: width of the SwiGLU gate, and of its up projection.
        max_position_embeddings: tokens a sequence had in training, [CLS] and [SEP] included; longer input runs too.
        rope_theta: base of the rotary positions.
        layer_norm_eps: epsilon of every LayerNorm.
        hidden_dropout_prob: dropout of embeddings and residual branches.
        attention_probs_dropout_prob: dropout of attention weights.
        classifier_dropout: dropout before a classification head; None takes hidden_dropout_prob.
        classifier_pooling: what a sequence classifier reads: `mean` over real tokens, or `cls` (the first token).
        initializer_range: standard deviation of weights that no checkpoint supplies.
    """

    model_type = "megadna"
    _auto_class = "AutoConfig"

    def __init__(
        self,
        vocab_size: int = 16,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 4000,
        rope_theta: float = 10000.0,
        layer_norm_eps: float = 1e-5,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout: float | None = None,
        classifier_pooling: str = "mean",
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if hidden_size % (2 * num_attention_heads):
            raise ValueError(
                f"hidden_size ({hidden_size}) must be an even multiple of num_attention_heads ({num_attention_heads})"
            )
        if classifier_pooling not in ("mean", "cls"):
            raise ValueError(f"classifier_pooling must be 'mean' or 'cls', got {classifier_pooling!r}")
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.layer_norm_eps = layer_norm_eps
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.classifier_pooling = classifier_pooling
        self.initializer_range = initializer_range
