"""megatron-core tensor names <-> Hugging Face names: one table a format, read in both directions.

In:  full tensors (not split by tensor parallelism), one megatron-core name at a time, so a conversion streams.
Out: the same numbers under the other names. Nothing is computed, so a round trip is exact bit for bit.
Strict: a missing tensor or a wrong shape is a UserError that names it.

Layouts, megatron-core -> Hugging Face:
    one name            one tensor, unchanged
    linear_qkv          rows [group, (its queries, key, value), head dimension] -> query, key, value
    gated linear_fc1    gate rows, then up rows -> two tensors
    vocabulary          rows in the order of the other vocabulary; padding rows go, and come back as zeros
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megadna.config import ModelConfig
from megadna.errors import UserError
from megadna.model.shapes import tensor_shapes

_LAYER, _HF = "encoder.layers.{l}", "bert.encoder.layer.{l}"
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.bias")
NO_TOKEN_BIAS = -1e4
"""Bias of a row that only the other vocabulary has: it never wins."""

_COMMON: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings": ("bert.embeddings.word_embeddings",),
    "embedding.position_embeddings": ("bert.embeddings.position_embeddings",),
    "embedding.tokentype_embeddings": ("bert.embeddings.token_type_embeddings",),
    "embedding.norm": ("bert.embeddings.LayerNorm",),
    f"{_LAYER}.self_attention.linear_qkv": tuple(f"{_HF}.attention.self.{part}" for part in ("query", "key", "value")),
    f"{_LAYER}.self_attention.linear_proj": (f"{_HF}.attention.output.dense",),
    "encoder.final_layernorm": ("bert.encoder.ln",),
    "lm_head.dense": ("cls.predictions.transform.dense",),
    "lm_head.layer_norm": ("cls.predictions.transform.LayerNorm",),
    "output_layer": ("cls.predictions",),
}
_BERT_MLP = {
    f"{_LAYER}.mlp.linear_fc1": (f"{_HF}.intermediate.dense",),
    f"{_LAYER}.mlp.linear_fc2": (f"{_HF}.output.dense",),
}
_PRE_NORM = {f"{_LAYER}.input_layernorm": (f"{_HF}.attention.ln",), f"{_LAYER}.pre_mlp_layernorm": (f"{_HF}.ln",)}
_BERT = _COMMON | _BERT_MLP | {
    f"{_LAYER}.post_attention_layernorm": (f"{_HF}.attention.output.LayerNorm",),
    f"{_LAYER}.post_mlp_layernorm": (f"{_HF}.output.LayerNorm",),
}  # fmt: skip
_AIDO = _COMMON | _PRE_NORM | {
    f"{_LAYER}.mlp.linear_fc1": (f"{_HF}.mlp.gate_proj", f"{_HF}.mlp.up_proj"),
    f"{_LAYER}.mlp.linear_fc2": (f"{_HF}.mlp.down_proj",),
}  # fmt: skip


def _multimolecule(name: str) -> str:
    name = name.replace("LayerNorm", "layer_norm").replace("cls.predictions", "lm_head")
    return re.sub("^bert", "model", name)


TABLES = {
    "bert": _BERT,
    "multimolecule": {mcore: tuple(map(_multimolecule, stems)) for mcore, stems in _BERT.items()},
    "megatron_bert": _COMMON | _PRE_NORM | _BERT_MLP,
    "aido": _AIDO,
    "megadna": _AIDO | {
        f"{_LAYER}.post_attention_layernorm": (f"{_HF}.attention.ln",),
        f"{_LAYER}.post_mlp_layernorm": (f"{_HF}.ln",),
        f"{_LAYER}.self_attention.q_layernorm": (f"{_HF}.attention.self.query_norm",),
        f"{_LAYER}.self_attention.k_layernorm": (f"{_HF}.attention.self.key_norm",),
    },
}  # fmt: skip
"""Format -> megatron-core module -> Hugging Face modules; `{l}` is the layer's number."""


def check_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """UserError with the names that are missing from `what`, or that it has too many."""
    found, expected = set(found), set(expected)
    for problem, names in (("lacks", expected - found), ("has unknown tensors", found - expected)):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{what} {problem}: {shown}; its architecture is not that of the configuration")


@dataclass(frozen=True)
class NameTable:
    """The tensors of one encoder under both sets of names."""

    format: str
    model: ModelConfig
    vocab_rows: list[int]
    """For every row of the Hugging Face vocabulary the megatron-core row, -1 where there is none."""
    padded_vocab_size: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every megatron-core tensor with its full shape."""
        return tensor_shapes(self.model, self.padded_vocab_size)

    @property
    def token_types(self) -> str:
        """Hugging Face name of the token-type table, which a stock class has even where this model has none."""
        return f"{TABLES[self.format]['embedding.tokentype_embeddings'][0]}.weight"

    def hf_names(self, name: str) -> list[str]:
        """Hugging Face names of the tensor that megatron-core calls `name`."""
        stem, _, kind = name.rpartition(".")
        layer = re.search(r"(?<=^encoder\.layers\.)\d+(?=\.)", stem)
        template = re.sub(r"(?<=^encoder\.layers\.)\d+(?=\.)", "{l}", stem)
        stems = TABLES[self.format].get(template)
        if name not in self.shapes or stems is None:
            raise UserError(f"format {self.format} has no place for a tensor {name} in {self.model.num_layers} layers")
        if template.endswith("linear_fc1") and self.model.activation != "swiglu":
            stems = stems[-1:]  # no gate
        return [f"{hf.format(l=layer[0] if layer else '')}.{kind}" for hf in stems]

    def to_hf(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Hugging Face tensors (contiguous) held by the megatron-core tensor `name`."""
        _check_shape(name, tensor, self.shapes.get(name))
        names = self.hf_names(name)
        if name in _VOCABULARY:
            rows = torch.tensor(self.vocab_rows, device=tensor.device)
            chosen = tensor.index_select(0, rows.clamp_min(0))
            absent = (rows < 0).view(-1, *[1] * (tensor.ndim - 1))
            return {names[0]: chosen.masked_fill(absent, NO_TOKEN_BIAS if tensor.ndim == 1 else 0.0)}
        groups, counts = self._division(name, len(names))
        parts = tensor.unflatten(0, (groups, sum(counts), -1)).split(counts, dim=1)
        return {part: x.flatten(0, 2).contiguous() for part, x in zip(names, parts, strict=True)}

    def from_hf(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The megatron-core tensor `name`, put together from Hugging Face tensors; two are in memory at a time."""
        names = self.hf_names(name)
        rows, *rest = self.shapes[name]
        if name in _VOCABULARY:
            part = read(names[0])
            _check_shape(names[0], part, (len(self.vocab_rows), *rest))
            tensor = part.new_zeros(rows, *rest)
            tensor[torch.tensor(self.vocab_rows)] = part
            return tensor
        groups, counts = self._division(name, len(names))
        whole: Tensor | None = None
        for at, (key, count) in enumerate(zip(names, counts, strict=True)):
            part = read(key)
            _check_shape(key, part, (rows * count // sum(counts), *rest))
            if len(names) == 1:
                return part
            whole = part.new_empty(rows, *rest) if whole is None else whole
            first = sum(counts[:at])
            whole.view(groups, sum(counts), -1, *rest)[:, first : first + count] = part.view(groups, count, -1, *rest)
        assert whole is not None
        return whole

    def _division(self, name: str, num_parts: int) -> tuple[int, tuple[int, ...]]:
        """Groups of rows, and blocks of rows in each group that go to each Hugging Face tensor."""
        if ".linear_qkv." in name:
            groups = self.model.query_groups
            return groups, (self.model.num_attention_heads // groups, 1, 1)
        return 1, (1,) * num_parts


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...] | None) -> None:
    if expected is not None and tuple(tensor.shape) != expected:
        raise UserError(
            f"{name} is {list(tensor.shape)}, expected {list(expected)} by the configuration; "
            "check that weights and configuration belong together"
        )
