"""Masked bits per base of a model on a split: fixed samples and fixed masks, the same numbers under any layout.

Bases are scored one by one ("base") where a token is one base or k-mers overlap, else by whole tokens ("block6",
"block").
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megadna.config import Config
from megadna.data.batch import Batch
from megadna.data.chunks import ChunkPool
from megadna.data.evaluation import EvaluationWindows, evaluation_batches
from megadna.engine.distributed import World
from megadna.engine.optimizer import gather_weights
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import ChunkSums, MaskedScore, score_logits
from megadna.train.kmer_bits import score_blocks, score_kmers
from megadna.train.step import evaluate_batch


def evaluate_split(
    chunks: Sequence[torch.nn.Module],
    dataset: ChunkPool,
    tokenizer: Tokenizer,
    config: Config,
    world: World,
    *,
    sequence_length: int,
) -> MaskedScore:
    """Score of config.validation.samples samples of `dataset`, the same object on every rank."""
    gather_weights(chunks)  # before ranks part: one may have no samples
    for chunk in chunks:
        chunk.eval()
    mine: list[tuple[np.ndarray, ChunkSums]] = []
    windows = EvaluationWindows(dataset, tokenizer, sequence_length)
    for batch in evaluation_batches(
        windows,
        tokenizer,
        sequence_length=sequence_length,
        samples=config.validation.samples,
        seed=config.seed,
        micro_batch_size=config.validation.micro_batch_size,
        rank=world.data_rank,
        size=world.data_size,
    ):
        sums = evaluate_batch(chunks, batch, world, partial(_score, batch=batch, tokenizer=tokenizer))
        if sums is not None:
            mine.append((batch.samples_B.numpy(), sums))
    for chunk in chunks:
        chunk.train()
    numbers, sums = _gather(mine, world)
    return replace(sums.by_group(windows.chunks(numbers)).score(), protocol=protocol_of(tokenizer))


def protocol_of(tokenizer: Tokenizer) -> str:
    """How models with this tokenizer are scored: "base", or "block" and the bases of a token where that is fixed."""
    if tokenizer.kind == "sentencepiece":
        return "block"
    return "base" if tokenizer.stride == 1 else f"block{tokenizer.bases_per_token}"


def _score(logits_BSV: Tensor, labels_BS: Tensor, *, batch: Batch, tokenizer: Tokenizer) -> ChunkSums:
    if protocol_of(tokenizer) != "base":
        return score_blocks(logits_BSV, labels_BS, tokenizer)
    if isinstance(tokenizer, KmerTokenizer):
        return score_kmers(logits_BSV, labels_BS, batch.tokens_BS, tokenizer)
    return score_logits(logits_BSV, labels_BS, tokenizer.base_ids.tolist())


def validation_line(score: MaskedScore) -> dict[str, Any]:
    """The score under the keys of metrics.jsonl."""
    return {
        "valid_bits_per_base": score.bits_per_base,
        "valid_bits_per_base_se": score.standard_error,
        "valid_perplexity": score.perplexity,
        "valid_accuracy": score.accuracy,
        "valid_loss": score.loss,
    }


def _gather(mine: list[tuple[np.ndarray, ChunkSums]], world: World) -> tuple[np.ndarray, ChunkSums]:
    """Sample numbers, rising, and their sums, from all ranks."""
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    parts = [part for one in everyone for part in one]
    numbers = np.concatenate([numbers for numbers, _ in parts])
    sums = ChunkSums.concatenate([sums for _, sums in parts])
    return np.sort(numbers), sums.by_group(numbers)
