"""Layouts of a training job on given GPUs, ranked: which fit, how long a step takes, why the others lose; a picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from megadna.config import Config
from megadna.errors import UserError
from megadna.model.shapes import training_flops
from megadna.planning.memory import Memory, Position, fullest_memory, state_bytes
from megadna.planning.step_time import GPUS_PER_NODE, Gpu, StepTime, step_time

LONG_CONTEXT = 16384
"""Tokens from which splitting a sequence over ranks is tried."""
HOST_COPY = 20e9
"""Bytes a second from a GPU to host memory."""


@dataclass(frozen=True)
class Layout:
    """One way to run the job."""

    config: Config
    memory: Memory
    time: StepTime
    fits: bool
    tokens_per_second: float
    mfu: float
    """Of the dense 16-bit peak, full attention counted (megadna/model/shapes.py)."""

    @property
    def name(self) -> str:
        """As TP2 PP4x2 CP2 mb4 recompute: tensor, pipeline x model parts a stage, context, micro-batch."""
        parallel = self.config.parallel
        parts = f"x{parallel.virtual_pipeline}" if parallel.virtual_pipeline > 1 else ""
        context = f" CP{parallel.context}" if parallel.context > 1 else ""
        again = f" {parallel.recompute} recompute" if parallel.recompute != "none" else ""
        name = f"TP{parallel.tensor} PP{parallel.pipeline}{parts}{context}"
        return f"{name} mb{self.config.train.micro_batch_size}{again}"

    @property
    def family(self) -> tuple[int, int, int]:
        """Tensor, pipeline and context size."""
        return self.config.parallel.tensor, self.config.parallel.pipeline, self.config.parallel.context

    @property
    def keys(self) -> dict[str, Any]:
        """Keys of a config that give this layout."""
        parallel = self.config.parallel
        names = ("tensor", "pipeline", "virtual_pipeline", "context", "sequence", "recompute")
        keys = {f"parallel.{name}": getattr(parallel, name) for name in names}
        return {**keys, "train.micro_batch_size": self.config.train.micro_batch_size}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: keys, bytes, seconds."""
        return {
            "keys": self.keys,
            "fits": self.fits,
            "memory_bytes": {**vars(self.memory), "total": self.memory.total},
            "step_seconds": {**vars(self.time), "total": self.time.seconds},
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
        }


def evaluate_layout(config: Config, vocab_rows: int, sequence_length: int, num_gpus: int, gpu: Gpu) -> Layout:
    """Memory and time of one layout; UserError where it is impossible."""
    config.data_parallel_size(num_gpus)
    memory = fullest_memory(config, vocab_rows, sequence_length, num_gpus)
    time = step_time(config, vocab_rows, sequence_length, num_gpus, gpu)
    batch = config.train.global_batch_size
    predicted = config.data.masking.fraction
    flops = training_flops(config.model, vocab_rows, sequence_length, predicted=predicted) * batch
    return Layout(
        config=config,
        memory=memory,
        time=time,
        fits=memory.total <= gpu.memory_gb * 1e9,
        tokens_per_second=batch * sequence_length / time.seconds,
        mfu=flops / time.seconds / num_gpus / (gpu.tflops * 1e12),
    )


def rank_layouts(config: Config, vocab_rows: int, sequence_length: int, num_gpus: int, gpu: Gpu) -> list[Layout]:
    """The best layout of each tensor x pipeline x context size: those that fit, fastest first, then the others."""
    found: dict[tuple[int, int, int], Layout] = {}
    for candidate in _candidates(config, sequence_length):
        try:
            layout = evaluate_layout(candidate, vocab_rows, sequence_length, num_gpus, gpu)
        except UserError:
            continue
        held = found.get(layout.family)
        if held is None or _order(layout) < _order(held):
            found[layout.family] = layout
    if not found:
        raise UserError(
            f"no layout of {num_gpus} GPUs divides train.global_batch_size {config.train.global_batch_size}, the heads "
            "and the layers of the model; change --gpus or the batch"
        )
    return sorted(found.values(), key=_order)


def digits(value: float, decimals: int) -> str:
    """With this number of decimals, or with two significant digits where these would show less."""
    return f"{value:,.{decimals}f}" if not value or abs(value) >= 10**-decimals * 10 else f"{value:.2g}"


def why_worse(layout: Layout, best: Layout, gpu: Gpu) -> str:
    """One phrase: why `layout` is slower than `best`."""
    if not layout.fits:
        parts = {name: value for name, value in vars(layout.memory).items() if name not in ("context", "margin")}
        largest = max(parts, key=lambda name: parts[name])
        return f"{layout.memory.total / 1e9:.0f} GB do not fit into {gpu.memory_gb:.0f}, most of it {largest}"
    own, other = vars(layout.time), vars(best.time)
    more = {name: own[name] - other[name] for name in own if isinstance(own[name], float)}
    cause = max(more, key=lambda name: more[name])
    return f"{layout.time.seconds / best.time.seconds - 1:+.0%}, most by {cause} (+{digits(more[cause], 2)} s)"


def checkpoint_cost(layout: Layout, vocab_rows: int, num_gpus: int, gpu: Gpu) -> dict[str, float]:
    """Host bytes and stall of one save on the rank that holds most.

    That rank gathers the optimizer of its model part over the data-parallel ranks, and copies it and the weights to the
    host.
    """
    parallel = layout.config.parallel
    state = state_bytes(layout.config, vocab_rows, Position.of(layout.config, 0, num_gpus))
    optimizer = state["optimizer"] * (num_gpus // (parallel.tensor * parallel.pipeline))
    held, received = optimizer + state["weights"], optimizer - state["optimizer"]
    return {"host_bytes": held, "stall_seconds": held / HOST_COPY + received / (gpu.network * 1e9)}


def _candidates(config: Config, sequence_length: int) -> Iterator[Config]:
    sizes = (1, 2, 4, 8, 16)
    contexts = (1, 2, 4, 8) if sequence_length >= LONG_CONTEXT else (1,)
    micro_batches = sorted({*(2**power for power in range(8)), config.train.micro_batch_size})
    recomputes: tuple[Literal["none", "full"], ...] = ("none", "full")
    for tensor, pipeline, parts, context, micro, again in product(
        [size for size in sizes if size <= GPUS_PER_NODE], sizes, (1, 2, 4), contexts, micro_batches, recomputes
    ):
        try:
            yield replace(
                config,
                parallel=replace(
                    config.parallel,
                    tensor=tensor,
                    sequence=tensor > 1 and sequence_length % (tensor * context) == 0,
                    pipeline=pipeline,
                    pipeline_layers=[],
                    virtual_pipeline=parts,
                    context=context,
                    recompute=again,
                    recompute_interval=1,
                    overlap_grad_reduce=True,
                    overlap_param_gather=True,
                ),
                train=replace(config.train, micro_batch_size=micro),
            )
        except UserError:
            continue


def _order(layout: Layout) -> tuple[bool, float]:
    return (not layout.fits, layout.time.seconds if layout.fits else layout.memory.total)


PARTS = 12
"""Layouts shown, best first."""


def draw(layouts: list[Layout], gpu: Gpu, path: Path) -> None:
    """PNG of stacked bars: GB of the fullest GPU on the left, seconds of a step on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = layouts[:PARTS][::-1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 1.6 + 0.42 * len(shown)), sharey=True)
    _bars(left, shown, lambda layout: vars(layout.memory), 1e9)
    left.axvline(gpu.memory_gb, color="black", linestyle="--", linewidth=1)
    left.set(title="memory of the fullest GPU", xlabel=f"GB (dashed: {gpu.name}, {gpu.memory_gb:.0f} GB)")
    _bars(right, shown, lambda layout: {k: v for k, v in vars(layout.time).items() if k != "traffic"}, 1.0)
    right.set(title="one optimizer step", xlabel="seconds")
    left.set_yticks(
        range(len(shown)), [f"{layout.name}{'' if layout.fits else '  (does not fit)'}" for layout in shown]
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.9 / (1 + 0.42 * len(shown))), ncols=5)
    figure.savefig(path, dpi=110, bbox_inches="tight", format="png")
    pyplot.close(figure)


def _bars(axes: Any, layouts: list[Layout], parts_of: Callable[[Layout], dict[str, float]], unit: float) -> None:
    rows = [parts_of(layout) for layout in layouts]
    starts = [0.0] * len(rows)
    for name in rows[0]:
        widths = [row[name] / unit for row in rows]
        if max(widths) > 0.002 * max(sum(row.values()) / unit for row in rows):
            axes.barh(range(len(rows)), widths, left=starts, label=name, height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
