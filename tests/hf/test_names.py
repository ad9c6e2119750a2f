"""The name tables: exact, strict, and those of the classes they are for."""

from dataclasses import replace

import pytest
import torch
from checkpoints import random_weights
from test_round_trips import BERT, NATIVE, kmers
from transformers import BertConfig, BertForMaskedLM, MegatronBertConfig, MegatronBertForMaskedLM

from megadna.config import Config, DataConfig, EngineConfig, ModelConfig
from megadna.errors import UserError
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.formats import check_names, config_json, name_table
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.model.shapes import tensor_shapes

HEADS, SIZE, FFN = 3, 8, 40
MODERN = Config(
    model=ModelConfig(num_layers=2, hidden_size=HEADS * SIZE, num_attention_heads=HEADS, ffn_hidden_size=FFN)
)
SMALL = DataConfig(sequence_length=128)
CASES = {
    "aido": (MODERN, MegaDnaConfig, MegaDnaForMaskedLM),
    "megadna": (Config(model=NATIVE, tokenizer=kmers(), data=SMALL), MegaDnaConfig, MegaDnaForMaskedLM),
    "bert": (Config(model=BERT, tokenizer=kmers(), data=SMALL), BertConfig, BertForMaskedLM),
    "megatron_bert": (
        Config(model=replace(BERT, norm_placement="pre"), tokenizer=kmers(3, "bionemo"), data=SMALL),
        MegatronBertConfig,
        MegatronBertForMaskedLM,
    ),
}


@pytest.mark.parametrize("target", CASES)
def test_names_and_shapes_are_those_of_the_class_and_come_back_exactly(target):
    config, config_class, model_class = CASES[target]
    table = name_table(target, config)
    wanted = model_class(config_class(**config_json(target, config, max_length=128, dtype="float32")))
    given, weights = {}, random_weights(config)
    for name, tensor in weights.items():
        parts = table.to_hf(name, tensor)
        assert list(parts) == table.hf_names(name) and all(part.is_contiguous() for part in parts.values())
        given |= parts
    assert {name: tensor.shape for name, tensor in given.items()} == {
        name: tensor.shape for name, tensor in wanted.named_parameters()
    }
    assert all(torch.equal(table.from_hf(name, given.__getitem__), tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("target", CASES)
def test_shapes_are_those_of_the_engine(target):
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder

    config = replace(CASES[target][0], engine=EngineConfig(device="cpu", precision="fp32"))
    table = name_table(target, config)
    with parallel_world(config.engine, config.parallel):
        model = build_encoder(config, len(table.vocab_rows), torch.device("meta"))
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == table.shapes


def test_qkv_rows_are_interleaved_per_group_and_gate_precedes_up():
    table = name_table("aido", MODERN)
    # Row value = 100 x head + 10 x (0 query, 1 key, 2 value) + position inside the head.
    rows = [100 * head + 10 * part + i for head in range(HEADS) for part in range(3) for i in range(SIZE)]
    parts = table.to_hf("encoder.layers.1.self_attention.linear_qkv.bias", torch.tensor(rows))
    for part, name in enumerate(("query", "key", "value")):
        values = parts[f"bert.encoder.layer.1.attention.self.{name}.bias"].tolist()
        assert values == [100 * head + 10 * part + i for head in range(HEADS) for i in range(SIZE)]
    halves = table.to_hf("encoder.layers.0.mlp.linear_fc1.bias", torch.arange(2 * FFN))
    assert halves["bert.encoder.layer.0.mlp.gate_proj.bias"].tolist() == list(range(FFN))
    assert halves["bert.encoder.layer.0.mlp.up_proj.bias"].tolist() == list(range(FFN, 2 * FFN))
    grouped = name_table("megadna", CASES["megadna"][0])  # 4 heads, 2 groups, 16 wide: q q k v, q q k v
    rows = torch.arange(8).repeat_interleave(16)[:, None].expand(128, 64)
    query, key, value = grouped.to_hf("encoder.layers.0.self_attention.linear_qkv.weight", rows).values()
    assert [part[::16, 0].tolist() for part in (query, key, value)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize("name", ["encoder.layers.2.input_layernorm.bias", "output_layer.weight", "encoder.extra.bias"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=name):
        name_table("aido", MODERN).to_hf(name, torch.zeros(24))


def test_missing_tensors_and_wrong_sizes_are_named():
    table = name_table("bert", CASES["bert"][0])
    with pytest.raises(UserError, match=r"cls\.predictions\.bias is \[70\], expected \[69\]"):
        table.from_hf("output_layer.bias", lambda name: torch.zeros(70))
    with pytest.raises(UserError, match=r"linear_qkv.bias is \[64\], expected \[192\]"):
        table.to_hf("encoder.layers.0.self_attention.linear_qkv.bias", torch.zeros(64))
    with pytest.raises(UserError, match=r"query.bias is \[63\], expected \[64\]"):
        table.from_hf("encoder.layers.0.self_attention.linear_qkv.bias", lambda name: torch.zeros(63))
    names = tensor_shapes(MODERN.model, 16)
    with pytest.raises(UserError, match="the checkpoint has unknown tensors: extra"):
        check_names([*names, "extra"], names, "the checkpoint")
