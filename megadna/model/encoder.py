"""The DNA encoder: a masked language model made of megatron-core parts.

In:  a Config, the size of the vocabulary, which pipeline stage this rank holds.
Out: the stage with its initial weights; called on tokens, logits on the last stage.

Embeddings -> TransformerBlock -> dense, GELU, norm -> decoder tied to the embedding + bias. By ModelConfig: the
modern one (pre-LN, RoPE, SwiGLU, final LayerNorm: AIDO.DNA, doi:10.1101/2024.12.01.625444) and the original BERT
(post-LN, learned positions, token types, GELU: DNABERT, doi:10.1093/bioinformatics/btab083).

The token embedding is split over the tensor-parallel ranks by vocabulary; positions and token types are replicated.
Under sequence parallelism each rank keeps its part of the sequence.

Shapes: B batch, S sequence, H hidden, V vocabulary with its padding (of this tensor-parallel rank), P positions,
T token types, D head dimension, M predicted tokens.
"""

from contextlib import nullcontext

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megadna.config import Config, ModelConfig
from megadna.log import get_logger
from megadna.model.attention import choose_backend
from megadna.model.initial_weights import fill_initial_weights, mark_split_weights
from megadna.model.layers import block_submodules, norm_class, to_transformer_config
from megadna.model.local_context import ContextEmbedding
from megadna.model.shapes import padded_vocab_size
from megadna.tokenizer.base import context_symbols
from megadna.tokenizer.build import build_tokenizer

log = get_logger(__name__)


class DnaEmbedding(MegatronModule):
    """word_embeddings [V, H]; position_embeddings [P, H], tokentype_embeddings [T, H] and norm if configured."""

    def __init__(
        self, config: TransformerConfig, model: ModelConfig, padded_vocab_size: int, symbols: list[int]
    ) -> None:
        super().__init__(config=config)
        self.learned_positions, self.has_types = model.positions == "learned", model.token_types > 0
        # Without other tables the sum over the ranks can be scattered at once to each rank's part of the sequence.
        self.scatters = config.sequence_parallel and not (self.learned_positions or self.has_types)
        self.word_embeddings = tensor_parallel.VocabParallelEmbedding(
            padded_vocab_size,
            config.hidden_size,
            init_method=config.embedding_init_method,
            reduce_scatter_embeddings=self.scatters,
            config=config,
        )
        if self.learned_positions:
            self.position_embeddings = torch.nn.Embedding(
                model.max_positions, config.hidden_size, dtype=config.params_dtype
            )
        if self.has_types:
            self.tokentype_embeddings = torch.nn.Embedding(
                model.token_types, config.hidden_size, dtype=config.params_dtype
            )
        self.context = ContextEmbedding(config, symbols) if model.has_context_tables else None
        self.norm: torch.nn.Module = torch.nn.Identity()
        if model.norm_placement == "post":
            self.norm = norm_class(config)(config, config.hidden_size, config.layernorm_epsilon)
        self.dropout = torch.nn.Dropout(config.hidden_dropout)

    def forward(self, tokens_BS: Tensor, positions_BS: Tensor | None) -> Tensor:
        """Hidden states [S, B, H], this rank's part of S under sequence parallelism; positions None: 0 .. S - 1."""
        hidden = self._words(tokens_BS)
        if not self.scatters:
            if self.learned_positions:
                if positions_BS is None:  # rows count from 0; context-parallel ranks hold consecutive parts of them
                    length = tokens_BS.shape[1]
                    start = parallel_state.get_context_parallel_rank() * length
                    hidden = hidden + self.position_embeddings.weight[start : start + length]
                else:
                    hidden = hidden + self.position_embeddings(positions_BS)
            if self.has_types:
                hidden = hidden + self.tokentype_embeddings.weight[0]
            hidden = hidden.transpose(0, 1).contiguous()
            if self.config.sequence_parallel:
                hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden).clone()
        if self.context is not None:
            hidden = hidden + self.context(tokens_BS)
        # Ranks that hold parts of the sequence must drop different elements, replicas the same ones.
        fork = tensor_parallel.get_cuda_rng_tracker().fork if self.config.sequence_parallel else nullcontext
        with fork():
            return self.dropout(self.norm(hidden))

    def _words(self, tokens_BS: Tensor) -> Tensor:
        weight_VH = self.word_embeddings.weight
        if weight_VH.is_cpu and weight_VH.dtype != torch.float32:
            # torch's CPU kernel accumulates the gradient of a row over its tokens in bf16, where a sum stops growing.
            full = {"weight": weight_VH.float()}
            return torch.func.functional_call(self.word_embeddings, full, (tokens_BS,)).to(weight_VH.dtype)
        return self.word_embeddings(tokens_BS)


class MaskedLanguageModelHead(MegatronModule):
    """Dense + exact GELU + norm before the tied decoder; replicated on the tensor-parallel ranks."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)
        size = config.hidden_size
        self.dense = torch.nn.Linear(size, size, bias=config.add_bias_linear, dtype=config.params_dtype)
        for parameter in self.dense.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm = norm_class(config)(config, size, config.layernorm_epsilon)

    def forward(self, hidden_SBH: Tensor) -> Tensor:
        """Transformed hidden states, same shape."""
        return self.layer_norm(torch.nn.functional.gelu(self.dense(hidden_SBH)))


class DnaEncoder(LanguageModule):
    """One pipeline stage of the encoder; all of it if there is one stage."""

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        *,
        vocab_size: int,
        padded_vocab_size: int,
        symbols: list[int],
        backend: str,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = True
        self.vocab_size = vocab_size
        if pre_process:
            self.embedding = DnaEmbedding(config, model, padded_vocab_size, symbols)
        self.rotary_pos_emb: RotaryEmbedding | None = None
        if model.positions == "rotary":
            self.rotary_pos_emb = RotaryEmbedding(
                config.kv_channels,
                rotary_percent=1.0,
                rotary_base=model.rotary_base,
                seq_len_interpolation_factor=model.rotary_interpolation,
                use_cpu_initialization=config.use_cpu_initialization,
            )
        self.encoder = TransformerBlock(
            config,
            block_submodules(config, model, backend, vp_stage),
            post_layer_norm=model.norm_placement == "pre",
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if post_process:
            self.lm_head = MaskedLanguageModelHead(config)
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                config.hidden_size,
                padded_vocab_size,
                config=config,
                init_method=config.init_method,
                bias=True,
                gather_output=False,
                skip_weight_param_allocation=pre_process,
            )
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: list[Tensor]) -> None:
        """Take the hidden states of the previous pipeline stage (megatron's schedules call this)."""
        self.encoder.set_input_tensor(input_tensor[0])

    def forward(
        self,
        tokens_BS: Tensor,
        segments: PackedSeqParams | None = None,
        positions_BS: Tensor | None = None,
        rows_M: Tensor | None = None,
    ) -> Tensor:
        """Logits [S, B, V] in fp32 on the last stage, hidden states [S, B, H] before it.

        segments: None if every row is one full sequence, else train/step.py.
        positions_BS: int64, position of each token in its sequence; None: every row counts from 0.
        rows_M: int64, offsets in this rank's S x B tokens: logits [M, 1, V] of these only. Under sequence parallelism
        every tensor-parallel rank names M of its own part, and the logits are of all of them.
        """
        hidden_SBH = self.embedding(tokens_BS, positions_BS) if self.pre_process else None
        hidden_SBH = self.encoder(
            hidden_states=hidden_SBH,
            attention_mask=None,
            rotary_pos_emb=self._angles(tokens_BS.shape[1], positions_BS),
            packed_seq_params=segments,
        )
        if not self.post_process:
            return hidden_SBH
        if rows_M is not None:
            hidden_SBH = hidden_SBH.flatten(0, 1).index_select(0, rows_M)[:, None]
        weight = self.shared_embedding_or_output_weight() if self.pre_process else None
        logits_SBV, _ = self.output_layer(self.lm_head(hidden_SBH), weight=weight)
        return hide_padding(logits_SBV.float(), self.vocab_size)

    def _angles(self, length: int, positions_BS: Tensor | None) -> Tensor | None:
        """Rotary angles [S, 1, 1, D] of this rank's part of the rows, or [S, B, 1, D] of the given positions.

        Context-parallel ranks hold consecutive parts; megatron's slices pair both ends, to balance causal attention.
        """
        if self.rotary_pos_emb is None:
            return None
        ranks, rank = self.cp_group.size(), self.cp_group.rank()
        angles_S11D = self.rotary_pos_emb.get_emb(ranks * length)
        if positions_BS is not None:
            return angles_S11D[:, 0][positions_BS.transpose(0, 1)]
        return angles_S11D.narrow(0, rank * length, length)


def build_encoder(
    config: Config,
    vocab_size: int,
    device: torch.device,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> DnaEncoder:
    """The pipeline stage of this rank (its model part `vp_stage`) with its initial weights, on `device`.

    On the `meta` device nothing is allocated or filled. UserError if the attention backend cannot run.
    """
    transformer_config = to_transformer_config(config, device)
    backend = choose_backend(
        config.model.attention, device, transformer_config.params_dtype, transformer_config.kv_channels
    )
    log.info("attention: %s", backend)
    is_meta = device.type == "meta"
    with device if is_meta else nullcontext():
        model = DnaEncoder(
            transformer_config,
            config.model,
            vocab_size=vocab_size,
            padded_vocab_size=padded_vocab_size(config.tokenizer, vocab_size),
            symbols=context_symbols(build_tokenizer(config.tokenizer)) if config.model.has_context_tables else [],
            backend=backend,
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
    if not is_meta:  # there `to` would create new parameters, without megatron's attributes
        model.to(device)
    mark_split_weights(model)
    if not is_meta:
        fill_initial_weights(model, config)
    return model


def hide_padding(logits_SBV: Tensor, vocab_size: int) -> Tensor:
    """The logits of this tensor-parallel rank's rows, those beyond `vocab_size` set to minus infinity in place."""
    rows = logits_SBV.shape[-1]
    real = vocab_size - rows * parallel_state.get_tensor_model_parallel_rank()
    if real < rows:
        logits_SBV[..., max(0, real) :] = float("-inf")
    return logits_SBV
