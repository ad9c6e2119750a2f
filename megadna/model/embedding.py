"""Token embedding, with BERT's learned positions, token types and norm where the model has them.

Split over the tensor-parallel ranks by vocabulary; positions and token types are replicated. Under sequence parallelism
each rank keeps its part of the sequence.

Shapes: B batch, S sequence, H hidden, V vocabulary with padding rows, P positions, T token types.
"""

from contextlib import nullcontext

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megadna.config import ModelConfig
from megadna.model.norm import norm_class


class DnaEmbedding(MegatronModule):
    """word_embeddings [V, H]; position_embeddings [P, H], tokentype_embeddings [T, H] and norm where configured."""

    def __init__(self, config: TransformerConfig, model: ModelConfig, padded_vocab_size: int) -> None:
        super().__init__(config=config)
        self.learned_positions, self.has_types = model.positions == "learned", model.token_types > 0
        # Words alone can be summed over the ranks straight into each rank's part of the sequence.
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
        # Ranks that hold parts of the sequence must drop different places, replicas the same ones.
        fork = tensor_parallel.get_cuda_rng_tracker().fork if self.config.sequence_parallel else nullcontext
        with fork():
            return self.dropout(self.norm(hidden))

    def _words(self, tokens_BS: Tensor) -> Tensor:
        weight_VH = self.word_embeddings.weight
        if weight_VH.is_cpu and weight_VH.dtype != torch.float32:
            # torch's CPU kernel adds up the gradient of a row over all its tokens in bf16, which stops growing.
            full = {"weight": weight_VH.float()}
            return torch.func.functional_call(self.word_embeddings, full, (tokens_BS,)).to(weight_VH.dtype)
        return self.word_embeddings(tokens_BS)
