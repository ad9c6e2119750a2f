"""The transformers model computes what the megatron-core encoder computes, under the names of the table."""

import pytest
import torch
from ranks import run_ranks

from megadna.config import Config, EngineConfig, ModelConfig
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.formats import check_names, config_json, name_table
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM

MODEL = ModelConfig(num_layers=3, hidden_size=96, num_attention_heads=6, ffn_hidden_size=160, rotary_base=5000)
CONFIG = Config(model=MODEL, engine=EngineConfig(device="cpu", precision="fp32"))
LENGTHS = (128, 50, 91)


def padding_mask():
    return (torch.arange(128) < torch.tensor(LENGTHS)[:, None]).long()


def megatron_outputs(ids_BS):
    """Weights by name, and the logits [B, S, V] of full and of padded rows, from one rank of the engine."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder
    from megadna.train.step import padded_segments

    with parallel_world(CONFIG.engine, CONFIG.parallel) as world, torch.no_grad():
        model = build_encoder(CONFIG, 16, world.device).eval()
        generator = torch.Generator().manual_seed(7)
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        return {
            "weights": {name: weight.clone() for name, weight in model.named_parameters()},
            "full": model(ids_BS).transpose(0, 1),
            "padded": model(ids_BS, padded_segments(torch.tensor(LENGTHS), 128, world.device)).transpose(0, 1),
        }


@pytest.fixture(scope="module")
def megatron(lambda_ids):
    return run_ranks(megatron_outputs, 1, lambda_ids)[0]


def test_logits_equal_on_real_sequence(megatron, lambda_ids):
    table = name_table("aido", CONFIG)
    check_names(megatron["weights"], table.shapes, "the engine's model")
    content = config_json("megadna", CONFIG, max_length=128, dtype="float32")
    model = MegaDnaForMaskedLM(MegaDnaConfig(**content)).eval()
    weights = {}
    for name, tensor in megatron["weights"].items():
        weights |= table.to_hf(name, tensor)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["cls.predictions.decoder.weight"] and not unexpected  # the tied alias
    mask = padding_mask()
    with torch.no_grad():
        full, padded = model(lambda_ids).logits, model(lambda_ids, attention_mask=mask).logits
    assert megatron["full"].std() > 0.5
    assert (full - megatron["full"]).abs().max() < 1e-5
    assert (padded - megatron["padded"])[mask.bool()].abs().max() < 1e-5
