"""The variants compute what others define: transformers' BERT and Megatron-BERT, and formulas written out in torch."""

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from torch.nn import functional as F

from megadna.config import Config, EngineConfig, ModelConfig, TokenizerConfig

BERT = ModelConfig(
    num_layers=2, hidden_size=768, num_attention_heads=12, ffn_hidden_size=3072, activation="gelu",
    norm_placement="post", positions="learned", max_positions=96, token_types=2, layernorm_epsilon=1e-12,
)  # fmt: skip
MEGATRON_BERT = ModelConfig(
    num_layers=2, hidden_size=768, num_attention_heads=12, ffn_hidden_size=3072, activation="gelu",
    positions="learned", max_positions=96,
)  # fmt: skip
OPTIONS = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=96,
    normalization="rmsnorm", qk_norm=True, linear_bias=False, rotary_base=500, rotary_interpolation=4.0,
)  # fmt: skip
MODELS = {"bert": BERT, "megatron-bert": MEGATRON_BERT, "options": OPTIONS}
VOCABULARY = 69  # 3-mers
LENGTHS = (80, 33)


def tokens() -> Tensor:
    return torch.randint(5, VOCABULARY, (2, 80), generator=torch.Generator().manual_seed(1))


def encoder_outputs() -> dict[str, dict[str, Any]]:
    """Weights, and logits [B, S, V] of full and of padded rows, of every model on one rank."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder
    from megadna.train.step import padded_segments

    found = {}
    engine = EngineConfig(device="cpu", precision="fp32")
    with parallel_world(engine, Config().parallel) as world, torch.no_grad():
        for name, shape in MODELS.items():
            config = Config(model=shape, tokenizer=TokenizerConfig(kind="kmer", k=3), engine=engine)
            model = build_encoder(config, VOCABULARY, world.device).eval()
            generator = torch.Generator().manual_seed(7)
            for weight in model.parameters():
                weight += 0.04 * torch.randn(weight.shape, generator=generator)
            segments = padded_segments(torch.tensor(LENGTHS), 80, world.device)
            found[name] = {
                "weights": {name: weight.clone() for name, weight in model.named_parameters()},
                "full": model(tokens()).transpose(0, 1),
                "padded": model(tokens(), segments).transpose(0, 1),
            }
    return found


@pytest.fixture(scope="module")
def outputs() -> dict[str, dict[str, Any]]:
    return run_ranks(encoder_outputs, 1)[0]


def load_hf(model: torch.nn.Module, weights: dict[str, Tensor], *, layer: dict[str, str], top: dict[str, str]) -> None:
    """Fill a transformers model: `layer` and `top` name its tensors by megatron's."""
    state = {}
    for name, weight in weights.items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("encoder.layers."):
            number, part = stem.removeprefix("encoder.layers.").split(".", 1)
            prefix = f"bert.encoder.layer.{number}"
            if part == "self_attention.linear_qkv":
                by_head = weight.unflatten(0, (12, 3, 64))
                for index, target in enumerate(("query", "key", "value")):
                    state[f"{prefix}.attention.self.{target}.{kind}"] = by_head[:, index].flatten(0, 1)
            else:
                state[f"{prefix}.{layer[part]}.{kind}"] = weight
        elif name == "output_layer.bias":
            state["cls.predictions.bias"] = weight[:VOCABULARY]
        else:
            state[f"{top[stem]}.{kind}"] = weight[:VOCABULARY] if "word_embeddings" in stem else weight
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "bert.embeddings.token_type_embeddings.weight",
    }


HEAD = {
    "embedding.word_embeddings": "bert.embeddings.word_embeddings",
    "embedding.position_embeddings": "bert.embeddings.position_embeddings",
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layer_norm": "cls.predictions.transform.LayerNorm",
}
FEED_FORWARD = {
    "self_attention.linear_proj": "attention.output.dense",
    "mlp.linear_fc1": "intermediate.dense",
    "mlp.linear_fc2": "output.dense",
}


def check(model: torch.nn.Module, found: dict[str, Any]) -> None:
    """Logits of full rows, of the real tokens of padded rows, and minus infinity in the padding of the vocabulary."""
    mask_BS = torch.arange(80) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        full = model(tokens()).logits
        padded = model(tokens(), attention_mask=mask_BS.long()).logits
    assert full.std() > 0.3
    assert (found["full"][..., :VOCABULARY] - full).abs().max() < 1e-5
    assert (found["padded"][..., :VOCABULARY] - padded)[mask_BS].abs().max() < 1e-5
    assert found["full"].shape[-1] == 128 and (found["full"][..., VOCABULARY:] == -torch.inf).all()


def test_post_ln_equals_transformers_bert(outputs: dict[str, dict[str, Any]]) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=96, layer_norm_eps=1e-12, hidden_act="gelu"
    )
    model = BertForMaskedLM(config).eval()
    layer = {
        **FEED_FORWARD,
        "post_attention_layernorm": "attention.output.LayerNorm",
        "post_mlp_layernorm": "output.LayerNorm",
    }
    top = {
        **HEAD,
        "embedding.tokentype_embeddings": "bert.embeddings.token_type_embeddings",
        "embedding.norm": "bert.embeddings.LayerNorm",
    }
    load_hf(model, outputs["bert"]["weights"], layer=layer, top=top)
    check(model, outputs["bert"])


def test_pre_ln_equals_transformers_megatron_bert(outputs: dict[str, dict[str, Any]]) -> None:
    from transformers import MegatronBertConfig, MegatronBertForMaskedLM

    config = MegatronBertConfig(
        vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=96, layer_norm_eps=1e-5, hidden_act="gelu",
    )  # fmt: skip
    model = MegatronBertForMaskedLM(config).eval()
    torch.nn.init.zeros_(model.bert.embeddings.token_type_embeddings.weight)
    layer = {**FEED_FORWARD, "input_layernorm": "attention.ln", "pre_mlp_layernorm": "ln"}
    top = {**HEAD, "encoder.final_layernorm": "bert.encoder.ln"}
    load_hf(model, outputs["megatron-bert"]["weights"], layer=layer, top=top)
    check(model, outputs["megatron-bert"])


def reference(weights: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    """Logits [S, V] of OPTIONS for one sequence, written out."""
    model, size = OPTIONS, OPTIONS.head_size
    embedding = weights["embedding.word_embeddings.weight"]
    x = embedding[tokens_S]
    position = torch.arange(len(tokens_S)) / model.rotary_interpolation
    angle = torch.outer(position, model.rotary_base ** (-torch.arange(0, size, 2) / size))

    def norm(name: str, y: Tensor) -> Tensor:
        return F.rms_norm(y, y.shape[-1:], weights[f"{name}.weight"], model.layernorm_epsilon)

    def rotate(y_SND: Tensor) -> Tensor:
        first, second = y_SND.chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    for number in range(model.num_layers):
        name = f"encoder.layers.{number}"
        y = norm(f"{name}.input_layernorm", x)
        qkv = (y @ weights[f"{name}.self_attention.linear_qkv.weight"].T).unflatten(-1, (2, 4, size))
        query, key, value = qkv[:, :, :2].flatten(1, 2), qkv[:, :, 2], qkv[:, :, 3]
        query = rotate(norm(f"{name}.self_attention.q_layernorm", query))
        key = rotate(norm(f"{name}.self_attention.k_layernorm", key))
        heads = []
        for head in range(4):
            scores = query[:, head] @ key[:, head // 2].T / math.sqrt(size)
            heads.append(scores.softmax(-1) @ value[:, head // 2])
        x = x + torch.cat(heads, -1) @ weights[f"{name}.self_attention.linear_proj.weight"].T
        gate, up = (norm(f"{name}.pre_mlp_layernorm", x) @ weights[f"{name}.mlp.linear_fc1.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ weights[f"{name}.mlp.linear_fc2.weight"].T
    x = F.gelu(norm("encoder.final_layernorm", x) @ weights["lm_head.dense.weight"].T)
    return norm("lm_head.layer_norm", x) @ embedding.T + weights["output_layer.bias"]


def test_options_equal_the_formulas(outputs: dict[str, dict[str, Any]]) -> None:
    found = outputs["options"]
    for row, length in enumerate(LENGTHS):
        expected = reference(found["weights"], tokens()[row, :length])[:, :VOCABULARY]
        assert expected.std() > 0.3
        assert (found["padded"][row, :length, :VOCABULARY] - expected).abs().max() < 1e-5
    assert not any(name.endswith("bias") for name in found["weights"] if name != "output_layer.bias")
