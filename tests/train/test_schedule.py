"""Learning rate over a run, against formulas written here from their definitions."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megadna.arguments import load_config
from megadna.config import TrainConfig
from megadna.engine.optimizer import build_scheduler, follow_schedule
from megadna.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
LR, LOW, BATCH = 1e-3, 1e-5, 8


def run_curve(train: TrainConfig, steps: int) -> Iterator[float]:
    """Learning rate of each step, as the training loop goes through them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = build_scheduler(optimizer, train)  # type: ignore[arg-type]
    for step in range(steps):
        yield optimizer.param_groups[0]["lr"]
        follow_schedule(scheduler, train.samples_after(step + 1))


def settings(**keys: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 100, "global_batch_size": BATCH, "lr": LR, "min_lr": LOW, "warmup_steps": 10, **keys}
    )


def share(step: int, start: int, end: int) -> float:
    return (step - start) / (end - start)


def cosine(rest: float) -> float:
    return LOW + (LR - LOW) * (1 + math.cos(math.pi * rest)) / 2


CURVES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "cosine": ({"schedule": "cosine"}, lambda step: cosine(share(step, 10, 100))),
    "linear": ({"schedule": "linear"}, lambda step: LR + (LOW - LR) * share(step, 10, 100)),
    "trapezoid": (
        {"schedule": "trapezoid"},
        lambda step: LR if step <= 80 else LR + (LOW - LR) * share(step, 80, 100),
    ),
    "trapezoid of which the warm-up leaves little": (
        {"schedule": "trapezoid", "decay_steps": 12},
        lambda step: LR + (LOW - LR) * min(1, share(step, 10, 12)),
    ),
    "constant": ({"schedule": "constant"}, lambda step: LR),
    "decay to a later step": (
        {"schedule": "linear", "decay_steps": 160},
        lambda step: LR + (LOW - LR) * share(step, 10, 160),
    ),
    "decay to an earlier step": (
        {"schedule": "cosine", "decay_steps": 60},
        lambda step: cosine(share(step, 10, 60)) if step < 60 else LOW,
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_learning_rate_is_the_formula(name: str) -> None:
    keys, formula = CURVES[name]
    rates = list(run_curve(settings(**keys), 100))
    assert rates[:11] == pytest.approx([LR * step / 10 for step in range(11)])
    assert rates[11:] == pytest.approx([formula(step) for step in range(11, 100)])


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 101])
@pytest.mark.parametrize("decay_steps", [None, 60])
def test_warm_up_by_a_fraction_follows_the_steps(steps: int, decay_steps: int | None) -> None:
    end = decay_steps or steps
    train = settings(steps=steps, decay_steps=decay_steps, warmup_steps=0, warmup_fraction=0.1)
    warm_up = min(end - 1, math.ceil(0.1 * end))
    assert train.samples_of_warmup == warm_up * BATCH
    by_steps = settings(steps=steps, decay_steps=decay_steps, warmup_steps=warm_up)
    assert list(run_curve(train, steps)) == list(run_curve(by_steps, steps))


def test_dnabert_stops_before_its_decay_is_over() -> None:
    """4e-4, warm-up 10,000, linear to 0 at 200,000, stopped at 120,000: 4e-4 (200 - 120) / (200 - 10) remain."""
    train = load_config(CONFIGS / "dnabert-6mer.yaml").train
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = build_scheduler(optimizer, train)  # type: ignore[arg-type]
    follow_schedule(scheduler, train.samples_after(train.steps))
    assert (train.steps, train.samples_after(1)) == (120_000, 2000)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(4e-4 * 80 / 190)


def test_bionemo_holds_the_last_50000_steps_at_the_lowest_rate() -> None:
    train = load_config(CONFIGS / "bionemo-dnabert-86m.yaml").train
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = build_scheduler(optimizer, train)  # type: ignore[arg-type]
    for step, expected in ((500, 2e-4), (350_000, 2e-5), (399_999, 2e-5)):
        follow_schedule(scheduler, train.samples_after(step))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"warmup_fraction": 0.1},
            "warmup_steps and train.warmup_fraction exclude each other; drop one, or set it to 0",
        ),
        ({"warmup_steps": 0, "warmup_fraction": 1.0}, r"warmup_fraction must lie in \[0, 1\), got 1.0"),
        ({"warmup_steps": 100}, r"warmup_steps must lie in 0..steps - 1 .*100 of 100; add --train.warmup_steps 10"),
        ({"decay_steps": 0}, "decay_steps must be positive"),
    ],
)
def test_an_impossible_schedule_names_its_keys(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(**keys)
