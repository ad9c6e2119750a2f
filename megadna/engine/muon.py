"""Muon for the matrices of the layers, beside megatron's distributed AdamW for everything else.

In:  the fp32 gradients that the distributed optimizer has ready: of each matrix the part of this data-parallel rank, of
     this tensor-parallel rank's rows or columns.
Out: the same parts of the master weights, updated as torch.optim.Muon updates whole matrices: momentum (Nesterov),
     its nearest orthogonal matrix by five Newton-Schulz steps, decoupled weight decay. Query, key, value, gate and up
     projections are matrices of their own.

Before AdamW's step: the parts of a momentum are put together on one data-parallel rank (of the next weight on the next
rank), there from all tensor-parallel ranks, made orthogonal, and sent back. AdamW then skips these weights, as they
have no gradient.
The momentum lies under AdamW's name `exp_avg`, so that a checkpoint has one format; `exp_avg_sq` stays 0.
Muon: K. Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import DistributedOptimizer
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn import Parameter

from megadna.config import TrainConfig

# Shapes: R rows and C columns of a matrix, r and c those on this tensor-parallel rank, G query groups, Q the queries of
# a group, its key and its value, D size of a head, H hidden size. Flat tensors have no suffix.

MOMENTUM, EPSILON = 0.95, 1e-7
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
KINDS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Matrices of a layer, by megatron's names."""


def orthogonal(matrix_RC: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix of the same singular vectors, singular values near 1 (torch: 0.5 to 1.5), times sqrt(max(1, R / C)).

    The arithmetic of torch.optim.Muon, in `dtype` (torch: bf16); fp32 comes out."""
    tall = matrix_RC.size(0) > matrix_RC.size(1)
    a, b, c = NEWTON_SCHULZ
    x = (matrix_RC.T if tall else matrix_RC).to(dtype)
    x = x / x.norm().clamp(min=EPSILON)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    scale = max(1.0, matrix_RC.size(0) / matrix_RC.size(1)) ** 0.5
    return (x.T if tall else x).float() * scale


def matrices_of(kind: str, whole_RC: Tensor, config: TransformerConfig) -> list[Tensor]:
    """The matrices that a weight consists of, all tensor-parallel ranks together; views of it."""
    columns = whole_RC.size(1)
    if kind == "linear_qkv":
        grouped_GQDH = whole_RC.view(config.num_query_groups, -1, config.kv_channels, columns)
        return [grouped_GQDH[:, :-2], grouped_GQDH[:, -2], grouped_GQDH[:, -1]]
    if kind == "linear_fc1" and config.gated_linear_unit:
        return list(whole_RC.view(2, -1, columns))
    return [whole_RC]


class Muon:
    """Updates the matrices of one of megatron's optimizers before each of its steps."""

    def __init__(self, part: DistributedOptimizer, train: TrainConfig, model: TransformerConfig) -> None:
        self.part = part
        self.model = model
        self.rate = train.muon_lr / train.lr
        self.dtype = torch.float32 if model.params_dtype == torch.float32 else torch.bfloat16
        named = [pair for chunk in part.model_chunks for pair in chunk.named_parameters()]
        self.weights = [
            (kind, parameter)  # this tensor-parallel rank's rows or columns, in the precision of the model
            for name, parameter in named
            for kind in KINDS
            if ".layers." in name and name.endswith(f".{kind}.weight")
        ]
        part.optimizer.register_step_pre_hook(lambda *_: self.step())

    @torch.no_grad()
    def step(self) -> None:
        """Update the matrices; all data- and tensor-parallel ranks call it together."""
        group = self.part.data_parallel_group
        ranks, own = dist.get_process_group_ranks(group), group.rank()
        for first in range(0, len(self.weights), len(ranks)):
            weights = self.weights[first : first + len(ranks)]
            updates = [self._momentum(parameter) for _, parameter in weights]
            pairs = list(zip(updates, ranks, strict=False))
            _wait([dist.reduce(update, rank, group=group, async_op=True) for update, rank in pairs])
            if own < len(weights):
                kind, parameter = weights[own]
                updates[own].copy_(self._orthogonal(kind, parameter, updates[own]))
            _wait([dist.broadcast(update, rank, group=group, async_op=True) for update, rank in pairs])
            for (_, parameter), update in zip(weights, updates, strict=True):
                self._apply(parameter, update)

    def _momentum(self, parameter: Parameter) -> Tensor:
        """Nesterov's momentum in the range of this data-parallel rank, 0 elsewhere; fp32, flat."""
        update = torch.zeros(parameter.numel(), device=parameter.device)
        if found := self._master(parameter):
            master, _, window = found
            assert master.grad is not None
            state = self.part.optimizer.state[master]
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in state:
                    state[key] = torch.zeros_like(master)
            state["exp_avg"].lerp_(master.grad, 1 - MOMENTUM)
            update[window] = master.grad.lerp(state["exp_avg"], MOMENTUM)
        return update

    def _orthogonal(self, kind: str, parameter: Parameter, update: Tensor) -> Tensor:
        """The update of this tensor-parallel rank's part of a weight, from those of all; flat."""
        group = parallel_state.get_tensor_model_parallel_group()
        size, rank = group.size(), group.rank()
        part_rc = update.view(parameter.shape)
        gated = kind == "linear_fc1" and self.model.gated_linear_unit
        by_rows = kind in ("linear_qkv", "linear_fc1")
        whole_RC = part_rc
        if size > 1:
            parts = [torch.empty_like(part_rc) for _ in range(size)]
            dist.all_gather(parts, part_rc, group=group)
            if gated:  # each rank has rows of the gate, then of the up projection
                parts = [half for number in (0, 1) for half in (part.chunk(2)[number] for part in parts)]
            whole_RC = torch.cat(parts, dim=0 if by_rows else 1)
        for matrix in matrices_of(kind, whole_RC, self.model):
            matrix.copy_(orthogonal(matrix.reshape(-1, matrix.size(-1)), self.dtype).view(matrix.shape))
        if gated:
            return torch.cat([half.chunk(size)[rank] for half in whole_RC.chunk(2)]).flatten()
        return whole_RC.chunk(size, dim=0 if by_rows else 1)[rank].flatten()

    def _apply(self, parameter: Parameter, update: Tensor) -> None:
        """Decay and move the master weights of this data-parallel rank, and take their gradient from AdamW."""
        if found := self._master(parameter):
            master, group, window = found
            rate = group["lr"] * self.rate
            master.mul_(1 - rate * group["weight_decay"]).add_(update[window], alpha=-rate)
            master.grad = None
            if "step" in self.part.optimizer.state[master]:  # megatron saves the first one's as that of all
                self.part.optimizer.state[master]["step"] += 1

    def _master(self, parameter: Parameter) -> tuple[Tensor, dict[str, Any], slice] | None:
        """Flat fp32 master weights of this data-parallel rank, their group, their range in the weight; None: none."""
        if parameter not in self.part.model_param_group_index_map:
            return None
        number, order = self.part.model_param_group_index_map[parameter]
        group = self.part.optimizer.param_groups[number]
        found = self.part._get_model_param_range_map(parameter)["param"]
        return group["params"][order], group, slice(found.start, found.end)


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()
