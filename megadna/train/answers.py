"""The predicted tokens of a micro-batch: training needs the logits of these alone, about one in seven.

In:  a Batch, and where this rank stands.
Out: Answers: which rows of its hidden states go through the head, what stands there, and how much each counts.

Rows are places in the S x B tokens laid end to end (sequence first, as hidden states lie). Under sequence parallelism
each tensor-parallel rank holds one part of the sequence; all parts name equally many rows, because the logits of all
parts are gathered. What fills a part up is its first row, with the weight 0.

Shapes: B micro-batch, S sequence, P parts, M rows of a part.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megadna.data.batch import Batch
from megadna.engine.distributed import World

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
