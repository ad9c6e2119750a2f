"""The predicted tokens of a micro-batch: training needs the logits of these alone, about one in seven.

In:  a Batch, and where this rank stands.
Out: Answers: which rows of its hidden states go through the head, what stands there, and how much each counts.

Rows are places in the S x B tokens laid end to end (sequence first, as hidden states lie). Under sequence parallelism
each tensor-parallel rank holds one part of the sequence; all parts name equally many rows, because the logits of all
parts are gathered. What fills a part up is its first row, with the weight 0.

Shapes: B micro-batch, S sequence, P parts, M rows of a part.

Sequences in rows: padded rows and packed rows as megatron's cumulative lengths, which attention reads.

The B x S tokens of a batch lie end to end; a segment is a run of them that sees itself alone. Padding behind a row is a
segment of its own.

One optimizer step through megatron's schedules, and one forward pass of an evaluation batch.

Shapes: B micro-batch, S sequence, M predicted tokens, V vocabulary (of this tensor-parallel rank).
The loss is the global sum of weight x cross-entropy over the global sum of weights: the same number under any split of
the global batch into micro-batches and ranks. Ranks sum gradients; `_finalize` divides them once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee
from typing import Any, NamedTuple

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_context_parallel_group, get_pipeline_model_parallel_world_size
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from megadna.config import Config
from megadna.data.batch import Batch
from megadna.engine.distributed import World, seed_dropout
from megadna.engine.optimizer import apply_gradients, follow_schedule, gradient_norm
from megadna.train.state import TrainState

MULTIPLE = 64
"""Rows come in multiples of it: matrix kernels are fastest so, and few shapes spare the GPU's memory allocator."""


class Answers(NamedTuple):
    """Tensors of this rank, on its device."""

    rows_M: Tensor
    """int64: positions in the tokens whose hidden states this rank holds."""
    labels_M1: Tensor
    """int64 [P x M, 1]: the answers, of all parts one after the other."""
    weights_M1: Tensor
    """float32 [P x M, 1]: their weights in the loss."""


def own_part(x_BS: Tensor, world: World) -> Tensor:
    """The consecutive part of each row that this context-parallel rank holds."""
    return x_BS.chunk(world.context_size, dim=1)[world.context_rank]


def own_answers(batch: Batch, world: World, num_parts: int) -> Answers:
    """Found on the host, so that a GPU need not be waited for; `num_parts`: sequence-parallel parts, 1 without."""
    labels_SB, weights_SB = (own_part(x_BS, world).transpose(0, 1) for x_BS in (batch.labels_BS, batch.weights_BS))
    labels_PT, weights_PT = (x_SB.reshape(num_parts, -1) for x_SB in (labels_SB, weights_SB))
    rows_PM, counted_PM = chosen_rows(weights_PT)
    answers = [
        rows_PM[world.tensor_rank if num_parts > 1 else 0],
        labels_PT.gather(1, rows_PM).clamp_min(0).view(-1, 1),
        (weights_PT.gather(1, rows_PM) * counted_PM).view(-1, 1),
    ]
    if world.device.type == "cuda":  # from pageable memory a copy would wait
        answers = [x.pin_memory() for x in answers]
    return Answers(*(x.to(world.device, non_blocking=True) for x in answers))


def chosen_rows(weights_PT: Tensor) -> tuple[Tensor, Tensor]:
    """Places [P, M] of the weights that are not 0 in each part, and which of them (bool) are not mere filling."""
    counts_P = weights_PT.count_nonzero(dim=1)
    size = max(1, -(-int(counts_P.max()) // MULTIPLE)) * MULTIPLE
    rows_PM = torch.zeros(len(weights_PT), size, dtype=torch.int64)
    counted_PM = torch.arange(size) < counts_P[:, None]
    rows_PM[counted_PM] = weights_PT.nonzero()[:, 1]
    return rows_PM, counted_PM


def packed_segments(cumulative_lengths: Tensor, device: torch.device) -> PackedSeqParams:
    """Segments that begin at the given positions; `cumulative_lengths` int32 on the host, B x S its last entry."""
    bounds = cumulative_lengths.to(device, non_blocking=True)
    longest = int(cumulative_lengths.diff().max())
    # "thd" would make megatron squeeze the batch away; here rows stay rows, and only the core attention looks.
    return PackedSeqParams(
        qkv_format="sbhd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def padded_segments(lengths_B: Tensor, sequence_length: int, device: torch.device) -> PackedSeqParams:
    """Segments of rows whose first `lengths_B` tokens (on the host) are real."""
    starts_B = torch.arange(len(lengths_B)) * sequence_length
    ends_B = starts_B + lengths_B
    bounds = torch.cat([starts_B, ends_B, starts_B + sequence_length]).unique()
    return packed_segments(bounds.to(torch.int32), device)


def own_segments(segments: PackedSeqParams, sequence_length: int, rank: int, ranks: int) -> PackedSeqParams:
    """The same keys for the queries of context-parallel rank `rank`, whose part is 1 / `ranks` of each row."""
    length = sequence_length // ranks
    place = segments.cu_seqlens_kv
    within = (place % sequence_length - rank * length).clamp(0, length)
    bounds = (place // sequence_length * length + within).to(torch.int32)
    return replace(segments, cu_seqlens_q=bounds, max_seqlen_q=min(segments.max_seqlen_q, length))


NO_TOKENS = torch.tensor(0, dtype=torch.int)  # megatron counts whole tokens; our weights may be fractions


@dataclass(frozen=True)
class StepResult:
    """What one step reports."""

    loss: float
    """Mean cross-entropy (nats) over the predicted tokens of the global batch, by weight."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate that was applied."""
    weight_decay: float
    """Weight decay that was applied, to what decays."""
    updated: bool = True
    """False where fp16 gradients overflowed (the loss scale is halved) or there was a problem: the weights stay."""
    problem: str = ""
    """Why the update was not applied, overflow aside."""


def train_step(
    state: TrainState,
    batches: Iterator[Batch],
    config: Config,
    world: World,
    *,
    sequence_length: int,
    problem: Callable[[float, float], str] = lambda loss, grad_norm: "",
) -> StepResult:
    """Forward and backward over the micro-batches of one global batch, then the update of `state` in place.

    problem(loss, gradient norm), given the same numbers on all ranks, says why the update must not be applied, or "".
    """
    train = config.train
    batch_size = train.batch_size(state.consumed_samples)
    if config.model.dropout:
        seed_dropout(config.seed, state.step, world)
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # weighted loss, weight
    for chunk in state.chunks:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    transformer_config = state.chunks[0].config
    # Gradients of a sum over so many tokens would leave fp16's range; a power of two changes no other number.
    unit = 2.0 ** math.ceil(math.log2(train.global_batch_size * sequence_length))
    transformer_config.grad_scale_func = lambda loss: state.optimizer.scale_loss(loss) / unit
    transformer_config.finalize_model_grads_func = partial(_finalize, totals=totals, unit=unit)
    if config.parallel.overlap_grad_reduce:
        functions = [chunk.no_sync for chunk in state.chunks]
        transformer_config.no_sync_func = functions if len(functions) > 1 else functions[0]
    parts = config.parallel.tensor if config.parallel.sequence else 1
    get_forward_backward_func()(
        forward_step_func=partial(_training_step, world=world, num_parts=parts, totals=totals),
        data_iterator=_iterators(batches, state.chunks),
        model=state.chunks,
        num_microbatches=batch_size // (train.micro_batch_size * world.data_size),
        seq_length=sequence_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=False,
    )
    lr, decay = (max(group[name] for group in state.optimizer.param_groups) for name in ("lr", "weight_decay"))
    weighted_loss, weight = totals.tolist()
    loss = weighted_loss / max(weight, 1e-12)
    overflow, grad_norm = gradient_norm(state.optimizer)
    reason = "" if overflow else problem(loss, grad_norm)
    if not (overflow or reason):
        apply_gradients(state.optimizer, grad_norm)
    state.step += 1
    state.consumed_samples += batch_size
    follow_schedule(state.scheduler, state.consumed_samples)
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        weight_decay=decay,
        updated=not (overflow or reason),
        problem=reason,
    )


@torch.no_grad()
def evaluate_batch(
    chunks: Sequence[torch.nn.Module], batch: Batch, world: World, score: Callable[[Tensor, Tensor], Any]
) -> Any:
    """`score(logits [B, S, V] fp32, labels [B, S])`, whole vocabulary, on one rank of the last stage; else None."""

    def loss(logits_SBV: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Any]:
        logits_SBV = gather_from_tensor_model_parallel_region(logits_SBV)
        if world.context_size > 1:
            logits_SBV = gather_from_sequence_parallel_region(logits_SBV, group=get_context_parallel_group())
        logits_BSV = logits_SBV.transpose(0, 1)
        speaks = world.tensor_rank == world.context_rank == 0
        return logits_BSV.sum(), NO_TOKENS, score(logits_BSV, batch.labels_BS.to(world.device)) if speaks else None

    rows, sequence_length = batch.tokens_BS.shape
    # The interleaved schedule wants a micro-batch per stage: the same one fills the places that would stand idle.
    repeats = 1 if len(chunks) == 1 else get_pipeline_model_parallel_world_size()
    outputs = get_forward_backward_func()(
        forward_step_func=partial(_evaluation_step, world=world, loss=loss),
        data_iterator=_iterators(iter([batch] * repeats), chunks),
        model=list(chunks),
        num_microbatches=repeats,
        seq_length=sequence_length,
        micro_batch_size=rows,
        forward_only=True,
    )
    return outputs[0] if outputs else None


def _iterators(batches: Iterator[Batch], chunks: Sequence[torch.nn.Module]) -> Any:
    """What megatron's schedules read from: the iterator itself, or one over the same batches for each model chunk."""
    return batches if len(chunks) == 1 else list(tee(batches, len(chunks)))


def _training_step(
    batches: Iterator[Batch], model: torch.nn.Module, *, world: World, num_parts: int, totals: Tensor
) -> tuple[Tensor, Callable]:
    batch = next(batches)
    answers = own_answers(batch, world, num_parts)
    return _forward(model, batch, world, answers.rows_M), partial(
        _sum_loss, answers=answers, totals=totals, world=world
    )


def _evaluation_step(
    batches: Iterator[Batch], model: torch.nn.Module, *, world: World, loss: Callable
) -> tuple[Tensor, Callable]:
    batch = next(batches)
    return _forward(model, batch, world), partial(loss, batch=batch)


def _forward(model: torch.nn.Module, batch: Batch, world: World, rows_M: Tensor | None = None) -> Tensor:
    tokens_BS = own_part(batch.tokens_BS, world).to(world.device, non_blocking=True)
    positions_BS = batch.positions_BS
    if positions_BS is not None:
        positions_BS = own_part(positions_BS, world).to(world.device, non_blocking=True)
    return model(tokens_BS, _segments(batch, world), positions_BS, rows_M)


def _segments(batch: Batch, world: World) -> PackedSeqParams | None:
    """The sequences of packed or padded rows; None where every row is one full sequence."""
    length = batch.tokens_BS.shape[1]
    if batch.cumulative_lengths is not None:
        segments = packed_segments(batch.cumulative_lengths, world.device)
    elif batch.lengths_B is not None:
        segments = padded_segments(batch.lengths_B, length, world.device)
    else:
        return None
    if world.context_size == 1:
        return segments
    return own_segments(segments, length, world.context_rank, world.context_size)


def _sum_loss(
    logits_M1V: Tensor, *, answers: Answers, totals: Tensor, world: World
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss = (vocab_parallel_cross_entropy(logits_M1V, answers.labels_M1) * answers.weights_M1).sum()
    if world.tensor_rank == 0:  # the other tensor-parallel ranks hold the same sums
        totals += torch.stack([loss.detach().double(), answers.weights_M1.sum().double()])
    return loss, NO_TOKENS.to(loss.device), {}


def _finalize(
    model: list[DistributedDataParallel], _num_tokens: Tensor, *, totals: Tensor, unit: float, **kwargs: Any
) -> None:
    """Sum gradients over ranks as megatron does, then divide by the global weight / unit; `totals` become global."""
    finalize_model_grads(model, None, **kwargs)
    torch.distributed.all_reduce(totals)
    for chunk in model:
        chunk.scale_gradients(float(unit / totals[1].clamp_min(1e-12)))
