"""Training on a GPU equals training on the CPU; a checkpoint goes from one to the other. Needs one GPU."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from toy import losses, metrics, run_training, toy_config

from megadna.config import Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def config_on(dataset: Path, device: str, *, precision: str = "fp32") -> Config:
    """Five steps of the toy run, checkpoint at 3."""
    config = toy_config(dataset, precision=precision)
    return replace(
        config,
        engine=replace(config.engine, device=device),
        train=replace(config.train, steps=5),
    )


def train(config: Config, run: Path, *, resume: bool = False) -> Path:
    run_ranks(run_training, 1, config, run, resume)
    return run


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 on the CPU and on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    return {device: train(config_on(toy_dataset, device), folder / device) for device in ("cpu", "cuda")}


def stopped_at_three(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000005")
    return copy


def test_five_fp32_steps_equal_the_cpu(runs: dict[str, Path]) -> None:
    assert losses(runs["cuda"]) == pytest.approx(losses(runs["cpu"]), rel=1e-3)
    norms = [[line["grad_norm"] for line in metrics(run) if "loss" in line] for run in runs.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_with_the_distributed_optimizer(
    precision: str, runs: dict[str, Path], toy_dataset: Path, tmp_path: Path
) -> None:
    run = train(config_on(toy_dataset, "cuda", precision=precision), tmp_path / "run")
    assert losses(run) == pytest.approx(losses(runs["cpu"]), rel=2e-2)


@pytest.mark.parametrize(("saved", "loaded"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_there(
    saved: str, loaded: str, runs: dict[str, Path], toy_dataset: Path, tmp_path: Path
) -> None:
    run = stopped_at_three(runs[saved], tmp_path / "run")
    train(config_on(toy_dataset, loaded), run, resume=True)
    assert losses(run) == pytest.approx(losses(runs["cpu"]), rel=1e-3)
