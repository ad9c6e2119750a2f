"""Hugging Face formats: which holds which encoder, its config.json, and its tensor names, each in both directions.

    aido           RNABert keys and config.json of AIDO.DNA, with our modeling files
    bert           BertForMaskedLM of transformers: DNABERT
    multimolecule  DnaBert of multimolecule: the same tensors under other names, rows in its vocabulary's order
    megatron_bert  MegatronBertForMaskedLM of transformers: BERT before NVIDIA's pre-LN variant, BioNeMo's DNABERT
    megadna        everything, by our modeling files

`auto` takes the first that holds the configuration exactly, in the order of `AUTO`.

Tensors are converted one megatron-core name at a time, so a conversion streams. Nothing is computed, so a round trip is
exact bit for bit; a missing tensor or a wrong shape is a UserError that names it. megatron-core -> Hugging Face:

    one name            one tensor, unchanged
    linear_qkv          rows [group, (its queries, key, value), head dimension] -> query, key, value
    gated linear_fc1    gate rows, then up rows -> two tensors
    vocabulary          rows in the order of the other vocabulary; padding rows are cut, and come back as zeros
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadna.config import Config, DataConfig, ModelConfig, TokenizerConfig
from megadna.errors import UserError, require
from megadna.log import get_logger
from megadna.model.shapes import padded_vocab_size, tensor_shapes
from megadna.tokenizer.base import Tokenizer, context_symbols
from megadna.tokenizer.build import build_tokenizer

log = get_logger(__name__)

AUTO = ("aido", "bert", "megatron_bert", "megadna")
REMOTE = ("aido", "megadna")
"""Formats that carry our modeling files."""
MODEL_TYPES = {
    "bert": "bert", "multimolecule": "dnabert", "megatron_bert": "megatron-bert", "aido": "rnabert",
    "megadna": "megadna",
}  # fmt: skip
ARCHITECTURES = {
    "bert": "BertForMaskedLM", "multimolecule": "DnaBertForMaskedLM", "megatron_bert": "MegatronBertForMaskedLM",
    "aido": "RNABertForMaskedLM", "megadna": "MegaDnaForMaskedLM",
}  # fmt: skip
REMOTE_CODE = ("configuration_megadna.py", "modeling_megadna.py")
ROLES = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
AUTO_MAP = {
    "AutoConfig": "configuration_megadna.MegaDnaConfig",
    "AutoModel": "modeling_megadna.MegaDnaModel",
    "AutoModelForMaskedLM": "modeling_megadna.MegaDnaForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_megadna.MegaDnaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_megadna.MegaDnaForTokenClassification",
}
_ANY = {
    "normalization": "layernorm",
    "linear_bias": True,
    "qk_norm": False,
    "rotary_interpolation": 1.0,
    "local_context": "none",
}
_BERT_NEEDS = _ANY | {"activation": "gelu", "positions": "learned"}
_NEEDS: dict[str, dict[str, Any]] = {
    "bert": _BERT_NEEDS | {"norm_placement": "post"},
    "multimolecule": _BERT_NEEDS | {"norm_placement": "post"},
    "megatron_bert": _BERT_NEEDS | {"norm_placement": "pre"},
    "aido": _ANY
    | {"activation": "swiglu", "positions": "rotary", "norm_placement": "pre", "rotary_base": 10000, "token_types": 0},
    "megadna": {},
}
_TOKENIZERS = {"bert": "kmer", "multimolecule": "kmer", "megatron_bert": "kmer", "aido": "nucleotide"}

_LAYER, _HF = "encoder.layers.{l}", "bert.encoder.layer.{l}"
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.bias")
NO_TOKEN_BIAS = -1e4
"""Bias of a token that only the other vocabulary has: it is never predicted."""

_COMMON_NAMES: dict[str, tuple[str, ...]] = {
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
_GELU_NAMES = {
    f"{_LAYER}.mlp.linear_fc1": (f"{_HF}.intermediate.dense",),
    f"{_LAYER}.mlp.linear_fc2": (f"{_HF}.output.dense",),
}
_PRE_NORM_NAMES = {f"{_LAYER}.input_layernorm": (f"{_HF}.attention.ln",), f"{_LAYER}.pre_mlp_layernorm": (f"{_HF}.ln",)}
_BERT_NAMES = _COMMON_NAMES | _GELU_NAMES | {
    f"{_LAYER}.post_attention_layernorm": (f"{_HF}.attention.output.LayerNorm",),
    f"{_LAYER}.post_mlp_layernorm": (f"{_HF}.output.LayerNorm",),
}  # fmt: skip
_AIDO_NAMES = _COMMON_NAMES | _PRE_NORM_NAMES | {
    f"{_LAYER}.mlp.linear_fc1": (f"{_HF}.mlp.gate_proj", f"{_HF}.mlp.up_proj"),
    f"{_LAYER}.mlp.linear_fc2": (f"{_HF}.mlp.down_proj",),
}  # fmt: skip


def _multimolecule(name: str) -> str:
    name = name.replace("LayerNorm", "layer_norm").replace("cls.predictions", "lm_head")
    return re.sub("^bert", "model", name)


TABLES = {
    "bert": _BERT_NAMES,
    "multimolecule": {mcore: tuple(map(_multimolecule, stems)) for mcore, stems in _BERT_NAMES.items()},
    "megatron_bert": _COMMON_NAMES | _PRE_NORM_NAMES | _GELU_NAMES,
    "aido": _AIDO_NAMES,
    "megadna": _AIDO_NAMES | {
        f"{_LAYER}.post_attention_layernorm": (f"{_HF}.attention.ln",),
        f"{_LAYER}.post_mlp_layernorm": (f"{_HF}.ln",),
        "embedding.context.left": ("bert.embeddings.context.left",),
        "embedding.context.right": ("bert.embeddings.context.right",),
        "embedding.context.around": ("bert.embeddings.context.around",),
        f"{_LAYER}.self_attention.convolution": (f"{_HF}.attention.convolution",),
        f"{_LAYER}.self_attention.q_layernorm": (f"{_HF}.attention.self.query_norm",),
        f"{_LAYER}.self_attention.k_layernorm": (f"{_HF}.attention.self.key_norm",),
    },
}  # fmt: skip
"""Format -> megatron-core module -> Hugging Face modules; `{l}` is the layer's number."""


def check_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """UserError with the names that `what` lacks, or has in excess."""
    found, expected = set(found), set(expected)
    for problem, names in (("lacks", expected - found), ("has unknown tensors", found - expected)):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{what} {problem}: {shown}; its architecture does not match the configuration")


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
            raise UserError(f"format {self.format} has no tensor {name} in {self.model.num_layers} layers")
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
        """The megatron-core tensor `name`, put together from Hugging Face tensors."""
        names = self.hf_names(name)
        rows, *rest = self.shapes[name]
        if name in _VOCABULARY:
            part = read(names[0])
            _check_shape(names[0], part, (len(self.vocab_rows), *rest))
            tensor = part.new_zeros(rows, *rest)
            tensor[torch.tensor(self.vocab_rows)] = part
            return tensor
        groups, counts = self._division(name, len(names))
        parts: list[Tensor] = []
        for key, count in zip(names, counts, strict=True):
            part = read(key)
            _check_shape(key, part, (rows * count // sum(counts), *rest))
            parts.append(part.reshape(groups, count, -1, *rest))
        return torch.cat(parts, dim=1).view(rows, *rest) if len(parts) > 1 else part

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


def obstacle(target: str, config: Config) -> str | None:
    """Why `target` cannot hold a model of this configuration; None where it can."""
    model, tokenizer = config.model, config.tokenizer
    for key, value in _NEEDS[target].items():
        if getattr(model, key) != value:
            return f"model.{key} is {getattr(model, key)}, and it has only {value}"
    if target != "megadna" and model.query_groups != model.num_attention_heads:
        return f"model.num_query_groups is {model.query_groups}, and it has as many as heads"
    if tokenizer.kind != _TOKENIZERS.get(target, tokenizer.kind):
        return f"tokenizer.kind is {tokenizer.kind}, and it has {_TOKENIZERS[target]}"
    if tokenizer.kind == "kmer" and target != "megadna" and tokenizer.stride != 1:
        return f"tokenizer.stride is {tokenizer.stride}, and its k-mers overlap"
    return None


def choose_format(config: Config, wanted: str) -> str:
    """`wanted`, or what `auto` picks; UserError with the reason where it cannot hold the model."""
    if wanted == "auto":
        order = ("multimolecule", *AUTO) if config.tokenizer.layout == "multimolecule" else AUTO
        return next(target for target in order if obstacle(target, config) is None)
    require(wanted in MODEL_TYPES, f"--format {wanted}: no such format; one of: auto, {', '.join(MODEL_TYPES)}")
    if reason := obstacle(wanted, config):
        raise UserError(f"--format {wanted} cannot hold this model: {reason}; --format auto finds one that can")
    return wanted


def target_tokenizer(target: str, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer whose vocabulary a folder of this format has."""
    layout = {"bert": "dnabert", "multimolecule": "multimolecule"}.get(target)
    return build_tokenizer(replace(config, layout=layout) if layout else config)  # type: ignore[arg-type]


def name_table(target: str, config: Config) -> NameTable:
    """Names and layouts between a model of this configuration and a folder of this format."""
    own, other = build_tokenizer(config.tokenizer), target_tokenizer(target, config.tokenizer)
    rows = {text: row for row, text in enumerate(own.tokens())}
    roles = {other.tokens()[getattr(other, role)]: getattr(own, role) for role in ROLES}
    vocab_rows = [roles.get(text, rows.get(text, -1)) for text in other.tokens()]
    return NameTable(target, config.model, vocab_rows, padded_vocab_size(config.tokenizer, own.vocab_size))


def config_json(target: str, config: Config, *, max_length: int, dtype: str) -> dict[str, Any]:
    """The fields of config.json; dtype: `float32` or `bfloat16`, that of the weights."""
    model, tokenizer = config.model, target_tokenizer(target, config.tokenizer)
    prefix = "" if target == "multimolecule" else "_prob"
    common = {
        "architectures": [ARCHITECTURES[target]],
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.ffn_hidden_size,
        "layer_norm_eps": model.layernorm_epsilon,
        "max_position_embeddings": model.max_positions if model.positions == "learned" else max_length,
        "model_type": MODEL_TYPES[target],
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": dtype,
        "type_vocab_size": model.token_types or 2,
        "use_cache": True,
        "vocab_size": tokenizer.vocab_size,
        f"hidden_dropout{prefix}": model.dropout,
        ("attention_dropout" if target == "multimolecule" else "attention_probs_dropout_prob"): model.dropout,
    }
    if target not in REMOTE:
        own = {"hidden_act": "gelu", "position_embedding_type": "absolute", "tie_word_embeddings": True}
        if target == "multimolecule":
            own |= {"lm_head": {"layer_norm_eps": model.layernorm_epsilon}, "bos_token_id": 1, "eos_token_id": 2}
        return common | own
    own = {
        "add_linear_bias": model.linear_bias,
        "auto_map": AUTO_MAP,
        "hidden_act": model.activation,
        "normalization_type": {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[model.normalization],
        "position_embedding_type": {"rotary": "rope", "learned": "learned"}[model.positions],
        "rotary_percent": 1.0,
        "special_token_ids": [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id],
        "seq_len_interpolation_factor": None if model.rotary_interpolation == 1.0 else model.rotary_interpolation,
        "tokenizer_type": "BertWordPieceLowerCase",  # a label of Megatron's that AIDO's files carry; nothing reads it
    }
    if target == "megadna":
        own |= {
            "norm_placement": model.norm_placement,
            "num_key_value_heads": model.query_groups,
            "local_context": model.local_context,
            "context_symbols": context_symbols(tokenizer) if model.has_context_tables else None,
            "num_token_types": model.token_types,
            "qk_norm": model.qk_norm,
            "rope_theta": float(model.rotary_base),
        }
    return common | own


def recognise(content: dict[str, Any]) -> str:
    """The format of a folder with this config.json; UserError where it is none of ours."""
    found = [target for target, kind in MODEL_TYPES.items() if kind == content.get("model_type")]
    if not found:
        known = ", ".join(MODEL_TYPES.values())
        raise UserError(f"config.json: model_type {content.get('model_type')!r} cannot be imported; it reads {known}")
    return found[0]


def config_of(target: str, content: dict[str, Any], tokenizer: TokenizerConfig, *, token_types: bool) -> Config:
    """The configuration of a folder with this config.json; `token_types`: whether that table holds anything."""
    remote = target in REMOTE
    dropout = content.get("hidden_dropout", content.get("hidden_dropout_prob", 0.0))
    attention = content.get("attention_dropout", content.get("attention_probs_dropout_prob", 0.0))
    if dropout != attention:
        log.warning("config.json: dropout %g, of attention %g; model.dropout takes the first", dropout, attention)
    positions = content.get("position_embedding_type", "rope" if remote else "absolute")
    norm = content.get("normalization_type", "RMSNorm") if target == "aido" else content.get("normalization_type")
    activation = content.get("hidden_act", "swiglu" if remote else "gelu")
    require(
        positions in (("rope", "learned") if remote else ("absolute",))
        and activation in (("swiglu", "gelu") if remote else ("gelu",))
        and float(content.get("rotary_percent", 1.0)) == 1.0
        and not content.get("is_decoder", False)
        and bool(content.get("tie_word_embeddings", True)),
        f"config.json: position_embedding_type {positions}, hidden_act {activation}, rotary_percent, is_decoder or "
        "tie_word_embeddings is not what megadna's encoder computes",
    )
    longest = int(content["max_position_embeddings"])
    groups = content.get("num_key_value_heads", content["num_attention_heads"])
    types = int(content["num_token_types" if "num_token_types" in content else "type_vocab_size"])
    model = ModelConfig(
        num_layers=content["num_hidden_layers"],
        hidden_size=content["hidden_size"],
        num_attention_heads=content["num_attention_heads"],
        num_query_groups=None if groups == content["num_attention_heads"] else groups,
        ffn_hidden_size=content["intermediate_size"],
        activation=activation,
        norm_placement=content.get("norm_placement", "post" if target in ("bert", "multimolecule") else "pre"),
        normalization="rmsnorm" if norm == "RMSNorm" else "layernorm",
        qk_norm=content.get("qk_norm", False),
        local_context=content.get("local_context", "none"),
        linear_bias=content.get("add_linear_bias", True),
        positions="rotary" if positions == "rope" else "learned",
        max_positions=512 if positions == "rope" else longest,
        token_types=types * token_types,
        rotary_base=int(content.get("rope_theta", 10000)),
        rotary_interpolation=float(content.get("seq_len_interpolation_factor") or 1.0),
        layernorm_epsilon=float(content.get("layer_norm_eps", 1e-12)),
        init_std=float(content.get("initializer_range", 0.02)),
        dropout=float(dropout),
    )
    return Config(model=model, tokenizer=tokenizer, data=DataConfig(sequence_length=longest))


def write_code(folder: Path, target: str) -> None:
    """Our configuration and modeling files; in an `aido` folder with AIDO.DNA's model_type."""
    for name in REMOTE_CODE:
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        if target == "aido":
            text = text.replace('model_type = "megadna"', 'model_type = "rnabert"')
        (folder / name).write_text(text, encoding="utf-8")
