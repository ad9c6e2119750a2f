"""A toy run: the config that engine tests share, and a few steps of it on this rank."""

import json
from pathlib import Path
from typing import Any

import torch

from megadna.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    LogConfig,
    ModelConfig,
    ParallelConfig,
    TrainConfig,
    ValidationConfig,
)


def toy_config(dataset: Path, *, precision: str = "fp32", **parallel: Any) -> Config:
    """4 layers, 64 wide, 8 samples of 128 tokens a step."""
    return Config(
        data=DataConfig(path=str(dataset), sequence_length=128, num_workers=0),
        model=ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=4, ffn_hidden_size=128),
        parallel=ParallelConfig(**parallel),
        engine=EngineConfig(device="cpu", precision=precision),  # type: ignore[arg-type]
        train=TrainConfig(steps=6, micro_batch_size=2, global_batch_size=8, lr=1e-3, warmup_steps=1),
        checkpoint=CheckpointConfig(interval=3, keep_last=5),
        validation=ValidationConfig(interval=3, samples=16, micro_batch_size=4),
        log=LogConfig(tensorboard=False),
    )


def run_training(config: Config, run: Path, resume: bool = False) -> None:
    """Train on this rank, as `megadna train` does."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.loop import TrainingRun

    run.mkdir(parents=True, exist_ok=True)
    with parallel_world(config.engine, config.parallel) as world:
        TrainingRun(config, run, world).train(resume="always" if resume else "never")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock decides."""
    from megadna.train.loop import TIMING_KEYS

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]


def losses(run: Path) -> list[float]:
    """Training loss of every step."""
    return [line["loss"] for line in metrics(run) if "loss" in line]


def master_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """fp32 master weights of a checkpoint of any layout, whole, by megatron name."""
    from megadna.hf.checkpoints import CheckpointTensors

    tensors = CheckpointTensors(checkpoint, master=True)
    return {name: tensors.read(name) for name in tensors.names()}
