"""The presets: exact totals on the meta device; FLOPs against torch's counter and DNABERT's published figures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from megadna.arguments import load_config
from megadna.config import Config, EngineConfig, ModelConfig, TokenizerConfig
from megadna.model.shapes import forward_flops, num_parameters, training_flops
from megadna.tokenizer.build import build_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
TOTALS = {
    "aido-dna-7b": 7_285_036_304,
    "aido-dna-300m": 300_264_464,
    "megadna-86m": 85_720_336,
    "megadna-7b-hd128": 7_199_510_544,
    "dnabert-3mer": 86_095_941,
    "dnabert-4mer": 86_243_589,
    "dnabert-5mer": 86_834_181,
    "dnabert-6mer": 89_196_549,
    "bionemo-dnabert-86m": 86_139_776,
}
"""Parameters; k-mer vocabularies without padding, bionemo's with it, as their sources count."""


def on_cpu(config: Config) -> Config:
    return replace(config, engine=EngineConfig(device="cpu", precision="fp32"))


def meta_totals() -> dict[str, tuple[int, int]]:
    """Parameters and rows of the vocabulary of every preset, built without memory for its weights."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder

    with parallel_world(EngineConfig(device="cpu"), Config().parallel):
        found = {}
        for name in TOTALS:
            config = load_config(CONFIGS / f"{name}.yaml")
            config = replace(config, parallel=Config().parallel)
            model = build_encoder(config, build_tokenizer(config.tokenizer).vocab_size, torch.device("meta"))
            assert all(parameter.is_meta for parameter in model.parameters())
            total = sum(parameter.numel() for parameter in model.parameters())
            found[name] = (total, model.embedding.word_embeddings.weight.shape[0])
        return found


def test_presets_have_their_exact_number_of_parameters() -> None:
    found = run_ranks(meta_totals, 1)[0]
    for name, expected in TOTALS.items():
        config = load_config(CONFIGS / f"{name}.yaml")
        total, rows = found[name]
        assert total == num_parameters(config.model, rows), name
        padding = rows - build_tokenizer(config.tokenizer).vocab_size
        counted = total if name.startswith("bionemo") else total - padding * (config.model.hidden_size + 1)
        assert counted == expected, name


def test_vocabularies_are_padded_to_a_fixed_size() -> None:
    from megadna.model.shapes import padded_vocab_size

    sizes = {k: padded_vocab_size(TokenizerConfig(kind="kmer", k=k), 4**k + 5) for k in (3, 4, 5, 6)}
    assert sizes == {3: 128, 4: 320, 5: 1088, 6: 4160}
    assert padded_vocab_size(TokenizerConfig(), 16) == 16


FAMILIES = {
    "modern": (ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=96), TokenizerConfig()),
    "grouped queries": (
        ModelConfig(
            num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=96,
            linear_bias=False,
        ),
        TokenizerConfig(),
    ),
    "original BERT": (
        ModelConfig(
            num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=256, activation="gelu",
            norm_placement="post", positions="learned", max_positions=64, token_types=2,
        ),
        TokenizerConfig(kind="kmer", k=3),
    ),
}  # fmt: skip


def counted_flops() -> dict[str, tuple[int, int]]:
    """torch's count of matrix products of one sequence of 48 tokens, forward alone and with backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder

    found = {}
    with parallel_world(EngineConfig(device="cpu"), Config().parallel) as world:
        for name, (model, tokenizer) in FAMILIES.items():
            config = on_cpu(Config(model=replace(model, attention="eager"), tokenizer=tokenizer))
            encoder = build_encoder(config, build_tokenizer(tokenizer).vocab_size, world.device)
            with FlopCounterMode(display=False) as counter:
                logits_SBV = encoder(torch.randint(5, 9, (1, 48)))
                forward = counter.get_total_flops()
                logits_SBV[..., :16].square().sum().backward()
            found[name] = (forward, counter.get_total_flops())
    return found


def test_flops_are_those_that_torch_counts() -> None:
    found = run_ranks(counted_flops, 1)[0]
    for name, (model, tokenizer) in FAMILIES.items():
        rows = 128 if tokenizer.kind == "kmer" else 16
        assert found[name] == (forward_flops(model, rows, 48), training_flops(model, rows, 48)), name


def test_flops_of_dnabert_are_the_published_ones() -> None:
    """96.86 GFLOPs and 48.43 GMACs for 512 tokens: the encoder, its decoder left out."""
    model = load_config(CONFIGS / "dnabert-6mer.yaml").model
    flops = forward_flops(model, 0, 512, predicted=0.0)
    assert flops == pytest.approx(96.86e9, rel=0.01)
    assert flops / 2 == pytest.approx(48.43e9, rel=0.01)


@pytest.mark.parametrize("name", ["aido-dna-7b", "aido-dna-300m", "megadna-86m"])
def test_flops_agree_with_six_n_plus_attention(name: str) -> None:
    model = load_config(CONFIGS / f"{name}.yaml").model
    rule = 4000 * (6 * TOTALS[name] + 12 * model.num_layers * model.hidden_size * 4000)
    assert training_flops(model, 16, 4000) == pytest.approx(rule, rel=0.002)
