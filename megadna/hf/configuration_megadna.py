"""Configuration of a megadna encoder for transformers (4.48 or newer, 5.x included).

This file travels with an exported model and needs transformers only.

SPDX-License-Identifier: Apache-2.0
"""

from typing import Any

from transformers import PretrainedConfig

CHOICES = {
    "classifier_pooling": ("mean", "cls"),
    "hidden_act": ("swiglu", "gelu"),
    "local_context": ("none", "convolution", "kmer", "both"),
    "norm_placement": ("pre", "post"),
    "normalization_type": ("LayerNorm", "RMSNorm"),
    "position_embedding_type": ("rope", "learned"),
}


class MegaDnaConfig(PretrainedConfig):
    """Encoder of DNA; by default pre-LN with rotary positions and SwiGLU over single nucleotides (AIDO.DNA).

    Args:
        vocab_size: tokens of the tokenizer.
        hidden_size: width of the residual stream.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads; hidden_size / num_attention_heads must be a whole, for `rope` an even number.
        num_key_value_heads: heads of keys and values; None takes num_attention_heads.
        intermediate_size: width of the feed-forward layer (of the SwiGLU gate, and of its up projection).
        hidden_act: `swiglu`, or `gelu` (exact) without a gate.
        norm_placement: `pre`: before each branch and at the end; `post`: behind each sum and behind the embeddings.
        normalization_type: `LayerNorm` or `RMSNorm`, of every norm.
        qk_norm: norm of each head's query and key before the rotation.
        add_linear_bias: biases on the linear layers.
        position_embedding_type: `rope` or `learned`.
        max_position_embeddings: tokens a sequence had in training, [CLS] and [SEP] included; with `rope` longer input
            runs too, `learned` is a table of so many rows.
        rope_theta: base of the rotary positions.
        seq_len_interpolation_factor: rotary positions are divided by it; None is 1.
        local_context: `kmer`: tables of the 5 bases to the left of a token, to its right and around it, added to its
            embedding; `convolution`: a depthwise convolution over 31 tokens in the first two layers; `both`; or `none`.
        context_symbols: `kmer`: what each token id is to the tables: 0 to 3 for A, C, G, T, 4 for hidden or ambiguous
            bases, 5 for special tokens, beyond which nothing is seen.
        num_token_types: rows of a token-type table, of which every token takes the first; 0: no table.
        layer_norm_eps: epsilon of every norm.
        hidden_dropout_prob: dropout of embeddings and residual branches.
        attention_probs_dropout_prob: dropout of attention weights.
        classifier_dropout: dropout before a classification head; None takes hidden_dropout_prob.
        classifier_pooling: what a sequence classifier reads: `mean` over tokens, or `cls` (the first token).
        special_token_ids: ids of the tokens that stand for no base ([PAD], [CLS], [SEP]), which that mean leaves out;
            None or empty: the mean over all tokens but padding, as in folders that were written without this field.
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
        num_key_value_heads: int | None = None,
        intermediate_size: int = 2048,
        hidden_act: str = "swiglu",
        norm_placement: str = "pre",
        normalization_type: str = "LayerNorm",
        qk_norm: bool = False,
        add_linear_bias: bool = True,
        position_embedding_type: str = "rope",
        max_position_embeddings: int = 4000,
        rope_theta: float = 10000.0,
        seq_len_interpolation_factor: float | None = None,
        local_context: str = "none",
        context_symbols: list[int] | None = None,
        num_token_types: int = 0,
        layer_norm_eps: float = 1e-5,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout: float | None = None,
        classifier_pooling: str = "mean",
        special_token_ids: list[int] | None = None,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if hidden_size % ((2 if position_embedding_type == "rope" else 1) * num_attention_heads):
            raise ValueError(
                f"hidden_size ({hidden_size}) must be an even multiple of num_attention_heads ({num_attention_heads})"
            )
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.norm_placement = norm_placement
        self.normalization_type = normalization_type
        self.qk_norm = qk_norm
        self.add_linear_bias = add_linear_bias
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.seq_len_interpolation_factor = seq_len_interpolation_factor
        self.local_context = local_context
        self.context_symbols = context_symbols
        self.num_token_types = num_token_types
        self.layer_norm_eps = layer_norm_eps
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.classifier_pooling = classifier_pooling
        self.special_token_ids = special_token_ids
        self.initializer_range = initializer_range
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} must be one of {known}, got {getattr(self, key)!r}")
        if local_context in ("kmer", "both") and len(context_symbols or ()) != vocab_size:
            raise ValueError(
                f"local_context {local_context} needs context_symbols, one for each of {vocab_size} tokens"
            )
