"""The model family: every variant trains to the same numbers under tensor, sequence and pipeline parallelism."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from toy import toy_config

from megadna.config import Config, ModelConfig, ParallelConfig, TokenizerConfig

SHAPE = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128}
BERT: dict[str, Any] = {
    **SHAPE, "norm_placement": "post", "positions": "learned", "max_positions": 128, "token_types": 2,
    "activation": "gelu", "layernorm_epsilon": 1e-12,
}  # fmt: skip
VARIANTS: dict[str, tuple[ModelConfig, TokenizerConfig]] = {
    "original BERT, 3-mers": (ModelConfig(**BERT), TokenizerConfig(kind="kmer", k=3)),
    "pre-LN BERT, 6-mers": (
        ModelConfig(**{**BERT, "norm_placement": "pre", "token_types": 0}),
        TokenizerConfig(kind="kmer", k=6),
    ),
    "grouped queries, RMSNorm, qk-norm, no bias": (
        ModelConfig(**SHAPE, num_query_groups=2, normalization="rmsnorm", qk_norm=True, linear_bias=False),
        TokenizerConfig(),
    ),
}
LAYOUTS = {
    "tensor 2, sequence": ParallelConfig(tensor=2, sequence=True),
    "tensor 2": ParallelConfig(tensor=2),
    "pipeline 2": ParallelConfig(pipeline=2),
    "context 2": ParallelConfig(context=2),
}


def variant_config(dataset: Path, name: str, parallel: ParallelConfig) -> Config:
    """The variant on rows of various lengths; weights large enough that a wrong gradient shows."""
    config = toy_config(dataset)
    model, tokenizer = VARIANTS[name]
    return replace(
        config,
        model=replace(model, init_std=0.1),
        tokenizer=tokenizer,
        parallel=parallel,
        data=replace(config.data, variable_length=0.5),
    )


def train_variants(
    dataset: Path, parallel: ParallelConfig, dropout: float = 0.0
) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Loss and gradient norm of four steps of every variant, each in a fresh parallel world; replicated weights after.

    Replicated are the weights with one dimension that tensor parallelism does not split.
    """
    from megadna.data.loader import train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    store, found = os.environ["MEGADNA_STORE"], {}
    for number, name in enumerate(VARIANTS):
        os.environ["MEGADNA_STORE"] = f"{store}-{number}"
        config = variant_config(dataset, name, parallel)
        config = replace(config, model=replace(config.model, dropout=dropout))
        tokenizer = build_tokenizer(config.tokenizer)
        with parallel_world(config.engine, parallel) as world:
            state = build_state(config, tokenizer.vocab_size, world)
            batches = train_batches(
                config,
                tokenizer,
                sequence_length=128,
                rank=world.data_rank,
                size=world.data_size,
                consumed_samples=0,
            )
            steps = [train_step(state, batches, config, world, sequence_length=128) for _ in range(4)]
            weights = {
                name: weight.detach().clone()
                for chunk in state.model_parts
                for name, weight in chunk.named_parameters()
                if weight.ndim == 1 and not getattr(weight, "tensor_model_parallel", False)
            }
            found[name] = ([number for step in steps for number in (step.loss, step.grad_norm)], weights)
    return found


@pytest.fixture(scope="module")
def one_rank(toy_dataset: Path) -> dict[str, list[float]]:
    return {
        name: numbers for name, (numbers, _) in run_ranks(train_variants, 1, toy_dataset, ParallelConfig())[0].items()
    }


CORE = ("tensor 2, sequence", "pipeline 2")


@pytest.mark.parametrize(
    "layout", [layout if layout in CORE else pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS]
)
def test_every_variant_equals_one_rank(layout: str, one_rank: dict[str, list[float]], toy_dataset: Path) -> None:
    found = run_ranks(train_variants, 2, toy_dataset, LAYOUTS[layout])
    for rank in found:
        for name, expected in one_rank.items():
            assert rank[name][0][1::2] == pytest.approx(expected[1::2], rel=1e-4), name
            assert rank[name][0][::2] == pytest.approx(expected[::2], rel=1e-4), name


@pytest.mark.parametrize("layout", ["tensor 2, sequence", pytest.param("tensor 2", marks=pytest.mark.slow)])
def test_replicas_stay_equal_under_dropout(layout: str, one_rank: dict[str, list[float]], toy_dataset: Path) -> None:
    """Tensor-parallel ranks must drop the same elements of what they replicate: their copies stay bit-identical."""
    first, second = run_ranks(train_variants, 2, toy_dataset, LAYOUTS[layout], 0.1)
    for name, expected in one_rank.items():
        losses, weights = first[name]
        assert losses == second[name][0] and losses[::2] == pytest.approx(expected[::2], rel=0.1), name
        assert losses != pytest.approx(expected, rel=1e-4), name
        assert weights and weights.keys() == second[name][1].keys()
        for key, weight in weights.items():
            assert torch.equal(weight, second[name][1][key]), (name, key)
