"""Where a run computes, and which layouts are possible: tensor x pipeline x context x data ranks.

In:  the keys of `engine` and `parallel`, numbers of the model and the batch, and the number of ranks.
Out: nothing, or one UserError with the numbers and the remedy, before any process starts.
Every layout that passes is proved equal to one rank by the parity tests.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from megadna.errors import require, require_positive


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Device, ranks and precision."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU if there is one."""
    num_processes: int = 1
    """Ranks to start on this machine when neither torchrun nor srun did."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16`: bf16 weights with fp32 master weights, moments and gradient sums. `fp16`: the same with a dynamic loss
    scale, for cards without bf16."""
    dry_run: str = ""
    """RANK/RANKS, as 0/256: print parameters, shards and memory of that rank of such a job instead of training."""
    timeout_minutes: float = 10.0
    """A collective that waits longer than this ends the job."""

    def __post_init__(self) -> None:
        require_positive("engine", self, "num_processes", "timeout_minutes")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is split; the data-parallel size is what remains of the ranks."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share each layer."""
    pipeline: int = 1
    """Pipeline-parallel size: consecutive stages of layers."""
    pipeline_layers: list[int] = field(default_factory=list)
    """Layers of each stage if they are not equal, as [11, 11, 10]; empty: model.num_layers / pipeline."""
    virtual_pipeline: int = 1
    """Groups of layers per stage (interleaved schedule): less idle time, more messages."""
    context: int = 1
    """Context-parallel size: ranks that share each sequence."""
    sequence: bool = False
    """Sequence parallelism: with tensor > 1, norms and residuals are split along the sequence."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, those of attention, or those of whole layers."""
    recompute_interval: int = 1
    """recompute full: every N-th layer is recomputed; 1 recomputes all."""
    overlap_grad_reduce: bool = False
    """Sum gradients over the data-parallel ranks while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass already runs; needs overlap_grad_reduce."""

    def __post_init__(self) -> None:
        require_positive("parallel", self, "tensor", "pipeline", "virtual_pipeline", "context", "recompute_interval")
        require(not self.sequence or self.tensor > 1, "parallel.sequence needs parallel.tensor above 1")
        require(
            self.overlap_grad_reduce or not self.overlap_param_gather,
            "parallel.overlap_param_gather needs parallel.overlap_grad_reduce",
        )
        require(
            self.recompute == "full" or self.recompute_interval == 1,
            f"parallel.recompute_interval ({self.recompute_interval}) needs parallel.recompute full",
        )
        require(
            self.virtual_pipeline == 1 or self.pipeline > 1,
            f"parallel.virtual_pipeline ({self.virtual_pipeline}) needs parallel.pipeline above 1, got {self.pipeline}",
        )
        require(
            not self.pipeline_layers or self.virtual_pipeline == 1,
            "parallel.pipeline_layers and parallel.virtual_pipeline exclude each other; drop one",
        )

    @property
    def model_size(self) -> int:
        """Ranks that hold one replica of the model between them."""
        return self.tensor * self.pipeline * self.context

    @property
    def sequence_multiple(self) -> int:
        """What the sequence length must be divisible by."""
        return self.context * (self.tensor if self.sequence else 1)

    def check_model(self, model: Any, vocabulary_multiple: int) -> None:
        """UserError if the model (a ModelConfig) cannot be split."""
        num_layers = model.num_layers
        split = {"num_attention_heads": model.num_attention_heads, "num_query_groups": model.query_groups}
        for key, value in {**split, "ffn_hidden_size": model.ffn_hidden_size}.items():
            require(
                value % self.tensor == 0,
                f"model.{key} ({value}) must be divisible by parallel.tensor ({self.tensor})",
            )
        require(
            vocabulary_multiple % self.tensor == 0,
            f"parallel.tensor ({self.tensor}) must divide {vocabulary_multiple}: the vocabulary inside the model is a "
            "multiple of it",
        )
        stages, uneven = self.pipeline, self.pipeline_layers
        if uneven:
            require(
                len(uneven) == stages and min(uneven) > 0 and sum(uneven) == num_layers,
                f"parallel.pipeline_layers {uneven} must be {stages} positive numbers (parallel.pipeline) with the sum "
                f"{num_layers} (model.num_layers)",
            )
            return
        balanced = [num_layers // stages + (stage < num_layers % stages) for stage in range(stages)]
        require(
            num_layers % stages == 0,
            f"model.num_layers ({num_layers}) must be divisible by parallel.pipeline ({stages}), or split unevenly, as "
            f"--parallel.pipeline_layers '{balanced}'",
        )
        require(
            num_layers % (stages * self.virtual_pipeline) == 0,
            f"model.num_layers ({num_layers}) must be divisible by parallel.pipeline ({stages}) x "
            f"parallel.virtual_pipeline ({self.virtual_pipeline})",
        )

    def data_size(self, world_size: int, global_batch: int, micro_batch: int) -> int:
        """Data-parallel size with `world_size` ranks; UserError with the numbers if ranks or batch do not divide."""
        require(
            world_size % self.model_size == 0,
            f"{world_size} ranks cannot be split into groups of {self.model_size} (parallel.tensor {self.tensor} x "
            f"pipeline {self.pipeline} x context {self.context}); change `parallel` or the number of ranks",
        )
        size = world_size // self.model_size
        micro_batches, rest = divmod(global_batch, size * micro_batch)
        require(
            not rest,
            f"train.global_batch_size ({global_batch}) must be divisible by train.micro_batch_size ({micro_batch}) x "
            f"{size} data-parallel ranks: take fewer ranks, or --train.global_batch_size "
            f"{(micro_batches + 1) * size * micro_batch}",
        )
        require(
            self.virtual_pipeline == 1 or micro_batches % self.pipeline == 0,
            f"parallel.virtual_pipeline needs a number of micro-batches that parallel.pipeline ({self.pipeline}) "
            f"divides, got {micro_batches} (train.global_batch_size {global_batch} / {size} data-parallel ranks / "
            f"train.micro_batch_size {micro_batch})",
        )
        return size
