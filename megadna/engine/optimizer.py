"""Gradient buffers, AdamW and the learning-rate schedule: megatron-core's own, built from the config.

In:  model parts as megatron modules, Config.
Out: the parts in data-parallel gradient buffers, the distributed optimizer, its scheduler; their state for checkpoints.
Errors of megatron 0.16 are fixed here; the docstring of each fix names the error.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import DistributedOptimizer, MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module, MegatronModule

from megadna.config import Config, TrainConfig
from megadna.engine.muon import Muon
from megadna.log import get_logger

log = get_logger(__name__)


def wrap_model(model: MegatronModule, config: Config, *, is_first_part: bool = True) -> DistributedDataParallel:
    """The model in the precision of the config, inside megatron's data-parallel gradient buffers (fp32).

    Gradients are summed, not averaged: the loss is a sum over tokens, divided once by the global sum of weights.
    """
    parallel = config.parallel
    return DistributedDataParallel(
        config=model.config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            use_distributed_optimizer=True,
            average_in_collective=False,
        ),
        module=model if config.engine.precision == "fp32" else Float16Module(model.config, model),
        disable_bucketing=not is_first_part,  # as upstream: later parts of an interleaved stage have time to overlap
    )


def build_optimizer(model_parts: list[DistributedDataParallel], config: Config) -> MegatronOptimizer:
    """Distributed AdamW with fp32 master weights, Muon for the matrices of the layers if train.optimizer says so.

    No decay on biases and norms (megatron's standard rule)."""
    train = config.train
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=train.lr,
            min_lr=train.min_lr,
            weight_decay=train.weight_decay,
            adam_beta1=train.betas[0],
            adam_beta2=train.betas[1],
            adam_eps=train.eps,
            clip_grad=train.clip_grad,
            bf16=config.engine.precision == "bf16",
            fp16=config.engine.precision == "fp16",
            params_dtype=model_parts[0].config.params_dtype,
            initial_loss_scale=2.0**16,  # megatron's 2**32 overflows in every one of the first 17 steps
            use_distributed_optimizer=True,
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        model_parts,
        use_gloo_process_groups=False,
    )
    kinds = {type(part.optimizer) for part in _parts(optimizer)}
    names = [f"{kind.__module__.partition('.')[0]} {kind.__name__}" for kind in kinds]
    if train.optimizer == "muon":
        allocate_moments(optimizer)
        muons = [Muon(part, train, model_parts[0].config) for part in _parts(optimizer)]
        names.append(f"Muon for {sum(len(muon.weights) for muon in muons)} weights")
    log.info("optimizer: %s", ", ".join(names))
    for part in _parts(optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):  # apex and Transformer Engine have fused ones of their own
            for group in part.optimizer.param_groups:
                group["fused"] = True
            part._set_main_param_and_optimizer_states = partial(
                _set_states, part, part._set_main_param_and_optimizer_states
            )
    return optimizer


@contextmanager
def _padding_counted(model_parts: list[DistributedDataParallel]) -> Iterator[None]:
    """Make the reshardable format lay out a gradient buffer as the buffer itself is, padding between buckets included.

    megatron 0.16 drops that padding from what it gathers, and then reads each parameter at its padded offset: all after
    the first of several buckets (tied embeddings of a pipeline stage, overlap_grad_reduce) was saved wrong.
    """
    buffers = [buffer for part in model_parts for buffer in part.buffers]
    buckets = [bucket for buffer in buffers for bucket in buffer.buckets]
    before = [part.numel_unpadded for part in (*buffers, *buckets)]
    for buffer in buffers:
        buffer.numel_unpadded = buffer.numel
    for bucket in buckets:
        bucket.numel_unpadded = bucket.grad_data.numel()
    try:
        yield
    finally:
        for part, numel in zip((*buffers, *buckets), before, strict=True):
            part.numel_unpadded = numel


def optimizer_shards(
    optimizer: MegatronOptimizer,
    model_parts: list[DistributedDataParallel],
    model: dict[str, Any],
    metadata: dict[str, Any],
    *,
    is_loading: bool,
) -> dict[str, Any]:
    """megatron's sharded state of the optimizer, gathered over the data-parallel ranks so that any layout loads it.

    Its tensors are named after those of `model`, the sharded weights.
    """
    metadata = {**metadata, "distrib_optim_sharding_type": "fully_reshardable"}
    with _padding_counted(model_parts):
        sharded: dict[str, Any] = optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)
    # megatron would pickle the parameter groups of each stage, of which load_optimizer needs only `step`.
    return {key: part.data if isinstance(part, ShardedObject) else part for key, part in sharded.items()}


def reload_master_weights(optimizer: MegatronOptimizer, weights: list[dict[str, Any]]) -> None:
    """Set the master weights from state dicts of the model parts, in the precision of these."""
    several = {f"model{number}": part for number, part in enumerate(weights)}
    optimizer.reload_model_params(weights[0] if len(weights) == 1 else several)


def _set_states(part: DistributedOptimizer, original: Callable, parameter: Any, tensors: dict[str, Any]) -> None:
    """megatron's setter for a checkpoint's master weight and moments, around torch AdamW.

    torch keeps `step` per parameter; megatron 0.16 looks for it among the loaded tensors, but saves it in the parameter
    group. The current value, already restored from there, is passed on.
    """
    current = part._get_main_param_and_optimizer_states(parameter)
    original(parameter, {**current, **tensors, **{key: current[key] for key in ("step",) if key in current}})


@torch.no_grad()
def squared_norm(optimizer: MegatronOptimizer, device: torch.device) -> torch.Tensor:
    """Square of the global gradient norm before clipping, fp32 [1] on the device, the same on every rank.

    `prepare_grads` must have been called. megatron 0.16 reads the norm of each tensor from the GPU, one after the
    other, where neither Transformer Engine nor apex is installed; here the host waits for nothing.
    """
    gradients = [gradient for part in _parts(optimizer) for gradient in part.get_main_grads_for_grad_norm()]
    total = torch.zeros(1, device=device)  # of a rank that owns no gradient
    if gradients:
        total += torch.nn.utils.get_total_norm(gradients) ** 2.0
    torch.distributed.all_reduce(total, group=optimizer.get_grad_stats_parallel_group())
    return total


@torch.no_grad()
def apply_gradients(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip to OptimizerConfig.clip_grad and update; `grad_norm` is the global norm of the same gradients."""
    for part in _parts(optimizer):
        if part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()


def gather_weights(model_parts: Iterable[torch.nn.Module]) -> None:
    """Send the updated weights to every rank now, which parallel.overlap_param_gather postpones to the next step."""
    for part in model_parts:
        if isinstance(part, DistributedDataParallel) and part.ddp_config.overlap_param_gather:
            part.start_param_sync(force_sync=True)


def build_scheduler(optimizer: MegatronOptimizer, train: TrainConfig) -> OptimizerParamScheduler:
    """Linear warm-up, then train.schedule; what megatron counts as steps are samples here, as everywhere in a run."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=train.lr,
        min_lr=train.min_lr,
        lr_warmup_steps=train.samples_of_warmup,
        lr_decay_steps=train.samples_after(train.end_of_decay),
        lr_decay_style="WSD" if train.schedule == "trapezoid" else train.schedule,  # warm-up, stable, decay
        wsd_decay_steps=train.samples_of_fall,
        lr_wsd_decay_style="linear",
        start_wd=train.weight_decay,
        end_wd=train.weight_decay,
        wd_incr_steps=train.samples_after(train.steps),
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,  # a resumed run follows its config, and logs what that changes
    )


def follow_schedule(scheduler: OptimizerParamScheduler, consumed_samples: int) -> None:
    """Set the learning rate of the step that follows `consumed_samples`."""
    scheduler.num_steps = consumed_samples
    scheduler.step(increment=0)


def allocate_moments(optimizer: MegatronOptimizer) -> None:
    """Allocate Adam's moments and its `step` if there are none yet: before the first step, or before loading.

    megatron 0.16 allocates the moments itself but forgets torch AdamW's per-parameter `step`, and then fails on it.
    """
    for part in _parts(optimizer):
        if not isinstance(part.optimizer, torch.optim.AdamW):
            continue
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state: dict[str, Any] = part.optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter.data)
                    state["exp_avg_sq"] = torch.zeros_like(parameter.data)


def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Restore master weights, moments and step; rates, decays and betas stay those of the config.

    megatron gives all parameters one `step` tensor, which torch's fused AdamW would then increment once for each.
    """
    parts = _parts(optimizer)
    ours = [[dict(group) for group in part.optimizer.param_groups] for part in parts]
    optimizer.load_state_dict(loaded)
    for part, groups in zip(parts, ours, strict=True):
        for group, settings in zip(part.optimizer.param_groups, groups, strict=True):
            group.update({key: value for key, value in settings.items() if key not in ("params", "step")})
        for state in part.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()


def _parts(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    assert all(isinstance(part, DistributedOptimizer) for part in chained)
    return [part for part in chained if part.optimizer is not None]
