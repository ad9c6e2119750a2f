"""Attention: backends agree with the written-out formula, packed rows equal the sequences alone, memory is linear.

Backends that need a GPU are in tests/gpu.
"""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from toy import toy_config

from megadna.config import ModelConfig, TokenizerConfig
from megadna.errors import UserError
from megadna.model.attention import _varlen, choose_backend, eager, sdpa
from megadna.train.step import packed_segments, padded_segments

CPU = torch.device("cpu")
SEGMENTS = {
    "full": None,
    "padded": padded_segments(torch.tensor([40, 25]), 40, CPU),
    "packed": packed_segments(torch.tensor([0, 7, 8, 40, 61, 80], dtype=torch.int32), CPU),
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("rows", SEGMENTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_sdpa_equals_eager_forward_and_backward(dtype: torch.dtype, tolerance: float, rows: str, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(40, 2, heads, 16, generator=generator).to(dtype).requires_grad_() for heads in (4, groups, groups)
    ]
    weight = torch.randn(40, 2, 4, 16, generator=generator)
    found = []
    for attend in (eager, sdpa):
        output = attend(*inputs, SEGMENTS[rows], 0.0)
        found.append([output, *torch.autograd.grad((output.float() * weight).sum(), inputs)])
    for expected, result in zip(*found, strict=True):
        assert relative(result, expected) < tolerance


@pytest.mark.parametrize("rows", [None, padded_segments(torch.tensor([700, 700]), 700, CPU)])
def test_dropout_drops_weights_of_every_head_by_itself(rows: Any) -> None:
    """With uniform weights and one-hot values the context is the weights, 1 / 700 or 0 each."""
    torch.manual_seed(3)
    zeros, eye = torch.zeros(700, 2, 4, 700), torch.eye(700)[:, None, None].expand(700, 2, 4, 700)
    kept = sdpa(zeros, zeros, eye, rows, 0.1).permute(1, 2, 0, 3) * 700
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.9], abs=1e-4)
    shares = (kept == 0).float().mean((2, 3)).flatten()  # of 490,000 weights each, one standard deviation is 0.0004
    assert shares.sub(0.1).abs().max() < 0.002
    assert not torch.equal(kept[0, 0], kept[1, 0])


def test_segments_of_padded_rows_end_at_the_padding() -> None:
    segments = padded_segments(torch.tensor([40, 25]), 40, CPU)
    assert segments.cu_seqlens_q.tolist() == [0, 40, 65, 80] and segments.max_seqlen_q == 40


@pytest.mark.parametrize("backend", ["flash_attn", "transformer_engine"])
def test_a_backend_that_cannot_run_is_refused_in_one_line(backend: str) -> None:
    with pytest.raises(UserError, match=rf"model.attention {backend} cannot run: .*model.attention auto") as error:
        choose_backend(backend, CPU, torch.bfloat16, 64)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="float32"):
        choose_backend(backend, torch.device("cuda"), torch.float32, 64)
    with pytest.raises(UserError, match="not 264"):
        choose_backend(backend, torch.device("cuda"), torch.bfloat16, 264)


def kernel_of_torch_2_11(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> str:
    return f"{query.shape[1]} heads, {key.shape[1]} groups"


def kernel_of_torch_2_13(*inputs: Any, enable_gqa: bool = False) -> str:
    assert enable_gqa == (inputs[0].shape[1] != inputs[1].shape[1])  # else it refuses
    return kernel_of_torch_2_11(*inputs)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("kernel", [kernel_of_torch_2_11, kernel_of_torch_2_13])
def test_the_variable_length_kernels_of_two_versions_of_torch_take_grouped_queries(kernel: Any, groups: int) -> None:
    """They run on a GPU only; their signatures do not."""
    query, key = torch.zeros(6, 4, 8), torch.zeros(6, groups, 8)
    bounds = torch.tensor([0, 6], dtype=torch.int32)
    assert _varlen(kernel, query, key, key, (bounds, bounds, 6, 6)) == f"4 heads, {groups} groups"


def test_auto_takes_torch_on_the_cpu() -> None:
    assert choose_backend("auto", CPU, torch.float32, 136) == "sdpa"
    assert choose_backend("eager", CPU, torch.float32, 136) == "eager"


SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128}
PACKED_MODELS = {
    "rotary": (ModelConfig(**SHAPE, init_std=0.1), TokenizerConfig()),
    "learned": (
        ModelConfig(
            **SHAPE, init_std=0.1, activation="gelu", norm_placement="post", positions="learned", max_positions=1200
        ),
        TokenizerConfig(kind="kmer", k=3),
    ),
}


def packed_and_alone(dataset: Path) -> dict[str, list[tuple[float, float]]]:
    """Loss and gradient norm of one step on packed rows of the real loader, and on the same sequences one by one."""
    from megadna.data.batch import Batch
    from megadna.data.loader import train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    def alone(batch: Batch, pad_id: int) -> list[Batch]:
        tokens, labels, weights = (x.flatten() for x in (batch.tokens_BS, batch.labels_BS, batch.weights_BS))
        bounds = batch.cumulative_lengths.tolist()
        return [
            Batch(tokens[None, a:b], labels[None, a:b], weights[None, a:b], None, batch.samples_B)
            for a, b in pairwise(bounds)
            if tokens[a] != pad_id
        ]

    found: dict[str, list[tuple[float, float]]] = {}
    base = toy_config(dataset)
    with parallel_world(base.engine, base.parallel) as world:
        for name, (model, kind) in PACKED_MODELS.items():
            for precision in ("fp32", "bf16"):
                config = replace(
                    base,
                    model=model,
                    tokenizer=kind,
                    engine=replace(base.engine, precision=precision),
                    data=replace(base.data, sequence_length=1100, packing=True),
                    train=replace(base.train, global_batch_size=2),
                )
                tokenizer = build_tokenizer(kind)
                stream = train_batches(config, tokenizer, sequence_length=1100, rank=0, size=1, consumed_samples=0)
                batch = next(stream)
                parts = alone(batch, tokenizer.pad_id)
                assert len(parts) == 4
                split = replace(config, train=replace(config.train, micro_batch_size=1, global_batch_size=4))
                found[f"{name} {precision}"] = []
                for batches, used in (([batch], config), (parts, split)):
                    state = build_state(used, tokenizer.vocab_size, world)
                    step = train_step(state, iter(batches), used, world, sequence_length=1100)
                    found[f"{name} {precision}"].append((step.loss, step.grad_norm))
    return found


@pytest.mark.slow
def test_packed_rows_train_as_the_same_sequences_alone(toy_dataset: Path) -> None:
    found = run_ranks(packed_and_alone, 1, toy_dataset)[0]
    assert len(found) == 4
    for name, (packed, alone) in found.items():
        assert packed == pytest.approx(alone, rel=1e-5 if "fp32" in name else 1e-2), name


def packed_outputs() -> dict[str, list[torch.Tensor]]:
    """Logits and every gradient of packed rows, and of the same sequences alone."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder

    tokens_BS = torch.randint(5, 9, (2, 48), generator=torch.Generator().manual_seed(3))
    bounds = torch.tensor([0, 17, 47, 48, 57, 96], dtype=torch.int32)  # one token of padding, then 9 and 39
    positions = torch.cat([torch.arange(n) for n in bounds.diff().tolist()]).view(2, 48)
    base = toy_config(Path())
    found = {}
    with parallel_world(base.engine, base.parallel) as world:
        for name, (model, kind) in PACKED_MODELS.items():
            for precision in ("fp32", "bf16"):
                config = replace(base, model=model, tokenizer=kind, engine=replace(base.engine, precision=precision))
                encoder = build_encoder(config, 16, world.device)
                weight = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(4))
                packed = encoder(tokens_BS, packed_segments(bounds, CPU), positions)[..., :16].transpose(0, 1)
                alone = [
                    encoder(tokens_BS.flatten()[None, a:b])[..., :16].flatten(0, 1)
                    for a, b in pairwise(bounds.tolist())
                ]
                for kind_, logits in (("packed", packed), ("alone", torch.cat(alone).view(2, 48, 16))):
                    parameters = dict(encoder.named_parameters())
                    gradients = torch.autograd.grad(
                        (logits * weight).sum(), list(parameters.values()), allow_unused=True, retain_graph=True
                    )
                    flat = [g.float().flatten() for g in gradients if g is not None]
                    found[f"{name} {precision} {kind_}"] = [logits.detach(), torch.cat(flat)]
    return found


def test_packed_rows_have_the_logits_and_gradients_of_the_sequences_alone() -> None:
    found = run_ranks(packed_outputs, 1)[0]
    for name in PACKED_MODELS:
        for precision, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
            packed, alone = (found[f"{name} {precision} {kind}"] for kind in ("packed", "alone"))
            for result, expected in zip(packed, alone, strict=True):
                assert relative(result, expected) < tolerance, (name, precision)


MEMORY = r"""
import os, re, sys, torch
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
from megadna.config import Config, EngineConfig, ModelConfig
from megadna.engine.distributed import parallel_world
from megadna.model.encoder import build_encoder
shape = ModelConfig(num_layers=1, hidden_size=256, num_attention_heads=4, ffn_hidden_size=512)
config = Config(model=shape, engine=EngineConfig(device="cpu", precision="fp32"))
with parallel_world(config.engine, config.parallel) as world:
    model = build_encoder(config, 16, world.device)
    for length in map(int, sys.argv[1:]):
        model(torch.randint(5, 9, (1, length))).sum().backward()
        # VmHWM, not ru_maxrss: the latter starts at the peak of the process that spawned this one.
        print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_sequence_length() -> None:
    """Peak resident memory of forward and backward; the scores of one head of 16,000 tokens would be 977 MiB."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, "64", "4000", "16000"], capture_output=True, text=True, check=True, timeout=300
    )
    start, short, long = (int(line) / 1024 for line in result.stdout.split()[-3:])
    assert long - start < 8 * (short - start)
    assert long - start < 977
