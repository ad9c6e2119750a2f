"""The megadna encoder for transformers (4.48 or newer, 5.x included): masked language model and classifiers.

This file travels with an exported model and needs torch and transformers only. Parameter names are those of AIDO.DNA's
RNABert layout. By default: x = E[ids]; in each layer x += Wo attention(LN(x)), then
x += Wd (silu(Wg LN(x)) * Wu LN(x)); final LN; masked-language-model head LN(gelu(W x)) against the embedding rows, plus
a bias; rotary positions. Other values of the configuration give post-LN, RMSNorm, GELU, learned positions, fewer
key-value heads, norms of queries and keys, and what lies next to a base as input (local_context).

SPDX-License-Identifier: Apache-2.0

Shapes: B batch, S sequence, H hidden, N heads, G key-value heads, D head dimension, V vocabulary, C labels, K tokens
of a convolution.
"""

import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_megadna import MegaDnaConfig

for _function in (torch.cos, torch.sin):
    # The first call of either from several threads at once can have errors of 1e-4 on a CPU: this one comes from one.
    # https://github.com/pytorch/pytorch/issues/188792
    _function(torch.ones(1, device="cpu"))

TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}


def tied_weights_keys() -> Any:
    """`TIED` as this transformers wants it: {alias: source} since version 5, a list of aliases before."""
    return dict(TIED) if int(transformers.__version__.split(".")[0]) >= 5 else list(TIED)


def make_norm(config: MegaDnaConfig, size: int) -> nn.Module:
    """The norm that the configuration names."""
    kind = nn.LayerNorm if config.normalization_type == "LayerNorm" else nn.RMSNorm
    return kind(size, eps=config.layer_norm_eps)


def make_linear(config: MegaDnaConfig, inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with a bias where the configuration has them."""
    return nn.Linear(inputs, outputs, bias=config.add_linear_bias)


class MegaDnaRotary(nn.Module):
    """cos and sin of the rotary angles (arXiv:2104.09864), in fp32 whatever the dtype of the model."""

    inv_freq: Tensor

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.theta = float(config.rope_theta)
        self.interpolation = float(config.seq_len_interpolation_factor or 1.0)
        self.register_buffer("inv_freq", self.frequencies(None), persistent=False)

    def frequencies(self, device: torch.device | None) -> Tensor:
        """theta ** (-2 i / D) for i in 0 .. D/2 - 1."""
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float32, device=device) / self.head_size
        return self.theta**-exponent

    def refill(self) -> None:
        """Write the frequencies again; nothing in a checkpoint could restore them."""
        self.inv_freq = self.frequencies(self.inv_freq.device)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "MegaDnaRotary":
        # to(), half(), to_empty() all pass here: a cast would round the angles, an empty buffer would hold anything.
        super()._apply(fn, *args, **kwargs)
        self.refill()
        return self

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [S, D/2] of positions 0 .. length - 1, in fp32."""
        position_S = torch.arange(length, dtype=torch.float32, device=self.inv_freq.device)
        angle = position_S[:, None] / self.interpolation * self.inv_freq
        return angle.cos(), angle.sin()


def rotate(x_BNSD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) by their angle (the non-interleaved form), in the dtype of x."""
    cos, sin = cos.to(x_BNSD.dtype), sin.to(x_BNSD.dtype)
    first, second = x_BNSD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def has_padding(attention_mask_BS: Tensor | None) -> bool:
    """Whether the mask hides anything; a program that is being traced cannot know, and takes it that it does."""
    if attention_mask_BS is None:
        return False
    if attention_mask_BS.ndim != 2:
        raise ValueError(f"attention_mask must be [batch, sequence], got {tuple(attention_mask_BS.shape)}")
    tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return tracing or not bool(attention_mask_BS.all())


def padding_bias(attention_mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, S] added to the scores: 0 for real tokens, the lowest number for padding.

    The lowest number and not -inf, so that a row of padding only gives numbers, not NaN.
    """
    padding = attention_mask_BS[:, None, None, :] == 0
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill(padding, torch.finfo(dtype).min)


CONTEXTS = {"left": range(-5, 0), "right": range(1, 6), "around": range(-2, 3)}
"""Offsets, from a token, of the bases whose symbols are the digits of its row in each context table."""
EDGE, SYMBOLS, WIDTH, CONVOLVED = 5, 6, 31, 2
"""Symbol of what lies beyond a sequence, number of symbols, tokens that a convolution spans, layers that have one."""


class MegaDnaContext(nn.Module):
    """Tables of the bases to the left of a token, to its right and around it, by the symbols of these bases."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.symbols = list(config.context_symbols or ())
        for name in CONTEXTS:
            self.add_module(name, nn.Embedding(SYMBOLS**5, config.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S, H] to add to the token embedding."""
        symbols_BS = torch.tensor(self.symbols, device=input_ids.device)[input_ids]
        length, reach = symbols_BS.shape[1], 5
        padded = F.pad(symbols_BS, (reach, reach), value=EDGE)
        at = {0: symbols_BS}
        for step in (1, -1):  # outwards: what lies beyond an edge is edge too
            for distance in range(1, reach + 1):
                offset = step * distance
                here = padded[:, reach + offset : reach + offset + length]
                at[offset] = here if distance == 1 else here.masked_fill(at[offset - step] == EDGE, EDGE)
        total: Any = 0
        for name, offsets in CONTEXTS.items():
            row_BS = torch.zeros_like(symbols_BS)
            for offset in offsets:
                row_BS = row_BS * SYMBOLS + at[offset]
            total = total + getattr(self, name)(row_BS)
        return total


class MegaDnaConvolution(nn.Module):
    """Depthwise convolution over K tokens; `weight` [K, H]. Padding counts as zeros."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, config.hidden_size))

    def forward(self, hidden_BSH: Tensor, keep_BS: Tensor | None) -> Tensor:
        """[B, S, H]; keep_BS: bool, False for padding, None where there is none."""
        if keep_BS is not None:
            hidden_BSH = hidden_BSH * keep_BS[:, :, None]
        padded, length = F.pad(hidden_BSH, (0, 0, WIDTH // 2, WIDTH // 2)), hidden_BSH.shape[1]
        result = torch.zeros_like(hidden_BSH)
        for offset in range(WIDTH):
            result = torch.addcmul(result, padded[:, offset : offset + length], self.weight[offset])
        return result


class MegaDnaSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over the whole sequence, both directions."""

    is_causal = False  # read by the kernels of transformers' attention interface

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.heads_per_group = config.num_attention_heads // config.num_key_value_heads
        width = config.num_key_value_heads * self.head_size
        self.query = make_linear(config, config.hidden_size, config.hidden_size)
        self.key = make_linear(config, config.hidden_size, width)
        self.value = make_linear(config, config.hidden_size, width)
        if config.qk_norm:
            self.query_norm = make_norm(config, self.head_size)
            self.key_norm = make_norm(config, self.head_size)

    def forward(
        self, hidden_BSH: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context [B, S, H], and the weights [B, N, S, S] where wanted.

        mask: None where nothing is padded, else a bias [B, 1, 1, S], or [B, S] for transformers' attention interface.
        """
        query, key, value = (
            linear(hidden_BSH).unflatten(-1, (-1, self.head_size)) for linear in (self.query, self.key, self.value)
        )
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if self.heads_per_group > 1:
            key, value = (x.repeat_interleave(self.heads_per_group, dim=1) for x in (key, value))
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        implementation = self.config._attn_implementation
        if want_weights or implementation == "eager":
            context, weights = explicit_attention(query, key, value, mask, dropout)
            return context.transpose(1, 2).flatten(2), weights if want_weights else None
        if implementation in (None, "sdpa"):
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
            return context.transpose(1, 2).flatten(2), None
        kernel = ALL_ATTENTION_FUNCTIONS[implementation]
        scaling = self.head_size**-0.5
        context = kernel(self, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=False)[0]
        return context.flatten(2), None


def explicit_attention(
    query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention with its weights [B, N, S, S] in memory; the softmax runs in fp32."""
    scores = query_BNSD @ key_BNSD.transpose(-1, -2) / math.sqrt(query_BNSD.shape[-1])
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value_BNSD.dtype)
    return F.dropout(weights, dropout) @ value_BNSD, weights


class MegaDnaAttentionOutput(nn.Module):
    """Projection of the joined heads."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.dense = make_linear(config, config.hidden_size, config.hidden_size)

    def forward(self, context_BSH: Tensor) -> Tensor:
        """[B, S, H]."""
        return self.dense(context_BSH)


class MegaDnaAttention(nn.Module):
    """Self-attention and projection, one residual branch, and the norm before or after it."""

    def __init__(self, config: MegaDnaConfig, number: int) -> None:
        super().__init__()
        self.ln = make_norm(config, config.hidden_size)
        self.self = MegaDnaSelfAttention(config)
        self.output = MegaDnaAttentionOutput(config)
        if config.local_context in ("convolution", "both") and number < CONVOLVED:
            self.convolution = MegaDnaConvolution(config)


class MegaDnaMLP(nn.Module):
    """SwiGLU (arXiv:2002.05202), or the exact GELU without a gate."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.gated = config.hidden_act == "swiglu"
        if self.gated:
            self.gate_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """[B, S, H]."""
        up = self.up_proj(hidden_BSH)
        return self.down_proj(F.silu(self.gate_proj(hidden_BSH)) * up if self.gated else F.gelu(up))


class MegaDnaLayer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: MegaDnaConfig, number: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention = MegaDnaAttention(config, number)
        self.ln = make_norm(config, config.hidden_size)
        self.mlp = MegaDnaMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_BSH: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        keep_BS: Tensor | None,
        want_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream [B, S, H] after the layer, and the attention weights where wanted.

        mask: as MegaDnaSelfAttention reads it. keep_BS: bool, False for padding; None where nothing is padded.
        """
        attention = self.attention
        read_BSH = attention.ln(hidden_BSH) if self.pre_norm else hidden_BSH
        context_BSH, weights = attention.self(read_BSH, rotary, mask, want_weights)
        branch_BSH = attention.output(context_BSH)
        if hasattr(attention, "convolution"):
            branch_BSH = branch_BSH + attention.convolution(read_BSH, keep_BS)
        hidden_BSH = hidden_BSH + self.dropout(branch_BSH)
        if self.pre_norm:
            return hidden_BSH + self.dropout(self.mlp(self.ln(hidden_BSH))), weights
        hidden_BSH = attention.ln(hidden_BSH)
        return self.ln(hidden_BSH + self.dropout(self.mlp(hidden_BSH))), weights


class MegaDnaEncoder(nn.Module):
    """The layers, and in a pre-norm model the norm at the end."""

    _gradient_checkpointing_func: Any  # set by gradient_checkpointing_enable()

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([MegaDnaLayer(config, number) for number in range(config.num_hidden_layers)])
        if config.norm_placement == "pre":
            self.ln = make_norm(config, config.hidden_size)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_BSH: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        keep_BS: Tensor | None,
        want_hidden_states: bool,
        want_weights: bool,
    ) -> BaseModelOutput:
        """Hidden states, if wanted: the input of each layer, then the output of the last norm (L + 1 in all)."""
        hidden_states: list[Tensor] = []
        attentions: list[Tensor] = []
        for layer in self.layer:
            if want_hidden_states:
                hidden_states.append(hidden_BSH)
            if self.gradient_checkpointing and self.training:
                hidden_BSH, weights = self._gradient_checkpointing_func(
                    layer.__call__, hidden_BSH, rotary, mask, keep_BS, want_weights
                )
            else:
                hidden_BSH, weights = layer(hidden_BSH, rotary, mask, keep_BS, want_weights)
            if want_weights:
                attentions.append(weights)
        if hasattr(self, "ln"):
            hidden_BSH = self.ln(hidden_BSH)
        return BaseModelOutput(
            last_hidden_state=hidden_BSH,
            hidden_states=(*hidden_states, hidden_BSH) if want_hidden_states else None,
            attentions=tuple(attentions) if want_weights else None,
        )


class MegaDnaEmbeddings(nn.Module):
    """Token embedding, with learned positions, token types (all of type 0) and a norm where the model has them."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.learned = config.position_embedding_type == "learned"
        if self.learned:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.num_token_types:
            self.token_type_embeddings = nn.Embedding(config.num_token_types, config.hidden_size)
        if config.local_context in ("kmer", "both"):
            self.context = MegaDnaContext(config)
        if config.norm_placement == "post":
            self.LayerNorm = make_norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        """[B, S, H]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_BSH = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.learned:
            rows, length = self.position_embeddings.weight.shape[0], hidden_BSH.shape[1]
            if length > rows:
                raise ValueError(f"{length} tokens, and the model has {rows} learned positions")
            hidden_BSH = hidden_BSH + self.position_embeddings.weight[:length]
        if hasattr(self, "token_type_embeddings"):
            hidden_BSH = hidden_BSH + self.token_type_embeddings.weight[0]
        if hasattr(self, "context"):
            if input_ids is None:
                raise ValueError("the context tables of this model need input_ids, not inputs_embeds")
            hidden_BSH = hidden_BSH + self.context(input_ids)
        return self.dropout(self.LayerNorm(hidden_BSH) if hasattr(self, "LayerNorm") else hidden_BSH)


class MegaDnaPreTrainedModel(PreTrainedModel):
    """What all classes share: configuration, initial weights, loading and saving.

    `_auto_class` of each class makes save_pretrained() copy this file along (transformers 4 does not set it by itself).
    """

    config_class = MegaDnaConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # the same before transformers 4.54
    _supports_attention_backend = True
    _no_split_modules = ["MegaDnaLayer"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, initializer_range) weights, zero biases, unit norms; rotary frequencies are written again."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, MegaDnaConvolution):
            nn.init.zeros_(module.weight)
        if isinstance(module, MegaDnaRotary):
            module.refill()
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter) and not getattr(bias, "_is_hf_initialized", False):
            nn.init.zeros_(bias)


class MegaDnaModel(MegaDnaPreTrainedModel):
    """The bare encoder: embeddings of every token after the last norm."""

    _auto_class = "AutoModel"

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__(config)
        self.embeddings = MegaDnaEmbeddings(config)
        self.rotary = MegaDnaRotary(config) if config.position_embedding_type == "rope" else None
        self.encoder = MegaDnaEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """attention_mask [B, S]: 1 for real tokens, 0 for padding; real tokens come out as they would alone."""
        config = self.config
        want_weights = bool(config.output_attentions if output_attentions is None else output_attentions)
        hidden_BSH = self.embeddings(input_ids, inputs_embeds)
        mask = attention_mask if has_padding(attention_mask) else None
        keep_BS = None if mask is None else mask.bool()
        if mask is not None and (want_weights or config._attn_implementation in (None, "eager", "sdpa")):
            mask = padding_bias(mask, hidden_BSH.dtype)
        output = self.encoder(
            hidden_BSH,
            None if self.rotary is None else self.rotary(hidden_BSH.shape[1]),
            mask,
            keep_BS,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            want_weights,
        )
        return output if wants_dict(config, return_dict) else output.to_tuple()


def wants_dict(config: MegaDnaConfig, return_dict: bool | None) -> bool:
    """The caller's choice, else the configuration's."""
    return bool(config.return_dict if return_dict is None else return_dict)


class MegaDnaPredictionTransform(nn.Module):
    """Dense, exact GELU, norm."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.dense = make_linear(config, config.hidden_size, config.hidden_size)
        self.LayerNorm = make_norm(config, config.hidden_size)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """[B, S, H]."""
        return self.LayerNorm(F.gelu(self.dense(hidden_BSH)))


class MegaDnaPredictions(nn.Module):
    """Scores of every token of the vocabulary; the decoder's rows are the token embedding."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.transform = MegaDnaPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """Logits [B, S, V]."""
        return self.decoder(self.transform(hidden_BSH)) + self.bias


class MegaDnaMaskedLMHead(nn.Module):
    """Holder of the predictions: the name `cls.predictions` is part of the file format."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.predictions = MegaDnaPredictions(config)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """Logits [B, S, V]."""
        return self.predictions(hidden_BSH)


class MegaDnaWithHead(MegaDnaPreTrainedModel):
    """The encoder under a head: what the three classes below have in common."""

    bert: MegaDnaModel
    output_class: type

    def predict(self, hidden_BSH: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """Logits of the head."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats where the label is not -100."""
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits, and with labels the loss."""
        output = self.bert(
            input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, return_dict=True
        )
        logits = self.predict(output.last_hidden_state, attention_mask, input_ids)
        result = self.output_class(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if wants_dict(self.config, return_dict) else result.to_tuple()


class MegaDnaForMaskedLM(MegaDnaWithHead):
    """Masked language model: logits [B, S, V]."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = tied_weights_keys()
    output_class = MaskedLMOutput

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__(config)
        self.bert = MegaDnaModel(config)
        self.cls = MegaDnaMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The tied decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the decoder."""
        self.cls.predictions.decoder = value

    def predict(self, hidden_BSH: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """Logits [B, S, V]."""
        return self.cls(hidden_BSH)


def classifier_dropout(config: MegaDnaConfig) -> nn.Dropout:
    """Dropout before a classification head."""
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


def tokens_to_pool(
    config: MegaDnaConfig, hidden_BSH: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None
) -> Tensor:
    """Bool [B, S]: tokens that are neither padding nor any of config.special_token_ids."""
    if attention_mask is None:
        keep_BS = torch.ones(hidden_BSH.shape[:2], dtype=torch.bool, device=hidden_BSH.device)
    else:
        keep_BS = attention_mask.bool()
    if config.special_token_ids and input_ids is None:
        raise ValueError(
            "the mean leaves special tokens out, which only input_ids show; give input_ids, or set "
            "config.special_token_ids = [] to take them in"
        )
    for number in config.special_token_ids or ():
        keep_BS = keep_BS & (input_ids != number)
    return keep_BS


def mean_over(hidden_BSH: Tensor, keep_BS: Tensor) -> Tensor:
    """[B, H]; zeros for a row without a token to keep."""
    weight_BS1 = keep_BS[:, :, None].to(hidden_BSH.dtype)
    return (hidden_BSH * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1).clamp_min(1)


def classification_loss(logits_BC: Tensor, labels: Tensor, config: MegaDnaConfig) -> Tensor:
    """By config.problem_type; without it: one label is regression, integer labels are classes, others multi-label."""
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    elif problem is None:
        problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return F.mse_loss(logits_BC.float().squeeze(-1), labels.float().view_as(logits_BC.squeeze(-1)))
    if problem == "single_label_classification":
        return F.cross_entropy(logits_BC.float(), labels.flatten())
    return F.binary_cross_entropy_with_logits(logits_BC.float(), labels.float())


class MegaDnaClassificationHead(nn.Module):
    """Dropout, dense, tanh, dropout, projection to the labels."""

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = classifier_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(pooled_BH)))))


class MegaDnaForSequenceClassification(MegaDnaWithHead):
    """One prediction a sequence: classes, several labels at once, or numbers: logits [B, C]."""

    _auto_class = "AutoModelForSequenceClassification"
    output_class = SequenceClassifierOutput

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = MegaDnaModel(config)
        self.classifier = MegaDnaClassificationHead(config)
        self.post_init()

    def predict(self, hidden_BSH: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """Logits [B, C]."""
        if self.config.classifier_pooling == "cls":
            return self.classifier(hidden_BSH[:, 0])
        return self.classifier(
            mean_over(hidden_BSH, tokens_to_pool(self.config, hidden_BSH, attention_mask, input_ids))
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of config.problem_type."""
        return classification_loss(logits, labels, self.config)


class MegaDnaForTokenClassification(MegaDnaWithHead):
    """One class a token: logits [B, S, C]."""

    _auto_class = "AutoModelForTokenClassification"
    output_class = TokenClassifierOutput

    def __init__(self, config: MegaDnaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = MegaDnaModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def predict(self, hidden_BSH: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """Logits [B, S, C]."""
        return self.classifier(self.dropout(hidden_BSH))
