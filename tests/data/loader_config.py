"""A config for tests of the loader."""

from dataclasses import replace

from megadna.config import Config, DataConfig, TokenizerConfig, TrainConfig


def make_config(path: str | list[str], *, micro_batch: int = 4, workers: int = 0, **data: object) -> Config:
    """A config with 16 samples a step."""
    return replace(
        Config(seed=11),
        tokenizer=data.pop("tokenizer", TokenizerConfig()),
        data=DataConfig(path=path, num_workers=workers, **data),
        train=TrainConfig(steps=100, micro_batch_size=micro_batch, global_batch_size=16),
    )
