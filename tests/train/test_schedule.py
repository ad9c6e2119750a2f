"""Learning rate, weight decay and batch size over a run, against formulas written here from their definitions."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator
from ranks import run_ranks
from toy import losses, metrics, run_training, toy_config

from megadna.arguments import load_config
from megadna.config import TrainConfig
from megadna.data.samples import resolve_schedule
from megadna.engine.optimizer import build_scheduler, follow_schedule
from megadna.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
LR, LOW, BATCH = 1e-3, 1e-5, 8


def run_curve(train: TrainConfig, steps: int) -> Iterator[tuple[float, float, int]]:
    """Learning rate, weight decay and batch of each step, as the training loop goes through them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = build_scheduler(optimizer, train)  # type: ignore[arg-type]
    consumed = 0
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"], train.batch_size(consumed)
        consumed += train.batch_size(consumed)
        follow_schedule(scheduler, consumed)


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
    "constant": ({"schedule": "constant"}, lambda step: LR),
    "inverse_sqrt": ({"schedule": "inverse_sqrt"}, lambda step: max(LOW, LR * math.sqrt(10 / step))),
    "wsd, linear": (
        {"schedule": "wsd", "wsd_decay_steps": 20},
        lambda step: LR if step <= 80 else LR + (LOW - LR) * share(step, 80, 100),
    ),
    "wsd, 1 - sqrt": (
        {"schedule": "wsd", "wsd_decay_steps": 20, "wsd_decay": "minus_sqrt"},
        lambda step: LR if step <= 80 else LOW + (LR - LOW) * (1 - math.sqrt(share(step, 80, 100))),
    ),
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
    rates = [lr for lr, _, _ in run_curve(settings(**keys), 100)]
    assert rates[:11] == pytest.approx([LR * step / 10 for step in range(11)])
    assert rates[11:] == pytest.approx([formula(step) for step in range(11, 100)])


def test_warm_up_by_samples_is_that_by_steps() -> None:
    by_samples = settings(warmup_steps=0, warmup_samples=10 * BATCH)
    assert list(run_curve(by_samples, 100)) == list(run_curve(settings(), 100))


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 101])
@pytest.mark.parametrize("decay_steps", [None, 60])
def test_warm_up_by_a_fraction_follows_the_steps(steps: int, decay_steps: int | None) -> None:
    end = decay_steps or steps
    train = settings(steps=steps, decay_steps=decay_steps, warmup_steps=0, warmup_fraction=0.1)
    warm_up = min(end - 1, math.ceil(0.1 * end))
    assert train.samples_of_warmup == warm_up * BATCH
    by_steps = settings(steps=steps, decay_steps=decay_steps, warmup_steps=warm_up)
    assert list(run_curve(train, steps)) == list(run_curve(by_steps, steps))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_weight_decay_grows_to_its_end(shape: str) -> None:
    train = settings(weight_decay=0.02, end_weight_decay=0.1, weight_decay_schedule=shape)
    rises = {"linear": lambda x: x, "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2}
    expected = [0.02 + 0.08 * rises[shape](step / 100) for step in range(101)]
    assert [decay for _, decay, _ in run_curve(train, 101)] == pytest.approx(expected)


def test_the_batch_grows_as_megatrons_does() -> None:
    train = settings(batch_rampup=[2, 2, 48], steps=50)
    calculator = RampupBatchsizeNumMicroBatchesCalculator(BATCH, 2, 1, False, 0, 2, 2, 48)
    consumed, sizes = 0, []
    for _ in range(50):
        calculator.update(consumed, consistency_check=True)
        sizes.append(calculator.current_global_batch_size)
        consumed += sizes[-1]
    assert [batch for _, _, batch in run_curve(train, 50)] == sizes
    assert sizes[:8] == [2] * 8 and sizes[8:12] == [4] * 4 and set(sizes) == {2, 4, 6, 8}
    assert [train.samples_after(steps) for steps in range(51)] == [sum(sizes[:steps]) for steps in range(51)]


def test_schedules_count_samples_under_a_growing_batch() -> None:
    """Rate and masking change at the sample where the step they are said for begins."""
    train = settings(batch_rampup=[2, 2, 48], schedule="linear", min_lr=0.0)
    end, warm_up = train.samples_after(100), train.samples_after(10)
    consumed = 0
    for lr, _, batch in run_curve(train, 100):
        expected = consumed / warm_up if consumed <= warm_up else (end - consumed) / (end - warm_up)
        assert lr == pytest.approx(LR * expected)
        consumed += batch
    config = replace(load_config(CONFIGS / "dnabert-6mer.yaml"), train=train)
    schedule = [replace(change, step=9) for change in config.data.masking.schedule]
    masking = replace(config.data.masking, schedule=schedule)
    config = resolve_schedule(replace(config, data=replace(config.data, masking=masking)))
    assert [change.sample for change in config.data.masking.schedule] == [8 * 2 + 4]


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
        ({"warmup_samples": 5}, "warmup_steps and train.warmup_samples exclude"),
        (
            {"warmup_fraction": 0.1},
            "warmup_steps and train.warmup_fraction exclude each other; drop one, or set it to 0",
        ),
        ({"warmup_steps": 0, "warmup_fraction": 1.0}, r"warmup_fraction must lie in \[0, 1\), got 1.0"),
        ({"warmup_steps": 100}, r"warmup_steps must lie in 0..steps - 1 .*100 of 100; add --train.warmup_steps 10"),
        ({"warmup_steps": 0, "warmup_samples": 800}, "below the 800 samples"),
        ({"decay_steps": 0}, "decay_steps must be positive"),
        ({"schedule": "wsd"}, "wsd_decay_steps .* got 0 under wsd"),
        ({"wsd_decay_steps": 3}, "belongs to schedule wsd"),
        ({"schedule": "inverse_sqrt", "warmup_steps": 0}, "inverse_sqrt needs a warm-up"),
        ({"end_weight_decay": 0.001}, r"end_weight_decay \(0.001\) must not be below"),
        ({"batch_rampup": [2, 48]}, "first batch, increment and samples"),
        ({"batch_rampup": [2, 5, 48]}, "2 plus a multiple of 5"),
    ],
)
def test_an_impossible_schedule_names_its_keys(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(**keys)


@pytest.mark.slow
def test_a_growing_batch_is_the_same_run_under_any_layout_and_resume(toy_dataset: Path, tmp_path: Path) -> None:
    config = toy_config(toy_dataset)
    train = replace(config.train, batch_rampup=[2, 2, 16], steps=8, micro_batch_size=1)
    config = replace(config, train=train)
    run_ranks(run_training, 1, config, tmp_path / "one")
    run_ranks(run_training, 2, config, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    consumed = [line["consumed_samples"] for line in metrics(tmp_path / "one") if "loss" in line]
    assert consumed == [2, 4, 6, 10, 14, 20, 28, 36]
    whole = metrics(tmp_path / "two")
    import shutil

    for step in (6, 8):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / f"step-{step:08d}")
    run_ranks(run_training, 2, config, tmp_path / "two", True)
    assert metrics(tmp_path / "two") == whole
    with pytest.raises(UserError, match=r"batch_rampup \(2\) must be divisible by train.micro_batch_size \(1\) x 4"):
        config.data_parallel_size(4)
