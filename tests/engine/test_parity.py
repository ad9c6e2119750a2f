"""The same ten steps under every layout: losses, gradients and final weights equal those of one rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import parity_config, train, whole
from ranks import run_ranks

PADDED = {"variable_length": 0.5}
ODD = {"sequence_length": 125}
SELECTIVE, FULL, HALF = (
    {"recompute": "selective"},
    {"recompute": "full"},
    {"recompute": "full", "recompute_interval": 2},
)
PACKED = {"packing": True, "sequence_length": 512}
KMER = {"kind": "kmer", "k": 6}
DNABERT = {
    "norm_placement": "post",
    "positions": "learned",
    "token_types": 2,
    "activation": "gelu",
    "layernorm_epsilon": 1e-12,
}
VARIANT = {"normalization": "rmsnorm", "linear_bias": False, "num_query_groups": 2, "qk_norm": True}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LOCAL = {"local_context": "both"}
MUON = {"optimizer": "muon", "muon_lr": 3e-3}
BF16, FP16 = {"precision": "bf16"}, {"precision": "fp16"}

# name: (ranks, changes by config section, the one-rank run that it must equal)
CORE: dict[str, tuple[int, dict[str, dict[str, Any]], str]] = {
    "one rank": (1, {}, ""),
    "one rank, padded rows": (1, {"data": PADDED}, ""),
    "one rank, bf16": (1, {"engine": BF16}, ""),
    "one rank, fp16": (1, {"engine": FP16}, "one rank"),
    "tensor 2, sequence": (2, {"parallel": {"tensor": 2, "sequence": True}}, "one rank"),
    "pipeline 2, interleaved": (2, {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}, "one rank"),
    "context 2, padded rows": (2, {"parallel": {"context": 2}, "data": PADDED}, "one rank, padded rows"),
    "data 2": (2, {}, "one rank"),
    "tensor 2, bf16": (2, {"parallel": {"tensor": 2}, "engine": BF16}, "one rank, bf16"),
    "one rank, local context": (1, {"model": LOCAL}, ""),
    "tensor 2, sequence, local context": (
        2,
        {"parallel": {"tensor": 2, "sequence": True}, "model": LOCAL},
        "one rank, local context",
    ),
    "one rank, Muon": (1, {"train": MUON}, ""),
    "tensor 2, sequence, Muon": (2, {"parallel": {"tensor": 2, "sequence": True}, "train": MUON}, "one rank, Muon"),
    "data 2, Muon": (2, {"train": MUON}, "one rank, Muon"),
    "one rank, packed, local context": (1, {"data": PACKED, "model": LOCAL}, ""),
    "context 2, packed, local context": (
        2,
        {"parallel": {"context": 2}, "data": PACKED, "model": LOCAL},
        "one rank, packed, local context",
    ),
}
SLOW: dict[str, tuple[int, dict[str, dict[str, Any]], str]] = {
    "one rank": (1, {}, ""),
    "one rank, padded rows": (1, {"data": PADDED}, ""),
    "one rank, 125 tokens": (1, {"data": ODD}, ""),
    "one rank, bf16": (1, {"engine": BF16}, ""),
    "one rank, fp16": (1, {"engine": FP16}, ""),
    "micro-batch of 8": (1, {"train": {"micro_batch_size": 8}}, "one rank"),
    "recompute selective": (1, {"parallel": SELECTIVE}, "one rank"),
    "recompute full": (1, {"parallel": FULL}, "one rank"),
    "recompute full, every 2nd layer": (1, {"parallel": HALF}, "one rank"),
    "tensor 2": (2, {"parallel": {"tensor": 2}}, "one rank"),
    "tensor 2, 125 tokens": (2, {"parallel": {"tensor": 2}, "data": ODD}, "one rank, 125 tokens"),
    "tensor 2, sequence, padded rows": (
        2,
        {"parallel": {"tensor": 2, "sequence": True}, "data": PADDED},
        "one rank, padded rows",
    ),
    "tensor 2, sequence, recompute full": (2, {"parallel": {"tensor": 2, "sequence": True, **FULL}}, "one rank"),
    "pipeline 2": (2, {"parallel": {"pipeline": 2}}, "one rank"),
    "pipeline 2, 125 tokens, padded rows": (
        2,
        {"parallel": {"pipeline": 2}, "data": {**ODD, **PADDED}},
        "one rank, 125 tokens, padded rows",
    ),
    "one rank, 125 tokens, padded rows": (1, {"data": {**ODD, **PADDED}}, ""),
    "pipeline 2, interleaved, recompute full": (
        2,
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2, **FULL}},
        "one rank",
    ),
    "pipeline 3, uneven": (3, {"parallel": {"pipeline": 3, "pipeline_layers": [1, 2, 1]}}, "one rank"),
    "data 2, overlap": (2, {"parallel": OVERLAP}, "one rank"),
    "data 2, 125 tokens": (2, {"data": ODD}, "one rank, 125 tokens"),
    "context 2": (2, {"parallel": {"context": 2}}, "one rank"),
    "context 2, recompute full": (2, {"parallel": {"context": 2, **FULL}}, "one rank"),
    "context 4": (4, {"parallel": {"context": 4}}, "one rank"),
    "context 2, data 2": (4, {"parallel": {"context": 2}}, "one rank"),
    "context 2, pipeline 2": (4, {"parallel": {"context": 2, "pipeline": 2}}, "one rank"),
    "context 2, tensor 2, sequence": (
        4,
        {"parallel": {"context": 2, "tensor": 2, "sequence": True}, "data": PADDED},
        "one rank, padded rows",
    ),
    "tensor 4": (4, {"parallel": {"tensor": 4}}, "one rank"),
    "tensor 4, sequence": (4, {"parallel": {"tensor": 4, "sequence": True}}, "one rank"),
    "tensor 2, pipeline 2, sequence": (
        4,
        {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}},
        "one rank",
    ),
    "tensor 2, pipeline 2, interleaved, sequence": (
        4,
        {"parallel": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "sequence": True}},
        "one rank",
    ),
    "tensor 2, data 2, overlap": (4, {"parallel": {"tensor": 2, **OVERLAP}}, "one rank"),
    "pipeline 2, interleaved, data 2, overlap": (
        4,
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2, **OVERLAP}, "train": {"micro_batch_size": 1}},
        "one rank",
    ),
    "one rank, 6-mers": (1, {"tokenizer": KMER}, ""),
    "tensor 2, 6-mers": (2, {"tokenizer": KMER, "parallel": {"tensor": 2}}, "one rank, 6-mers"),
    "tensor 4, 6-mers": (4, {"tokenizer": KMER, "parallel": {"tensor": 4}}, "one rank, 6-mers"),
    "one rank, DNABERT": (1, {"tokenizer": KMER, "model": DNABERT}, ""),
    "tensor 2, pipeline 2, sequence, DNABERT": (
        4,
        {"tokenizer": KMER, "model": DNABERT, "parallel": {"tensor": 2, "pipeline": 2, "sequence": True}},
        "one rank, DNABERT",
    ),
    "context 2, DNABERT": (2, {"tokenizer": KMER, "model": DNABERT, "parallel": {"context": 2}}, "one rank, DNABERT"),
    "one rank, grouped queries": (1, {"model": VARIANT}, ""),
    "tensor 2, sequence, grouped queries": (
        2,
        {"model": VARIANT, "parallel": {"tensor": 2, "sequence": True}},
        "one rank, grouped queries",
    ),
    "context 2, grouped queries": (2, {"model": VARIANT, "parallel": {"context": 2}}, "one rank, grouped queries"),
    "one rank, Muon": (1, {"train": MUON}, ""),
    "pipeline 2, interleaved, Muon": (
        2,
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "train": MUON},
        "one rank, Muon",
    ),
    "tensor 2, data 2, overlap, Muon": (4, {"parallel": {"tensor": 2, **OVERLAP}, "train": MUON}, "one rank, Muon"),
    "one rank, grouped queries, Muon": (1, {"model": VARIANT, "train": MUON}, ""),
    "tensor 2, context 2, grouped queries, Muon": (
        4,
        {"model": VARIANT, "parallel": {"context": 2, "tensor": 2}, "train": MUON},
        "one rank, grouped queries, Muon",
    ),
    "one rank, DNABERT, Muon": (1, {"tokenizer": KMER, "model": DNABERT, "train": MUON}, ""),
    "tensor 2, DNABERT, Muon": (
        2,
        {"tokenizer": KMER, "model": DNABERT, "parallel": {"tensor": 2}, "train": MUON},
        "one rank, DNABERT, Muon",
    ),
    "one rank, packed rows": (1, {"data": PACKED}, ""),
    "context 2, packed rows": (2, {"data": PACKED, "parallel": {"context": 2}}, "one rank, packed rows"),
    "tensor 2, sequence, packed rows": (
        2,
        {"data": PACKED, "parallel": {"tensor": 2, "sequence": True}},
        "one rank, packed rows",
    ),
    "pipeline 2, interleaved, packed rows": (
        2,
        {"data": PACKED, "parallel": {"pipeline": 2, "virtual_pipeline": 2}},
        "one rank, packed rows",
    ),
    "data 2, bf16": (2, {"engine": BF16}, "one rank, bf16"),
    "context 2, bf16": (2, {"parallel": {"context": 2}, "engine": BF16}, "one rank, bf16"),
    "tensor 2, pipeline 2, sequence, bf16": (
        4,
        {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}, "engine": BF16},
        "one rank, bf16",
    ),
    "data 2, overlap, bf16": (2, {"parallel": OVERLAP, "engine": BF16}, "one rank, bf16"),
    "tensor 2, fp16": (2, {"parallel": {"tensor": 2}, "engine": FP16}, "one rank, fp16"),
    "pipeline 2, interleaved, fp16": (
        2,
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "engine": FP16},
        "one rank, fp16",
    ),
    "pipeline 2, recompute full, every 2nd layer": (2, {"parallel": {"pipeline": 2, **HALF}}, "one rank"),
    "one rank, local context": (1, {"model": LOCAL}, ""),
    "tensor 2, local context": (2, {"parallel": {"tensor": 2}, "model": LOCAL}, "one rank, local context"),
    "pipeline 2, interleaved, local context": (
        2,
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2, **FULL}, "model": LOCAL},
        "one rank, local context",
    ),
    "one rank, padded rows, local context": (1, {"data": PADDED, "model": LOCAL}, ""),
    "context 2, tensor 2, sequence, padded rows, local context": (
        4,
        {"parallel": {"context": 2, "tensor": 2, "sequence": True}, "data": PADDED, "model": LOCAL},
        "one rank, padded rows, local context",
    ),
    "one rank, local context, bf16": (1, {"model": LOCAL, "engine": BF16}, ""),
    "data 2, local context, bf16": (2, {"model": LOCAL, "engine": BF16}, "one rank, local context, bf16"),
    "context 2, pipeline 2, interleaved": (
        4,
        {"parallel": {"context": 2, "pipeline": 2, "virtual_pipeline": 2}},
        "one rank",
    ),
}


def runs(cases: dict[str, tuple[int, dict[str, dict[str, Any]], str]], dataset: Path) -> dict[str, list[dict]]:
    """What every rank found, by case."""
    return {
        name: run_ranks(train, ranks, parity_config(dataset, changes)) for name, (ranks, changes, _) in cases.items()
    }


@pytest.fixture(scope="module")
def core(toy_dataset: Path) -> dict[str, list[dict]]:
    return runs(CORE, toy_dataset)


@pytest.fixture(scope="module")
def rest(toy_dataset: Path) -> dict[str, list[dict]]:
    return runs(SLOW, toy_dataset)


def assert_equal(found: list[dict], expected: list[dict], *, loss_tolerance: float) -> None:
    for key in ("loss", "grad_norm"):
        for rank in found:
            assert rank[key] == pytest.approx(expected[0][key], rel=loss_tolerance), key


def assert_same_numbers(found: list[dict], expected: list[dict]) -> None:
    """fp32: every loss, every parameter's gradient at step 1, every parameter after step 10."""
    assert_equal(found, expected, loss_tolerance=1e-4)
    gradients, theirs = (whole([rank["gradients"] for rank in ranks]) for ranks in (found, expected))
    assert set(gradients) == set(theirs)
    total = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * total, name
    weights, theirs = (whole([rank["weights"] for rank in ranks]) for ranks in (found, expected))
    for name, weight in theirs.items():
        difference = (weights[name] - weight).square().mean().sqrt()
        assert difference <= 1e-3 * weight.square().mean().sqrt() + 1e-5, name


def low_precision(name: str) -> bool:
    return name.endswith(("bf16", "fp16"))


def layouts_of(cases: dict[str, tuple[int, dict[str, dict[str, Any]], str]]) -> list[str]:
    return [name for name, (_, _, reference) in cases.items() if reference]


def check(name: str, cases: dict, found: dict[str, list[dict]]) -> None:
    reference = found[cases[name][2]]
    assert min(reference[0]["grad_norm"]) > 0  # 0 is a step that was not applied
    if low_precision(name):
        assert_equal(found[name], reference, loss_tolerance=2e-2)
    else:
        assert_same_numbers(found[name], reference)


@pytest.mark.parametrize("name", layouts_of(CORE))
def test_equals_one_rank(name: str, core: dict[str, list[dict]]) -> None:
    check(name, CORE, core)


@pytest.mark.slow
@pytest.mark.parametrize("name", layouts_of(SLOW))
def test_every_other_layout_equals_one_rank(name: str, rest: dict[str, list[dict]]) -> None:
    check(name, SLOW, rest)
