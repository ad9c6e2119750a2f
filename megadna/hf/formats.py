"""Which Hugging Face format holds which encoder, and its config.json in both directions.

    aido           RNABert keys and config.json of AIDO.DNA, with our modeling files beside them
    bert           BertForMaskedLM of transformers: DNABERT
    multimolecule  DnaBert of multimolecule: the same tensors under other names, rows in its vocabulary's order
    megatron_bert  MegatronBertForMaskedLM of transformers: BERT before NVIDIA's pre-LN variant, BioNeMo's DNABERT
    megadna        everything, by our modeling files

`auto` takes the first that holds the configuration exactly, in the order of `AUTO`.
"""

from dataclasses import replace
from typing import Any

from megadna.config import Config, DataConfig, ModelConfig, TokenizerConfig
from megadna.errors import UserError, require
from megadna.hf.names import NameTable
from megadna.log import get_logger
from megadna.model.shapes import padded_vocab_size
from megadna.tokenizer.base import Tokenizer
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
AUTO_MAP = {
    "AutoConfig": "configuration_megadna.MegaDnaConfig",
    "AutoModel": "modeling_megadna.MegaDnaModel",
    "AutoModelForMaskedLM": "modeling_megadna.MegaDnaForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_megadna.MegaDnaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_megadna.MegaDnaForTokenClassification",
}
_ANY = {"normalization": "layernorm", "linear_bias": True, "qk_norm": False, "rotary_interpolation": 1.0}
_BERT = _ANY | {"activation": "gelu", "positions": "learned"}
_NEEDS: dict[str, dict[str, Any]] = {
    "bert": _BERT | {"norm_placement": "post"},
    "multimolecule": _BERT | {"norm_placement": "post"},
    "megatron_bert": _BERT | {"norm_placement": "pre"},
    "aido": _ANY
    | {"activation": "swiglu", "positions": "rotary", "norm_placement": "pre", "rotary_base": 10000, "token_types": 0},
    "megadna": {},
}
_TOKENIZERS = {"bert": "kmer", "multimolecule": "kmer", "megatron_bert": "kmer", "aido": "nucleotide"}


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


ROLES = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")


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
