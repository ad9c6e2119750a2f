"""Which layouts are possible: tensor x pipeline x context x data ranks against the model and the batch.

In:  a Config, and the number of ranks.
Out: nothing, or one UserError with the numbers and the remedy, before any process starts.
What passes here is what the parity tests prove equal to one rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megadna.errors import require

if TYPE_CHECKING:
    from megadna.config import Config


def check_layout(config: Config) -> None:
    """UserError where the model, the data or the keys of `parallel` do not fit each other."""
    model, parallel = config.model, config.parallel
    split = {"num_attention_heads": model.num_attention_heads, "num_query_groups": model.query_groups}
    for key, value in {**split, "ffn_hidden_size": model.ffn_hidden_size}.items():
        require(
            value % parallel.tensor == 0,
            f"model.{key} ({value}) must be divisible by parallel.tensor ({parallel.tensor})",
        )
    require(not parallel.sequence or parallel.tensor > 1, "parallel.sequence needs parallel.tensor above 1")
    require(
        parallel.overlap_grad_reduce or not parallel.overlap_param_gather,
        "parallel.overlap_param_gather needs parallel.overlap_grad_reduce",
    )
    require(
        parallel.recompute == "full" or parallel.recompute_interval == 1,
        f"parallel.recompute_interval ({parallel.recompute_interval}) needs parallel.recompute full",
    )
    rows = 16 if config.tokenizer.kind == "nucleotide" else 64
    require(
        rows % parallel.tensor == 0,
        f"parallel.tensor ({parallel.tensor}) must divide {rows}: the vocabulary inside the model is a multiple of it",
    )
    _check_stages(config)


def _check_stages(config: Config) -> None:
    layers, parallel = config.model.num_layers, config.parallel
    stages, chunks, uneven = parallel.pipeline, parallel.virtual_pipeline, parallel.pipeline_layers
    require(
        chunks == 1 or stages > 1, f"parallel.virtual_pipeline ({chunks}) needs parallel.pipeline above 1, got {stages}"
    )
    if uneven:
        require(
            len(uneven) == stages and min(uneven) > 0 and sum(uneven) == layers,
            f"parallel.pipeline_layers {uneven} must be {stages} positive numbers (parallel.pipeline) with the sum "
            f"{layers} (model.num_layers)",
        )
        require(chunks == 1, "parallel.pipeline_layers and parallel.virtual_pipeline exclude each other; drop one")
        return
    require(
        layers % stages == 0,
        f"model.num_layers ({layers}) must be divisible by parallel.pipeline ({stages}), or say how they are split, as "
        f"--parallel.pipeline_layers '{_even_as_possible(layers, stages)}'",
    )
    require(
        layers % (stages * chunks) == 0,
        f"model.num_layers ({layers}) must be divisible by parallel.pipeline ({stages}) x "
        f"parallel.virtual_pipeline ({chunks})",
    )


def data_parallel_size(config: Config, world_size: int) -> int:
    """Data-parallel size that `world_size` ranks leave; UserError with the numbers where they do not divide."""
    parallel, train = config.parallel, config.train
    require(
        world_size % parallel.model_size == 0,
        f"{world_size} ranks cannot be split into groups of {parallel.model_size} (parallel.tensor {parallel.tensor} x "
        f"pipeline {parallel.pipeline} x context {parallel.context}); change `parallel` or the number of ranks",
    )
    size = world_size // parallel.model_size
    for key, batch in (
        ("global_batch_size", train.global_batch_size),
        *(("batch_rampup", batch) for batch in train.batch_rampup[:2]),
    ):
        require(
            batch % (size * train.micro_batch_size) == 0,
            f"train.{key} ({batch}) must be divisible by train.micro_batch_size ({train.micro_batch_size}) x {size} "
            "data-parallel ranks",
        )
        micro_batches = batch // (size * train.micro_batch_size)
        require(
            parallel.virtual_pipeline == 1 or micro_batches % parallel.pipeline == 0,
            f"parallel.virtual_pipeline needs a number of micro-batches that parallel.pipeline ({parallel.pipeline}) "
            f"divides, got {micro_batches} (train.{key} {batch} / {size} data-parallel ranks / train.micro_batch_size "
            f"{train.micro_batch_size})",
        )
    return size


def parse_rank(text: str) -> tuple[int, int]:
    """(rank, number of ranks) of engine.dry_run, as 0/256."""
    rank, _, size = text.partition("/")
    require(
        rank.isdecimal() and size.isdecimal() and int(rank) < int(size),
        f"engine.dry_run must be RANK/RANKS with RANK below RANKS, as 0/256, got {text}",
    )
    return int(rank), int(size)


def _even_as_possible(layers: int, stages: int) -> list[int]:
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]
