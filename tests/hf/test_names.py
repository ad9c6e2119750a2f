import pytest
import torch

from megadna.errors import UserError
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.names import EncoderShape, check_names, from_hf, hf_names, mcore_names, to_hf

HIDDEN, FFN, HEADS, LAYERS = 24, 40, 3, 2
SHAPE = EncoderShape(num_layers=LAYERS, num_attention_heads=HEADS, vocab_size=16, padded_vocab_size=20)
MCORE_SHAPES = {
    "word_embeddings.weight": (20, HIDDEN),
    "output_layer.bias": (20,),
    "linear_qkv.weight": (3 * HIDDEN, HIDDEN),
    "linear_qkv.bias": (3 * HIDDEN,),
    "linear_fc1.weight": (2 * FFN, HIDDEN),
    "linear_fc1.bias": (2 * FFN,),
    "linear_fc2.weight": (HIDDEN, FFN),
    "linear_proj.weight": (HIDDEN, HIDDEN),
    "dense.weight": (HIDDEN, HIDDEN),
}


def random_mcore_tensors():
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name in mcore_names(LAYERS):
        shape = next((shape for end, shape in MCORE_SHAPES.items() if name.endswith(end)), (HIDDEN,))
        tensors[name] = torch.randn(shape, generator=generator)
        if shape[0] == SHAPE.padded_vocab_size:
            tensors[name][SHAPE.vocab_size :] = 0
    return tensors


def test_round_trip_is_exact_from_either_side():
    mcore = random_mcore_tensors()
    hf = {key: value for name, tensor in mcore.items() for key, value in to_hf(name, tensor, SHAPE).items()}
    assert sorted(hf) == sorted(hf_names(LAYERS))
    back = {name: from_hf(name, hf, SHAPE) for name in mcore}
    assert all(torch.equal(back[name], tensor) for name, tensor in mcore.items())
    again = {key: value for name, tensor in back.items() for key, value in to_hf(name, tensor, SHAPE).items()}
    assert all(torch.equal(again[key], tensor) and tensor.is_contiguous() for key, tensor in hf.items())


def test_names_and_shapes_are_those_of_the_transformers_class():
    config = MegaDnaConfig(
        hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS, num_hidden_layers=LAYERS
    )
    wanted = {name: tensor.shape for name, tensor in MegaDnaForMaskedLM(config).named_parameters()}
    given = {}
    for name, tensor in random_mcore_tensors().items():
        given |= {key: value.shape for key, value in to_hf(name, tensor, SHAPE).items()}
    assert given == wanted


def test_qkv_rows_are_interleaved_per_head_and_gate_precedes_up():
    # Row value = 100 x head + 10 x (0 query, 1 key, 2 value) + position inside the head.
    rows = [100 * head + 10 * part + i for head in range(HEADS) for part in range(3) for i in range(HIDDEN // HEADS)]
    parts = to_hf("encoder.layers.1.self_attention.linear_qkv.bias", torch.tensor(rows), SHAPE)
    for part, name in enumerate(("query", "key", "value")):
        values = parts[f"bert.encoder.layer.1.attention.self.{name}.bias"].tolist()
        assert values == [100 * head + 10 * part + i for head in range(HEADS) for i in range(HIDDEN // HEADS)]
    halves = to_hf("encoder.layers.0.mlp.linear_fc1.bias", torch.arange(2 * FFN), SHAPE)
    assert halves["bert.encoder.layer.0.mlp.gate_proj.bias"].tolist() == list(range(FFN))
    assert halves["bert.encoder.layer.0.mlp.up_proj.bias"].tolist() == list(range(FFN, 2 * FFN))


@pytest.mark.parametrize(
    "name", ["encoder.layers.2.input_layernorm.bias", "output_layer.weight", "encoder.layers.{l}.mlp.linear_fc2.bias"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=name.replace("{", r"\{")):
        to_hf(name, torch.zeros(HIDDEN), SHAPE)
    with pytest.raises(UserError, match=name.replace("{", r"\{")):
        from_hf(name, {}, SHAPE)


def test_missing_tensors_and_wrong_sizes_are_named():
    with pytest.raises(UserError, match=r"lacks: bert\.encoder\.layer\.0\.attention\.self\.key\.bias"):
        hf = {f"bert.encoder.layer.0.attention.self.{part}.bias": torch.zeros(HIDDEN) for part in ("query", "value")}
        from_hf("encoder.layers.0.self_attention.linear_qkv.bias", hf, SHAPE)
    with pytest.raises(UserError, match="16 rows, expected 20"):
        to_hf("output_layer.bias", torch.zeros(16), SHAPE)
    with pytest.raises(UserError, match="do not divide by 9"):
        to_hf("encoder.layers.0.self_attention.linear_qkv.bias", torch.zeros(64), SHAPE)
    with pytest.raises(UserError, match="the checkpoint has unknown tensors: extra"):
        check_names([*mcore_names(1), "extra"], mcore_names(1), "the checkpoint")
