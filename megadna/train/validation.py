"""Validation of a model that megatron runs: every rank its part of the samples, the same numbers on every rank."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megadna.config import Config
from megadna.data.batch import Batch
from megadna.data.dataset import ChunkPool
from megadna.data.evaluation import EvaluationSamples
from megadna.engine.distributed import World
from megadna.engine.optimizer import gather_weights
from megadna.tokenizer.base import Tokenizer
from megadna.train.scoring import Evaluation, evaluate
from megadna.train.step import evaluate_batch


def validate(
    chunks: Sequence[torch.nn.Module],
    pools: Mapping[str, ChunkPool],
    tokenizer: Tokenizer,
    config: Config,
    world: World,
    *,
    sequence_length: int,
) -> dict[str, Any]:
    """The line of metrics.jsonl: the validation split under the name "", and validation.extra by their names."""
    numbers: dict[str, Any] = {}
    for name, pool in pools.items():
        samples = EvaluationSamples(
            pool, tokenizer, sequence_length=sequence_length, samples=config.validation.samples, seed=config.seed
        )
        evaluation = evaluate_split(chunks, samples, world, micro_batch_size=config.validation.micro_batch_size)
        numbers |= evaluation.line(f"valid_extra/{name}_" if name else "valid_")
    return numbers


def evaluate_split(
    chunks: Sequence[torch.nn.Module], samples: EvaluationSamples, world: World, *, micro_batch_size: int
) -> Evaluation:
    """Evaluation of the samples, the same object on every rank."""
    gather_weights(chunks)  # before ranks part: one may have no samples
    for chunk in chunks:
        chunk.eval()

    def forward(batch: Batch, score: Callable[[Tensor], Any]) -> Any:
        return evaluate_batch(chunks, batch, world, lambda logits_BSV, _: score(logits_BSV))

    def gather(mine: Any) -> list[Any]:
        everyone: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    rank, size = world.data_rank, world.data_size
    evaluation = evaluate(forward, samples, micro_batch_size=micro_batch_size, rank=rank, size=size, gather=gather)
    for chunk in chunks:
        chunk.train()
    return evaluation
