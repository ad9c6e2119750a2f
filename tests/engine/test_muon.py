"""Muon: torch.optim.Muon on whole matrices under every layout; checkpoints change layout; one rate for all widths."""

import shutil
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest
import torch
from layouts import parity_config
from ranks import run_ranks
from toy import metrics, run_training, toy_config

from megadna.config import Config

MUON_LR, LR, DECAY = 0.02, 1e-3, 0.1


def updated_by_both(config: Config) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Master weights after three steps with random gradients: ours, and those of torch's optimizers, by name."""
    from megadna.engine import muon
    from megadna.engine.distributed import parallel_world
    from megadna.train.step import build_state

    in_fp32 = muon.orthogonal
    muon.orthogonal = lambda matrix, _: in_fp32(matrix, torch.bfloat16)  # what torch computes in
    generator = torch.Generator().manual_seed(7)
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        named = dict(state.model_parts[0].named_parameters())
        theirs = {name: separate(name, weight.detach().clone()) for name, weight in named.items()}
        matrices = [one for name, parts in theirs.items() if is_matrix(name) for one in parts]
        others = [one for name, parts in theirs.items() if not is_matrix(name) for one in parts]
        decayed = [one for one in others if one.ndim > 1]
        flat = [one for one in others if one.ndim == 1]
        optimizers = [
            torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=DECAY, momentum=0.95),
            torch.optim.AdamW(
                [{"params": decayed, "weight_decay": DECAY}, {"params": flat, "weight_decay": 0.0}],
                lr=LR, betas=config.train.betas, eps=config.train.eps,
            ),
        ]  # fmt: skip
        for group in state.optimizer.param_groups:
            group["lr"] = LR
        for _ in range(3):
            for name, weight in named.items():
                weight.main_grad.copy_(torch.randn(weight.shape, generator=generator))
                for own, gradient in zip(theirs[name], separate(name, weight.main_grad.clone()), strict=True):
                    own.grad = gradient
            assert not state.optimizer.prepare_grads()
            state.optimizer.step_with_ready_grads()
            for optimizer in optimizers:
                optimizer.step()
        return {name: (weight.detach().clone(), joined(name, theirs[name])) for name, weight in named.items()}


def is_matrix(name: str) -> bool:
    return ".layers." in name and name.endswith("weight") and "layernorm" not in name and "layer_norm" not in name


GATED = 2 * 128
HEADS, HEAD = 4, 16
QKV_ROWS = torch.arange(3 * HEADS * HEAD).view(HEADS, 3, HEAD).transpose(0, 1).reshape(3, -1)
"""Rows of query, key and value: megatron keeps those of a head together."""


def separate(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    if name.endswith("linear_qkv.weight"):
        return [tensor[rows] for rows in QKV_ROWS]
    if name.endswith("linear_fc1.weight"):
        return [tensor[: GATED // 2].clone(), tensor[GATED // 2 :].clone()]
    return [tensor]


def joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    whole = torch.cat(parts)
    if name.endswith("linear_qkv.weight"):
        rows = torch.empty_like(whole)
        rows[QKV_ROWS.flatten()] = whole
        return rows
    return whole


def test_equals_torch_on_every_weight(toy_dataset: Path) -> None:
    """Weights whose singular values differ by less than the rounding of bf16 in five products."""
    config = parity_config(toy_dataset, {"train": {"optimizer": "muon", "muon_lr": MUON_LR, "weight_decay": DECAY}})
    found = run_ranks(updated_by_both, 1, config)[0]
    assert sum(is_matrix(name) for name in found) == 16
    for name, (ours, theirs) in found.items():
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_goes_on_under_another_layout(toy_dataset: Path, tmp_path: Path) -> None:
    """Two data-parallel ranks save; two tensor-parallel ones go on: the momentum is whole again."""

    def config(**parallel: int) -> Config:
        toy = toy_config(toy_dataset, **parallel)
        return replace(toy, train=replace(toy.train, optimizer="muon", muon_lr=3e-3))

    run_ranks(run_training, 2, config(), tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "tensor")
    shutil.rmtree(tmp_path / "tensor" / "checkpoints" / "step-00000006")
    run_ranks(run_training, 2, config(tensor=2), tmp_path / "tensor", True)
    for line, other in zip(metrics(tmp_path / "tensor"), metrics(tmp_path / "data"), strict=True):
        for key in ("step", "loss", "grad_norm", "valid_bits_per_base"):
            assert line.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=1e-4), (key, line["step"])


def moved(config: Config) -> float:
    """How far six steps on one batch move the last layer's output, as a share of what it was (root mean squares)."""
    from megadna.data.loader import train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    tokenizer, length = build_tokenizer(config.tokenizer), int(config.data.sequence_length)
    outputs = []
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, tokenizer.vocab_size, world)
        named = dict(state.model_parts[0].named_modules())
        named["module.encoder.layers.1"].register_forward_hook(lambda *found: outputs.append(found[2][0].detach()))
        batch = next(train_batches(config, tokenizer, sequence_length=length, rank=0, size=1, consumed_samples=0))
        for _ in range(7):
            train_step(state, repeat(batch), config, world, sequence_length=length)
    first, last = outputs[0], outputs[-1]
    return float((last - first).norm() / first.norm())


@pytest.mark.parametrize(("optimizer", "least", "most"), [("muon", 1.0, 1.5), ("adamw", 10.0, 40.0)])
def test_one_rate_moves_every_width_alike(toy_dataset: Path, optimizer: str, least: float, most: float) -> None:
    """The coordinate check of muP (arXiv:2203.03466); one rate of AdamW moves a wider model further."""
    shares = []
    for width in (64, 128, 256):
        model = {"num_layers": 2, "hidden_size": width, "ffn_hidden_size": width * 11 // 4}
        rates = {"optimizer": optimizer, "muon_lr": 0.01, "lr": 2e-3, "min_lr": 2e-3, "warmup_steps": 0}
        config = parity_config(toy_dataset, {"train": rates, "model": model})
        shares += run_ranks(moved, 1, config)
    assert least <= max(shares) / min(shares) <= most, shares
