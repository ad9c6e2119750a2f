"""A fine-tuned DNA model for transformers: one prediction a sequence, one a nucleotide, or one a pair of them; or a
masked language model that is told a label or a number.

This file travels with a fine-tuned model and needs torch and transformers only. A sequence head pools the last hidden
states (mean or maximum over the tokens of bases, special tokens and padding left out; the first token; or the middle
token) and runs a small MLP; a base head gives logits a token, and its loss is taken per nucleotide: the mean over the
tokens that cover it. A pair head gives every nucleotide two vectors q, k of R numbers and a number b; the logit of i
and j is (q_i k_j + q_j k_i) / sqrt(R) + b_i + b_j. The head of a language model turns the label or number into a vector
that is added to every token embedding.

SPDX-License-Identifier: Apache-2.0

Shapes: B batch, S sequence (tokens), L bases, P pairs of bases, H hidden, R a pair's vectors, C labels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput

PAIR_SIZE = 32
Encoder: Any = None
EncoderConfig: Any = None
# A saved copy imports the encoder's class and configuration here.


class DnaTaskConfig(PretrainedConfig):
    """encoder: config.json of the encoder; k, stride, prefix, suffix: bases a token covers, bases from token to token,
    special tokens before and after; head_sizes: hidden layers of the head, with `head_activation` between;
    pool_special_tokens: whether mean and maximum take special tokens in, as they did in folders without this field;
    label_means, label_scales: of the numbers of the training data; the head learns z-scores, the model gives numbers in
    the units of the labels (None: the head's outputs as they are); of a language model, base_ids: of A, C, G and T, and
    label_range: the least and greatest number of the training data."""

    model_type = "dna-task"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        pooling: str = "mean",
        head_sizes: tuple[int, ...] = (),
        head_activation: str = "tanh",
        head_dropout: float = 0.1,
        k: int = 1,
        stride: int = 1,
        prefix: int = 1,
        suffix: int = 1,
        class_weights: list[float] | None = None,
        pool_special_tokens: bool = True,
        label_means: list[float] | None = None,
        label_scales: list[float] | None = None,
        base_ids: list[int] | None = None,
        label_range: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.pooling, self.class_weights = encoder, pooling, class_weights
        self.head_sizes, self.head_activation, self.head_dropout = list(head_sizes), head_activation, head_dropout
        self.k, self.stride, self.prefix, self.suffix = k, stride, prefix, suffix
        self.pool_special_tokens = pool_special_tokens
        self.label_means, self.label_scales = label_means, label_scales
        self.base_ids, self.label_range = base_ids, label_range
        super().__init__(**kwargs)


class DnaTaskModel(PreTrainedModel):
    """Encoder and head."""

    config_class = DnaTaskConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: DnaTaskConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        body: Any = Encoder(EncoderConfig.from_dict(config.encoder)) if encoder is None else encoder
        if type(body).__module__.startswith("transformers.") and getattr(body, "pooler", None):
            body.pooler = None  # no part of a head here; unused weights would stop a run of several ranks
        self.encoder = body
        self.head = self.make_head(body.config.hidden_size)
        if encoder is None:
            self.post_init()

    def make_head(self, hidden: int) -> nn.Sequential:
        """Dropout, the hidden layers, and the last."""
        config = self.config
        layers: list[nn.Module] = [nn.Dropout(config.head_dropout)]
        for size in config.head_sizes:
            layers += [nn.Linear(hidden, size), nn.Tanh() if config.head_activation == "tanh" else nn.ReLU()]
            layers += [nn.Dropout(config.head_dropout)]
            hidden = size
        return nn.Sequential(*layers, nn.Linear(hidden, self.head_outputs))

    @property
    def head_outputs(self) -> int:
        """Width of the last layer."""
        return self.config.num_labels

    def _init_weights(self, module: nn.Module) -> None:
        """The encoder's own way for its modules; Normal(0, 0.02) and zero biases in the head."""
        if isinstance(module, nn.Linear) and any(module is part for part in self.head):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif not isinstance(module, DnaTaskModel):
            self.encoder._init_weights(module)

    def hidden(self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, S, H] and the mask [B, S]."""
        mask_BS = torch.ones_like(input_ids_BS) if attention_mask_BS is None else attention_mask_BS
        return self.encoder(input_ids=input_ids_BS, attention_mask=mask_BS)[0], mask_BS

    def scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] that turn numbers into z-scores; 0 and 1 if there are none."""
        means, scales = self.config.label_means or [0.0], self.config.label_scales or [1.0]
        return torch.tensor(means, device=device), torch.tensor(scales, device=device)

    def in_units(self, logits: Tensor) -> Tensor:
        """Numbers [..., C] in the units of the labels, fp32; logits of classes as they are."""
        if self.config.label_means is None:
            return logits
        mean_C, scale_C = self.scale(logits.device)
        return logits.float() * scale_C + mean_C

    def loss(self, logits_NC: Tensor, labels: Tensor) -> Tensor:
        """By config.problem_type; labels are class numbers [N] (-100: none) or numbers [N, C] (NaN: none), and logits
        of numbers z-scores."""
        weights = self.config.class_weights
        weight_C = None if weights is None else torch.tensor(weights, device=logits_NC.device)
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits_NC.float(), labels.long(), weight=weight_C)
        known = ~labels.isnan()
        if self.config.problem_type == "regression":
            mean_C, scale_C = self.scale(labels.device)
            return F.mse_loss(logits_NC.float()[known], ((labels.float() - mean_C) / scale_C)[known])
        positive = None if weight_C is None else weight_C[1] / weight_C[0]
        return F.binary_cross_entropy_with_logits(logits_NC.float()[known], labels[known].float(), pos_weight=positive)

    def per_base(self, logits_BSC: Tensor, mask_BS: Tensor) -> Tensor:
        """Outputs of every nucleotide [B, L, C]: means over its tokens; rows of shorter sequences end in zeros."""
        k, stride = self.config.k, self.config.stride
        num_tokens = logits_BSC.shape[1] - self.config.prefix
        place_S = torch.arange(num_tokens, device=logits_BSC.device)
        real_BS1 = (place_S < mask_BS.sum(1, keepdim=True) - self.config.prefix - self.config.suffix)[:, :, None]
        logits_BSC = logits_BSC[:, self.config.prefix :] * real_BS1
        if stride == k:
            return logits_BSC.repeat_interleave(k, dim=1)
        shifts = [(0, 0, offset, k - 1 - offset) for offset in range(k)]
        count_BL1 = sum(F.pad(real_BS1.to(logits_BSC.dtype), shift) for shift in shifts)
        total_BLC = sum(F.pad(logits_BSC, shift) for shift in shifts)
        return total_BLC / torch.as_tensor(count_BL1).clamp_min(1)


class DnaForSequenceTask(DnaTaskModel):
    """Classes, several labels at once, or numbers for a sequence."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **unused: Any
    ) -> SequenceClassifierOutput:
        """Logits [B, C] and, with labels, the loss."""
        hidden_BSH, mask_BS = self.hidden(input_ids, attention_mask)
        special = (0, 0) if self.config.pool_special_tokens else (self.config.prefix, self.config.suffix)
        logits_BC = self.head(pool(hidden_BSH, mask_BS, self.config.pooling, special))
        loss = None if labels is None else self.loss(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=self.in_units(logits_BC))


class DnaForBaseTask(DnaTaskModel):
    """Classes or numbers for every nucleotide."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **unused: Any
    ) -> TokenClassifierOutput:
        """Logits of every token [B, S, C]; with labels [B, L] (numbers: [B, L, C]), the loss over nucleotides."""
        hidden_BSH, mask_BS = self.hidden(input_ids, attention_mask)
        logits_BSC = self.head(hidden_BSH)
        if labels is None:
            return TokenClassifierOutput(logits=self.in_units(logits_BSC))
        logits_BLC = self.per_base(logits_BSC, mask_BS)[:, : labels.shape[1]]
        loss = self.loss(logits_BLC.flatten(0, 1), labels.flatten(0, 1))
        return TokenClassifierOutput(loss=loss, logits=self.in_units(logits_BLC))


class DnaForPairTask(DnaTaskModel):
    """Whether two nucleotides are in contact, for every pair of them."""

    @property
    def head_outputs(self) -> int:
        """q, k and b of a nucleotide."""
        return 2 * PAIR_SIZE + 1

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **unused: Any
    ) -> TokenClassifierOutput:
        """Logits [B, P, 1] of the pairs (1, 0), (2, 0), (2, 1), (3, 0) ...: the first n (n - 1) / 2 are those of n
        nucleotides. With labels in the same order (NaN: none), the loss."""
        hidden_BSH, mask_BS = self.hidden(input_ids, attention_mask)
        outputs_BLR = self.per_base(self.head(hidden_BSH), mask_BS)
        query_BLR, key_BLR, bias_BL1 = outputs_BLR.split([PAIR_SIZE, PAIR_SIZE, 1], dim=-1)
        scores_BLL = query_BLR @ key_BLR.transpose(1, 2) / PAIR_SIZE**0.5 + bias_BL1
        num_bases = scores_BLL.shape[1]
        first_P, second_P = torch.tril_indices(num_bases, num_bases, offset=-1, device=scores_BLL.device)
        logits_BP1 = (scores_BLL + scores_BLL.transpose(1, 2))[:, first_P, second_P, None]
        if labels is None:
            return TokenClassifierOutput(logits=logits_BP1)
        logits_BP1 = logits_BP1[:, : labels.shape[1]]
        return TokenClassifierOutput(loss=self.loss(logits_BP1.flatten(0, 1), labels.flatten(0, 1)), logits=logits_BP1)


class DnaForGenerationTask(DnaTaskModel):
    """A masked language model (`encoder`) of sequences that have a label or a number."""

    def make_head(self, hidden: int) -> nn.Sequential:
        """An MLP from one entry for each class, or from the z-score; zeros at first: the model is what it was."""
        last = nn.Linear(hidden, hidden)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(self.config.num_labels, hidden), nn.Tanh(), last)

    def get_output_embeddings(self) -> nn.Module | None:
        """Those of the language model: transformers 4 ties what this names to the input embeddings."""
        return self.encoder.get_output_embeddings()

    def added(self, condition: Tensor) -> Tensor:
        """What is added to the token embeddings [B, 1, H] for classes [B] or numbers [B, 1]; zeros for -1 and NaN."""
        if condition.is_floating_point():
            mean_C, scale_C = self.scale(condition.device)
            known_B1 = ~condition.isnan()
            features_BC = ((condition - mean_C) / scale_C).nan_to_num()
        else:
            known_B1 = condition[:, None] >= 0
            features_BC = F.one_hot(condition.clamp_min(0), self.config.num_labels).to(self.dtype)
        return (self.head(features_BC) * known_B1)[:, None]

    def fixed(self, condition: Tensor | None) -> nn.Module:
        """The language model, head included, with what this class [1] or number [1, 1] adds from now on."""
        if condition is not None:
            self.encoder.condition = self.head
            added_11H = self.added(condition).detach()
            self.encoder.get_input_embeddings().register_forward_hook(lambda _, __, output: output + added_11H)
        return self.encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        condition: Tensor | None = None, **unused: Any,
    ) -> MaskedLMOutput:  # fmt: skip
        """Logits [B, S, V]. With labels [B, S] (0..3 for A, C, G, T of hidden bases, -100 elsewhere), in place of them,
        the mean of -ln p over the hidden bases of each row [B], p among A, C, G and T; its mean is the loss."""
        mask_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        added_B1H = 0 if condition is None else self.added(condition)
        hook = self.encoder.get_input_embeddings().register_forward_hook(lambda _, __, output: output + added_B1H)
        try:
            logits_BSV = self.encoder(input_ids=input_ids, attention_mask=mask_BS).logits
        finally:
            hook.remove()
        if labels is None:
            return MaskedLMOutput(logits=logits_BSV)
        logits_B4S = logits_BSV[..., self.config.base_ids].float().transpose(1, 2)
        nats_B = F.cross_entropy(logits_B4S, labels, reduction="none").sum(1) / (labels >= 0).sum(1)
        return MaskedLMOutput(loss=nats_B.mean(), logits=nats_B)


def pool(hidden_BSH: Tensor, mask_BS: Tensor, pooling: str, special: tuple[int, int] = (0, 0)) -> Tensor:
    """[B, H]; mean and max leave out `special` tokens at the beginning and at the end (none left: zeros). The middle
    token of S real ones is number (S - 1) // 2, as in BioNeMo's splice-site model."""
    if pooling == "cls":
        return hidden_BSH[:, 0]
    if pooling == "centre":
        return hidden_BSH[torch.arange(len(hidden_BSH), device=mask_BS.device), (mask_BS.sum(1) - 1) // 2]
    number_BS, total_B1 = mask_BS.cumsum(1), mask_BS.sum(1, keepdim=True)  # real tokens are counted from 1
    keep_BS1 = ((mask_BS > 0) & (number_BS > special[0]) & (number_BS <= total_B1 - special[1]))[:, :, None]
    if pooling == "max":
        lowest = torch.finfo(hidden_BSH.dtype).min
        return hidden_BSH.masked_fill(~keep_BS1, lowest).amax(dim=1).masked_fill(~keep_BS1.any(1), 0)
    weight_BS1 = keep_BS1.to(hidden_BSH.dtype)
    return (hidden_BSH * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1).clamp_min(1)
