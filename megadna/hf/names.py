"""megatron-core parameter names <-> Hugging Face names of the encoder: one table, read in both directions.

In:  full tensors (not split by tensor parallelism), one megatron-core name at a time, so a conversion can stream.
Out: the same numbers under the other names. Nothing is computed, so a round trip is exact bit for bit.
Strict: a name outside the table, a missing tensor or a wrong shape is a UserError that names it.

Layouts, megatron-core -> Hugging Face:
    same        one tensor, unchanged
    vocabulary  padding rows at the end are cut off (they come back as zeros)
    heads       rows [head, (query, key, value), head dimension] -> three tensors of rows [head, head dimension]
    halves      gate rows, then up rows -> two tensors
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megadna.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """What the layouts need to know of an encoder."""

    num_layers: int
    num_attention_heads: int
    vocab_size: int
    padded_vocab_size: int


@dataclass(frozen=True)
class Row:
    """One line of the table; `{l}` stands for the layer."""

    mcore: str
    hf: tuple[str, ...]
    layout: str


def _pair(mcore: str, layout: str, *hf: str) -> list[Row]:
    return [Row(f"{mcore}.{kind}", tuple(f"{stem}.{kind}" for stem in hf), layout) for kind in ("weight", "bias")]


_MCORE_LAYER, _HF_LAYER = "encoder.layers.{l}", "bert.encoder.layer.{l}"
_QKV = (f"{_HF_LAYER}.attention.self.{part}" for part in ("query", "key", "value"))

TABLE = [
    Row("embedding.word_embeddings.weight", ("bert.embeddings.word_embeddings.weight",), "vocabulary"),
    *_pair(f"{_MCORE_LAYER}.input_layernorm", "same", f"{_HF_LAYER}.attention.ln"),
    *_pair(f"{_MCORE_LAYER}.self_attention.linear_qkv", "heads", *_QKV),
    *_pair(f"{_MCORE_LAYER}.self_attention.linear_proj", "same", f"{_HF_LAYER}.attention.output.dense"),
    *_pair(f"{_MCORE_LAYER}.pre_mlp_layernorm", "same", f"{_HF_LAYER}.ln"),
    *_pair(f"{_MCORE_LAYER}.mlp.linear_fc1", "halves", f"{_HF_LAYER}.mlp.gate_proj", f"{_HF_LAYER}.mlp.up_proj"),
    *_pair(f"{_MCORE_LAYER}.mlp.linear_fc2", "same", f"{_HF_LAYER}.mlp.down_proj"),
    *_pair("encoder.final_layernorm", "same", "bert.encoder.ln"),
    *_pair("lm_head.dense", "same", "cls.predictions.transform.dense"),
    *_pair("lm_head.layer_norm", "same", "cls.predictions.transform.LayerNorm"),
    Row("output_layer.bias", ("cls.predictions.bias",), "vocabulary"),
]
_BY_MCORE = {row.mcore: row for row in TABLE}
_LAYER = re.compile(r"(?<=^encoder\.layers\.)\d+(?=\.)")


def _expand(template: str, num_layers: int) -> list[str]:
    return [template.format(l=layer) for layer in range(num_layers)] if "{l}" in template else [template]


def mcore_names(num_layers: int) -> list[str]:
    """Every megatron-core name of an encoder."""
    return [name for row in TABLE for name in _expand(row.mcore, num_layers)]


def hf_names(num_layers: int) -> list[str]:
    """Every Hugging Face name of an encoder, without the tied alias of the decoder."""
    return [name for row in TABLE for template in row.hf for name in _expand(template, num_layers)]


def check_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """UserError with the names that are missing from `what`, or that it has too many."""
    found, expected = set(found), set(expected)
    for problem, names in (("lacks", expected - found), ("has unknown tensors", found - expected)):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{what} {problem}: {shown}; its architecture is not that of the configuration")


def _row(name: str, shape: EncoderShape) -> tuple[Row, tuple[str, ...]]:
    match = _LAYER.search(name)
    row = None if "{l}" in name else _BY_MCORE.get(_LAYER.sub("{l}", name))
    if row is None or (match and int(match[0]) >= shape.num_layers):
        raise UserError(f"no tensor is called {name} in an encoder of {shape.num_layers} layers")
    return row, tuple(hf.format(l=match[0]) if match else hf for hf in row.hf)


def to_hf(name: str, tensor: Tensor, shape: EncoderShape) -> dict[str, Tensor]:
    """Hugging Face tensors (contiguous) held by the megatron-core tensor `name`."""
    row, hf = _row(name, shape)
    if row.layout == "same":
        return {hf[0]: tensor}
    if row.layout == "vocabulary":
        _check_rows(name, tensor, shape.padded_vocab_size)
        return {hf[0]: tensor[: shape.vocab_size].contiguous()}
    if row.layout == "heads":
        parts = _split_rows(name, tensor, shape.num_attention_heads * 3)
        by_head = parts.unflatten(0, (shape.num_attention_heads, 3))
        return {part: by_head[:, i].flatten(0, 1).contiguous() for i, part in enumerate(hf)}
    halves = _split_rows(name, tensor, 2)
    return {part: halves[i].contiguous() for i, part in enumerate(hf)}


def from_hf(name: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> Tensor:
    """The megatron-core tensor `name`, put together from Hugging Face tensors."""
    row, hf = _row(name, shape)
    check_names((part for part in hf if part in tensors), hf, "the Hugging Face model")
    parts = [tensors[part] for part in hf]
    if row.layout == "same":
        return parts[0]
    if row.layout == "vocabulary":
        _check_rows(hf[0], parts[0], shape.vocab_size)
        missing = shape.padded_vocab_size - shape.vocab_size
        return torch.cat((parts[0], parts[0].new_zeros(missing, *parts[0].shape[1:])))
    if row.layout == "heads":
        heads = [_split_rows(part, x, shape.num_attention_heads) for part, x in zip(hf, parts, strict=True)]
        return torch.stack(heads, dim=1).flatten(0, 2)
    return torch.cat(parts)


def _check_rows(name: str, tensor: Tensor, rows: int) -> None:
    if tensor.shape[0] != rows:
        raise UserError(f"{name} has {tensor.shape[0]} rows, expected {rows} (the vocabulary)")


def _split_rows(name: str, tensor: Tensor, parts: int) -> Tensor:
    """[rows, ...] as [parts, rows / parts, ...]."""
    if tensor.shape[0] % parts:
        raise UserError(f"{name} has {tensor.shape[0]} rows, which do not divide by {parts}; check the number of heads")
    return tensor.unflatten(0, (parts, -1))
