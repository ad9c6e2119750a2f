"""One optimizer step through megatron's schedules, an evaluation by the same model, and the state they act on.

In:  TrainState, micro-batches (data/batch.py), the position of this rank.
Out: the state one step on, with what the step measured; or an Evaluation.

The loss is the global sum of weight x cross-entropy over the global sum of weights: the same number for any split of
the global batch into micro-batches and ranks. Ranks sum gradients; `_finalize` divides them once.

Training computes logits for the predicted tokens only, about one in seven. `Targets` are those of this rank: rows of
its hidden states. Rows are offsets in the S x B tokens laid end to end (sequence first, as hidden states are). Under
sequence parallelism each tensor-parallel rank holds one part of the sequence, and all parts name the same number of
rows, because the logits of all parts are gathered; a part is filled up with its first row at weight 0.

The host waits for the device once a step: for loss, gradient norm and stop request, in one transfer, before it decides
whether to apply the update (fp16: a second time, for megatron's overflow flag). Everything else is sent ahead.

Sequences in rows: the B x S tokens of a batch laid end to end; a segment is a run of them that sees only itself, given
as megatron's cumulative lengths. Padding after a row is a segment of its own.

Shapes: B micro-batch, S sequence, M predicted tokens (of a part), P sequence parts, V vocabulary (of this
tensor-parallel rank).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from typing import Any, NamedTuple

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
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
from megadna.data.evaluation import EvaluationSamples
from megadna.engine.distributed import World, seed_dropout
from megadna.engine.optimizer import (
    apply_gradients,
    build_optimizer,
    build_scheduler,
    follow_schedule,
    gather_weights,
    squared_norm,
    wrap_model,
)
from megadna.model.encoder import build_encoder
from megadna.train.evaluation import Evaluation, evaluate

MULTIPLE = 64
"""Rows are padded to a multiple of it: matrix kernels are fastest, and few shapes spare the GPU's memory allocator."""


@dataclass
class TrainState:
    """Everything a checkpoint holds."""

    model_parts: list[DistributedDataParallel]
    """The model, or this rank's stage of it: one module, several under parallel.virtual_pipeline."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Samples that the run has consumed; with `skipped` the whole state of the data."""
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of samples left out after roll-backs, half-open."""


def build_state(config: Config, vocab_size: int, world: World) -> TrainState:
    """A run at step 0."""
    count = config.parallel.virtual_pipeline
    model_parts = [
        wrap_model(
            build_encoder(
                config,
                vocab_size,
                world.device,
                pre_process=world.is_first_stage and number == 0,
                post_process=world.is_last_stage and number == count - 1,
                vp_stage=number if count > 1 else None,
            ),
            config,
            is_first_part=number == 0,
        )
        for number in range(count)
    ]
    optimizer = build_optimizer(model_parts, config)
    return TrainState(model_parts, optimizer, build_scheduler(optimizer, config.train))


class Targets(NamedTuple):
    """Tensors of this rank, on its device."""

    rows_M: Tensor
    """int64: positions in the tokens whose hidden states this rank holds."""
    labels_M1: Tensor
    """int64 [P x M, 1]: true ids, of all parts one after the other."""
    weights_M1: Tensor
    """float32 [P x M, 1]: their weights in the loss."""


def own_part(x_BS: Tensor, world: World) -> Tensor:
    """The consecutive part of each row that this context-parallel rank holds."""
    return x_BS.chunk(world.context_size, dim=1)[world.context_rank]


def own_targets(batch: Batch, world: World, num_parts: int) -> Targets:
    """Computed on the host, without waiting for the GPU; `num_parts`: sequence-parallel parts, 1 without."""
    labels_SB, weights_SB = (own_part(x_BS, world).transpose(0, 1) for x_BS in (batch.labels_BS, batch.weights_BS))
    labels_PT, weights_PT = (x_SB.reshape(num_parts, -1) for x_SB in (labels_SB, weights_SB))
    rows_PM, counted_PM = chosen_rows(weights_PT)
    return Targets(
        to_device(rows_PM[world.tensor_rank if num_parts > 1 else 0], world.device),
        to_device(labels_PT.gather(1, rows_PM).clamp_min(0).view(-1, 1), world.device),
        to_device((weights_PT.gather(1, rows_PM) * counted_PM).view(-1, 1), world.device),
    )


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A copy for which the host does not wait: to a GPU through page-locked memory, or it would."""
    if device.type == "cuda":
        x = x.contiguous().pin_memory()
    return x.to(device, non_blocking=True)


def chosen_rows(weights_PT: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets [P, M] of the non-zero weights in each part, and which of them (bool) are not padding."""
    counts_P = weights_PT.count_nonzero(dim=1)
    size = max(1, -(-int(counts_P.max()) // MULTIPLE)) * MULTIPLE
    rows_PM = torch.zeros(len(weights_PT), size, dtype=torch.int64)
    counted_PM = torch.arange(size) < counts_P[:, None]
    rows_PM[counted_PM] = weights_PT.nonzero()[:, 1]
    return rows_PM, counted_PM


def packed_segments(cumulative_lengths: Tensor, device: torch.device) -> PackedSeqParams:
    """Segments that begin at the given positions: `cumulative_lengths`, int32 on the host, the last entry B x S."""
    bounds = to_device(cumulative_lengths, device)
    longest = int(cumulative_lengths.diff().max())
    # "thd" would make megatron squeeze the batch dimension away; here rows stay, and only core attention reads this.
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
    start = segments.cu_seqlens_kv
    within = (start % sequence_length - rank * length).clamp(0, length)
    bounds = (start // sequence_length * length + within).to(torch.int32)
    return replace(segments, cu_seqlens_q=bounds, max_seqlen_q=min(segments.max_seqlen_q, length))


NO_TOKENS = torch.tensor(0, dtype=torch.int)  # megatron counts whole tokens; our weights may be fractions


@dataclass(frozen=True)
class StepResult:
    """What one step measured."""

    loss: float
    """Mean cross-entropy (nats) over the predicted tokens of the global batch, by weight."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate that was applied."""
    problem: str = ""
    """Why the update was not applied; empty for an overflow of fp16 gradients, which only halves the loss scale."""
    stop: bool = False
    """Whether any rank asked to stop."""


def train_step(
    state: TrainState,
    batches: Iterator[Batch],
    config: Config,
    world: World,
    *,
    sequence_length: int,
    problem: Callable[[float, float], str] = lambda loss, grad_norm: "",
    stop: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Forward and backward over the micro-batches of one global batch, then the update of `state` in place.

    problem(loss, gradient norm), called with the same numbers on all ranks, returns why the update must not be applied,
    or "". stop(): whether this rank asks to stop; what it says once the step is done counts in the next.
    """
    train = config.train
    if config.model.dropout:
        seed_dropout(config.seed, state.step, world)
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)  # weighted loss, weight, requests to stop
    for part in state.model_parts:
        part.zero_grad_buffer()
    state.optimizer.zero_grad()
    transformer_config = state.model_parts[0].config
    # Gradients summed over all tokens would leave fp16's range; scaling by a power of two changes no other number.
    unit = 2.0 ** math.ceil(math.log2(train.global_batch_size * sequence_length))
    transformer_config.grad_scale_func = lambda loss: state.optimizer.scale_loss(loss) / unit
    transformer_config.finalize_model_grads_func = partial(_finalize, totals=totals, unit=unit, stop=stop)
    if config.parallel.overlap_grad_reduce:
        functions = [part.no_sync for part in state.model_parts]
        transformer_config.no_sync_func = functions if len(functions) > 1 else functions[0]
    parts = config.parallel.tensor if config.parallel.sequence else 1
    get_forward_backward_func()(
        forward_step_func=partial(_training_step, world=world, num_parts=parts, totals=totals),
        data_iterator=_iterators(batches, state.model_parts),
        model=state.model_parts,
        num_microbatches=train.global_batch_size // (train.micro_batch_size * world.data_size),
        seq_length=sequence_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=False,
    )
    lr = max(group["lr"] for group in state.optimizer.param_groups)
    overflow = bool(state.optimizer.prepare_grads())
    square = torch.zeros(1, device=world.device) if overflow else squared_norm(state.optimizer, world.device)
    weighted_loss, weight, stops, square_norm = torch.cat([totals, square]).tolist()  # here the host waits
    loss, grad_norm = weighted_loss / max(weight, 1e-12), square_norm**0.5
    reason = "" if overflow else problem(loss, grad_norm)
    if not (overflow or reason):
        apply_gradients(state.optimizer, grad_norm)
    state.step += 1
    state.consumed_samples += train.global_batch_size
    follow_schedule(state.scheduler, state.consumed_samples)
    return StepResult(loss=loss, grad_norm=grad_norm, lr=lr, problem=reason, stop=stops > 0)


@torch.no_grad()
def evaluate_batch(
    model_parts: Sequence[torch.nn.Module], world: World, batch: Batch, score: Callable[[Tensor], Any]
) -> Any:
    """`score(logits [B, S, V] fp32)`, whole vocabulary, on one rank of the last stage; None on the others."""

    def loss(logits_SBV: Tensor) -> tuple[Tensor, Tensor, Any]:
        logits_SBV = gather_from_tensor_model_parallel_region(logits_SBV)
        if world.context_size > 1:
            logits_SBV = gather_from_sequence_parallel_region(logits_SBV, group=get_context_parallel_group())
        logits_BSV = logits_SBV.transpose(0, 1)
        scores = world.tensor_rank == world.context_rank == 0
        return logits_BSV.sum(), NO_TOKENS, score(logits_BSV) if scores else None

    rows, sequence_length = batch.tokens_BS.shape
    # The interleaved schedule wants a micro-batch per stage: the same one fills the slots that would be idle.
    repeats = 1 if len(model_parts) == 1 else get_pipeline_model_parallel_world_size()
    outputs = get_forward_backward_func()(
        forward_step_func=lambda batches, model: (_forward(model, next(batches), world), loss),
        data_iterator=_iterators(iter([batch] * repeats), model_parts),
        model=list(model_parts),
        num_microbatches=repeats,
        seq_length=sequence_length,
        micro_batch_size=rows,
        forward_only=True,
    )
    return outputs[0] if outputs else None


def evaluate_split(
    model_parts: Sequence[torch.nn.Module], samples: EvaluationSamples, world: World, *, micro_batch_size: int
) -> Evaluation:
    """Evaluation of the samples by a model that megatron runs, the same object on every rank."""
    gather_weights(model_parts)  # a collective: here all ranks take part, below one may have no samples
    for part in model_parts:
        part.eval()

    def gather(mine: Any) -> list[Any]:
        everyone: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    evaluation = evaluate(
        partial(evaluate_batch, model_parts, world),
        samples,
        micro_batch_size=micro_batch_size,
        rank=world.data_rank,
        size=world.data_size,
        gather=gather,
    )
    for part in model_parts:
        part.train()
    return evaluation


def _iterators(batches: Iterator[Batch], model_parts: Sequence[torch.nn.Module]) -> Any:
    """What megatron's schedules read from: the iterator itself, or one over the same batches for each model part."""
    return batches if len(model_parts) == 1 else list(tee(batches, len(model_parts)))


def _training_step(
    batches: Iterator[Batch], model: torch.nn.Module, *, world: World, num_parts: int, totals: Tensor
) -> tuple[Tensor, Callable]:
    batch = next(batches)
    targets = own_targets(batch, world, num_parts)
    loss = partial(_sum_loss, targets=targets, totals=totals, world=world)
    return _forward(model, batch, world, targets.rows_M), loss


def _forward(model: torch.nn.Module, batch: Batch, world: World, rows_M: Tensor | None = None) -> Tensor:
    tokens_BS = to_device(own_part(batch.tokens_BS, world), world.device)
    positions_BS = batch.positions_BS
    if positions_BS is not None:
        positions_BS = to_device(own_part(positions_BS, world), world.device)
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
    logits_M1V: Tensor, *, targets: Targets, totals: Tensor, world: World
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss = (vocab_parallel_cross_entropy(logits_M1V, targets.labels_M1) * targets.weights_M1).sum()
    if world.tensor_rank == 0:  # the other tensor-parallel ranks hold the same sums
        totals[:2] += torch.stack([loss.detach().double(), targets.weights_M1.sum().double()])
    return loss, NO_TOKENS, {}


def _finalize(
    model: list[DistributedDataParallel],
    _num_tokens: Tensor,
    *,
    totals: Tensor,
    unit: float,
    stop: Callable[[], bool],
    **kwargs: Any,
) -> None:
    """Sum gradients over ranks as megatron does, then divide by the global weight / unit; `totals` become global."""
    finalize_model_grads(model, None, **kwargs)
    totals[2] = float(stop())
    torch.distributed.all_reduce(totals)
    for part in model:
        part.scale_gradients(unit / totals[1].clamp_min(1e-12))
