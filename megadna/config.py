"""Every setting of a training run, in one place: frozen dataclasses, a docstring a field, checked at birth.

One YAML file in configs/ is one whole experiment; `--section.key value` on the command line overrides it.
"""

from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Literal

from megadna.config_data import BlendConfig, DataConfig, MaskingConfig, RateChange, TokenizerConfig
from megadna.config_train import TrainConfig
from megadna.errors import require, require_positive
from megadna.layout import check_layout, data_parallel_size

__all__ = [
    "BlendConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "FaultConfig",
    "LogConfig",
    "MaskingConfig",
    "ModelConfig",
    "ParallelConfig",
    "RateChange",
    "TokenizerConfig",
    "TrainConfig",
    "ValidationConfig",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder; by default pre-LN, RoPE, SwiGLU (the shape of AIDO.DNA), by other values up to the original BERT."""

    num_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_attention_heads: int = 12
    """Attention heads; hidden_size must divide by it."""
    num_query_groups: int | None = None
    """Heads of keys and values (grouped-query attention); null: as many as num_attention_heads."""
    ffn_hidden_size: int = 2048
    """Width of the feed-forward layer (SwiGLU: of the gate, and of the up projection)."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """`swiglu`: silu(gate) * up. `gelu`: one projection and the exact (erf) GELU, as BERT."""
    norm_placement: Literal["pre", "post"] = "pre"
    """`pre`: before each branch, and at the end. `post`: after each residual sum, and after the embeddings (BERT)."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of every norm."""
    qk_norm: bool = False
    """Norm of each head's query and key, before the rotation."""
    linear_bias: bool = True
    """Biases on the linear layers (norms and the decoder keep theirs)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """`rotary`: RoPE over the whole head dimension, non-interleaved. `learned`: a table added to the embeddings."""
    max_positions: int = 512
    """learned: rows of the table, the longest row of tokens."""
    token_types: int = 0
    """Rows of the token-type table (BERT: 2); every token is of type 0."""
    rotary_base: int = 10000
    """Base of the rotary position embedding."""
    rotary_interpolation: float = 1.0
    """rotary: positions are divided by it, so that a trained model reads longer contexts (arXiv:2306.15595)."""
    layernorm_epsilon: float = 1e-5
    """Epsilon of every norm."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (biases 0, norms 1)."""
    local_context: Literal["none", "convolution", "kmer", "both"] = "none"
    """What lies next to a base, given to the encoder: tables of the 5 bases to its left, to its right and around it
    (`kmer`), a depthwise convolution of 7 tokens before each attention (`convolution`), or `both`. Single nucleotides
    only."""
    dropout: float = 0.0
    """Dropout of embeddings, attention weights and residual branches."""
    attention: Literal["auto", "flash_attn", "sdpa", "transformer_engine", "eager"] = "auto"
    """Attention backend: `flash_attn` and `transformer_engine` (packages, GPU), `sdpa` (torch; flash kernels on CPU and
    GPU), `eager` (reference, S x S in memory). `auto` takes flash_attn where it runs, else sdpa."""

    def __post_init__(self) -> None:
        require_positive("model", self, "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"model.hidden_size ({self.hidden_size}) must be divisible by "
            f"model.num_attention_heads ({self.num_attention_heads})",
        )
        groups = self.query_groups
        require(
            groups > 0 and self.num_attention_heads % groups == 0,
            f"model.num_attention_heads ({self.num_attention_heads}) must be divisible by "
            f"model.num_query_groups ({groups})",
        )
        require(
            self.positions == "learned" or self.hidden_size // self.num_attention_heads % 2 == 0,
            "model.hidden_size / model.num_attention_heads must be even for rotary positions, got "
            f"{self.hidden_size // self.num_attention_heads}",
        )
        require(0.0 <= self.dropout < 1.0, f"model.dropout must lie in [0, 1), got {self.dropout}")
        require_positive("model", self, "max_positions", "rotary_base", "rotary_interpolation", "layernorm_epsilon")
        require(self.token_types >= 0, f"model.token_types must not be negative, got {self.token_types}")

    @property
    def query_groups(self) -> int:
        """Heads of keys and values."""
        return self.num_attention_heads if self.num_query_groups is None else self.num_query_groups

    @property
    def head_size(self) -> int:
        """Dimension of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_context_tables(self) -> bool:
        """Whether tables of the bases around a token are added to its embedding."""
        return self.local_context in ("kmer", "both")

    @property
    def has_convolutions(self) -> bool:
        """Whether a convolution comes before each attention."""
        return self.local_context in ("convolution", "both")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is split; the data-parallel size is what remains of the ranks."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share each layer."""
    pipeline: int = 1
    """Pipeline-parallel size: consecutive stages of layers."""
    pipeline_layers: list[int] = field(default_factory=list)
    """Layers of each stage where they are not equal, as [11, 11, 10]; empty: model.num_layers / pipeline."""
    virtual_pipeline: int = 1
    """Groups of layers per stage (interleaved schedule): less idle time, more messages."""
    context: int = 1
    """Context-parallel size: ranks that share each sequence."""
    sequence: bool = False
    """Sequence parallelism: with tensor > 1, norms and residuals are split along the sequence."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, those of attention, or those of whole layers."""
    recompute_interval: int = 1
    """recompute full: one layer in so many is recomputed; 1 recomputes all."""
    overlap_grad_reduce: bool = False
    """Sum gradients over the data-parallel ranks while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass already runs; needs overlap_grad_reduce."""

    @property
    def model_size(self) -> int:
        """Ranks that hold one replica of the model between them."""
        return self.tensor * self.pipeline * self.context

    @property
    def sequence_multiple(self) -> int:
        """What the sequence length must be divisible by."""
        return self.context * (self.tensor if self.sequence else 1)

    def __post_init__(self) -> None:
        require_positive("parallel", self, "tensor", "pipeline", "virtual_pipeline", "context", "recompute_interval")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and in which precision it runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where there is one."""
    num_processes: int = 1
    """Ranks to start on this machine when neither torchrun nor srun did."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16`: bf16 weights with fp32 master weights, moments and gradient sums. `fp16`: the same with a dynamic loss
    scale, for cards without bf16."""
    dry_run: str = ""
    """RANK/RANKS, as 0/256: print parameters, shards and memory of that rank of such a job, and train nothing."""
    timeout_minutes: float = 10.0
    """A collective that waits longer than this ends the job."""

    def __post_init__(self) -> None:
        require_positive("engine", self, "num_processes", "timeout_minutes")


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What to do about updates that must not be applied."""

    max_skipped: int = 3
    """Steps with a non-finite loss or gradient in a row, after which the run goes back to its last checkpoint."""
    max_rollbacks: int = 2
    """Roll-backs after which one more ends the run."""
    spike_zscore: float = 0.0
    """Skip a step whose loss or gradient norm is this many robust deviations above the last 100; 0 skips none."""

    def __post_init__(self) -> None:
        require_positive("faults", self, "max_skipped")
        require(self.max_rollbacks >= 0, f"faults.max_rollbacks must not be negative, got {self.max_rollbacks}")
        require(self.spike_zscore >= 0, f"faults.spike_zscore must not be negative, got {self.spike_zscore}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    interval: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 3
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Keep every N-th step permanently; 0: none."""
    keep_best: int = 1
    """Best checkpoints by validation bits per base kept."""
    asynchronous: bool = True
    """Train on while shards are written; the stall is the copy to host memory."""
    init_from: str = ""
    """Start from the weights of this run or checkpoint: at step 0, with new data, schedule, seed or longer context."""
    optimizer_format: Literal["reshardable", "fast"] = "reshardable"
    """`reshardable`: any layout resumes it; the stall gathers the optimizer over the data-parallel ranks. `fast`: only
    their number may change. What ends a run or is kept for ever or as best is always reshardable."""
    max_failed: int = 0
    """Saves that fail in a row after which the run ends; 0 trains on whatever happens."""

    def __post_init__(self) -> None:
        require_positive("checkpoint", self, "interval", "keep_last")
        require(self.keep_every >= 0, f"checkpoint.keep_every must not be negative, got {self.keep_every}")
        require(self.max_failed >= 0, f"checkpoint.max_failed must not be negative, got {self.max_failed}")
        require(self.keep_best >= 0, f"checkpoint.keep_best must not be negative, got {self.keep_best}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Masked bits per base on fixed samples and fixed masks."""

    interval: int = 100
    """Steps between validations; 0 validates only at the end."""
    samples: int = 128
    """Samples (windows of the context) of the validation split, spread evenly over it."""
    micro_batch_size: int = 8
    """Samples per rank and forward pass."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further datasets by name, as {human: datasets/human}, whose valid split is validated too, from step 0 on."""

    def __post_init__(self) -> None:
        require_positive("validation", self, "samples", "micro_batch_size")
        bad = [name for name in self.extra if not name or not set(name) <= set(f"{ascii_letters}{digits}_.-")]
        require(not bad, f"validation.extra: {bad[:1]} is no name of letters, digits, _, . and -")
        require(self.interval >= 0, f"validation.interval must not be negative, got {self.interval}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    interval: int = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases as well (pip install 'megadna[wandb]'); WANDB_MODE=offline keeps it in RUN/wandb."""
    profile_steps: list[int] = field(default_factory=list)
    """First and last step of a torch profiler window of rank 0, as [10, 12]; written to RUN/profile. Empty: none."""
    memory_snapshot: bool = False
    """GPU: also record who allocates memory in these steps, for https://pytorch.org/memory_viz."""

    def __post_init__(self) -> None:
        require_positive("log", self, "interval")
        window = self.profile_steps
        require(
            not window or (len(window) == 2 and 1 <= window[0] <= window[1]),
            f"log.profile_steps must be a first and a last step, as [10, 12], got {window}",
        )
        require(bool(window) or not self.memory_snapshot, "log.memory_snapshot needs log.profile_steps")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    seed: int = 1234
    """Weights, sample order, strands, crops and masks all follow from it."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Nucleotides to ids."""
    data: DataConfig = field(default_factory=DataConfig)
    """Dataset, masking, loader."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Device, ranks, precision."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """Bad updates."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logs."""

    def __post_init__(self) -> None:
        length = self.data.sequence_length
        require(
            self.model.positions == "rotary" or length == "auto" or length <= self.model.max_positions,
            f"data.sequence_length ({length}) exceeds model.max_positions ({self.model.max_positions})",
        )
        require(
            self.model.local_context == "none" or self.tokenizer.kind == "nucleotide",
            f"model.local_context {self.model.local_context} needs tokenizer.kind nucleotide, got "
            f"{self.tokenizer.kind}, whose tokens hold the bases around them already; set model.local_context none",
        )
        window, steps = self.log.profile_steps, self.train.steps
        require(not window or window[1] <= steps, f"log.profile_steps {window} end behind train.steps ({steps})")
        check_layout(self)

    def data_parallel_size(self, world_size: int) -> int:
        """Data-parallel size that `world_size` ranks leave; UserError with the numbers where they do not divide."""
        return data_parallel_size(self, world_size)
