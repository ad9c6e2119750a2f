"""Every setting of a training run: frozen dataclasses, a docstring for each field, checked when they are built.

One YAML file in configs/ is one whole experiment; `--section.key value` on the command line overrides it.
"""

import math
from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Literal

from megadna.errors import require, require_not_negative, require_positive, require_share
from megadna.layout import EngineConfig, ParallelConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How nucleotides become token ids; done at load time, so one dataset serves every tokenizer."""

    kind: Literal["nucleotide", "kmer", "sentencepiece"] = "nucleotide"
    """`nucleotide`: one token a base, AIDO.DNA's vocabulary of 16. `kmer`: k bases a token. `sentencepiece`: BPE."""
    k: int = 6
    """kmer: bases per token, 1 to 8."""
    stride: int = 1
    """kmer: bases from one token to the next: 1 (overlapping, as DNABERT) or k (as Nucleotide Transformer)."""
    layout: Literal["dnabert", "bionemo", "multimolecule"] = "dnabert"
    """kmer: vocabulary: its special tokens and the order of the bases."""
    model: str = ""
    """sentencepiece: folder written by `megadna train-tokenizer`."""

    def __post_init__(self) -> None:
        require(1 <= self.k <= 8, f"tokenizer.k must lie in 1..8, got {self.k}")
        require(self.stride in (1, self.k), f"tokenizer.stride must be 1 or k ({self.k}), got {self.stride}")
        require(
            (self.kind == "sentencepiece") == bool(self.model),
            "tokenizer.model is the folder of a sentencepiece tokenizer: give it with that kind, and only with it",
        )


@dataclass(frozen=True, kw_only=True)
class RateChange:
    """Another masking rate from a step on."""

    step: int
    """Optimizer steps before the new rate."""
    fraction: float
    """The new rate."""
    sample: int | None = None
    """First sample with the new rate: computed once from step and batch size, and kept on resume."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens the model must predict, and what it sees instead (BERT, arXiv:1810.04805, section 3.1)."""

    fraction: float = 0.15
    """Share of the maskable tokens chosen for prediction."""
    mask_share: float = 0.8
    """Share of the chosen tokens replaced by [MASK]."""
    random_share: float = 0.1
    """Share of the chosen tokens replaced by another nucleotide; the rest is kept."""
    mode: Literal["auto", "token", "span", "dnabert"] = "auto"
    """`token`: each independently. `span`: bases are hidden, and every token over them. `dnabert`: DNABERT's spans,
    leaks included. `auto`: span for overlapping k-mers, token otherwise."""
    hidden_bases: int = 1
    """span: bases that one span hides; it masks hidden_bases + k - 1 tokens."""
    schedule: list[RateChange] = field(default_factory=list)
    """Rates that replace `fraction` later in the run, by rising step."""

    def __post_init__(self) -> None:
        require(0.0 < self.fraction < 1.0, f"data.masking.fraction must lie in (0, 1), got {self.fraction}")
        require_share("data.masking.mask_share", self.mask_share)
        require_share("data.masking.random_share", self.random_share)
        total = self.mask_share + self.random_share
        require(total <= 1.0 + 1e-9, f"data.masking.mask_share + random_share must not exceed 1, got {total:g}")
        require_positive("data.masking", self, "hidden_bases")
        steps = [change.step for change in self.schedule]
        require(steps == sorted(set(steps)), f"data.masking.schedule: steps must rise, got {steps}")
        for change in self.schedule:
            require(0.0 < change.fraction < 1.0, f"data.masking.schedule: fraction {change.fraction} not in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Proportions in which groups of genomes are read; without it every base comes once per epoch."""

    by: str = ""
    """What a group is: `dataset`, `source`, `species` or another column of the sample sheet; empty: no blending."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each group by name, scaled to sum 1; empty: proportional to bases."""

    def __post_init__(self) -> None:
        require(bool(self.by) or not self.weights, "data.blend.weights needs data.blend.by")
        for name, weight in self.weights.items():
            require(weight > 0, f"data.blend.weights: {name} must be positive, got {weight}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model reads."""

    path: list[str] | str = ""
    """Dataset folder written by `megadna preprocess`."""
    sequence_length: int | Literal["auto"] = "auto"
    """Tokens per sample, [CLS] and [SEP] included; `auto` = the dataset's chunk length (4000 nt -> 4000 tokens)."""
    num_workers: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    reverse_complement: float = 0.5
    """Probability that a sample is read from the other strand."""
    variable_length: float = 0.0
    """Share of samples cut to a length drawn uniformly, as DNABERT's 0.5."""
    packing: bool = False
    """Put several short chunks into one row instead of padding each."""
    lower_case_weight: float = 1.0
    """Weight of soft-masked (lower-case) bases in the loss."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Masked language modelling."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    """Proportions of datasets, genomes or species."""

    def __post_init__(self) -> None:
        length = self.sequence_length
        require(length == "auto" or length >= 8, f"data.sequence_length must be at least 8, got {length}")
        require_not_negative("data", self, "num_workers")
        for key in ("reverse_complement", "variable_length", "lower_case_weight"):
            require_share(f"data.{key}", getattr(self, key))
        require(not (self.packing and self.variable_length), "data.packing and data.variable_length exclude each other")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder; by default pre-LN, RoPE, SwiGLU (AIDO.DNA's architecture); other values give others, down to the
    original BERT."""

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
    """learned: rows of the table, which is the longest sequence."""
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
    """`kmer`: tables of the 5 bases to the left of a base, to its right and around it, added to its embedding.
    `convolution`: over 31 tokens, in the first two layers. `both`. Single nucleotides only (model/local_context.py)."""
    dropout: float = 0.0
    """Dropout of embeddings, attention weights and residual branches."""
    attention: Literal["auto", "flash_attn", "sdpa", "transformer_engine", "eager"] = "auto"
    """Attention backend: `flash_attn` and `transformer_engine` (packages, GPU), `sdpa` (torch; flash kernels on CPU and
    GPU), `eager` (reference, S x S in memory). `auto`: flash_attn if it runs, else sdpa."""

    def __post_init__(self) -> None:
        require_positive("model", self, "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
        size, heads, groups = self.hidden_size, self.num_attention_heads, self.query_groups
        require(
            size % heads == 0,
            f"model.hidden_size ({size}) must be divisible by model.num_attention_heads ({heads})",
        )
        require(
            groups > 0 and heads % groups == 0,
            f"model.num_attention_heads ({heads}) must be divisible by model.num_query_groups ({groups})",
        )
        require(
            self.positions == "learned" or size // heads % 2 == 0,
            f"model.hidden_size / model.num_attention_heads must be even for rotary positions, got {size // heads}",
        )
        require(0.0 <= self.dropout < 1.0, f"model.dropout must lie in [0, 1), got {self.dropout}")
        require_positive("model", self, "max_positions", "rotary_base", "rotary_interpolation", "layernorm_epsilon")
        require_not_negative("model", self, "token_types")

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
        """Whether the first layers have a convolution beside their attention."""
        return self.local_context in ("convolution", "both")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation: AdamW or Muon, warm-up, schedule."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    micro_batch_size: int = 4
    """Samples per rank and forward pass."""
    global_batch_size: int = 32
    """Samples per optimizer step over all ranks."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What updates the matrices of the layers; all else (embeddings, norms, biases, local context, head) has AdamW."""
    lr: float = 4e-4
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.01
    """Peak learning rate of Muon; it follows the schedule of lr in proportion."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_fraction: float = 0.0
    """Warm-up as a share of the steps of the schedule (decay_steps, else `steps`), so that it follows train.steps."""
    schedule: Literal["cosine", "linear", "trapezoid", "constant"] = "cosine"
    """Shape of the decay from lr to min_lr after the warm-up; `trapezoid`: lr, then a linear fall in the last fifth."""
    decay_steps: int | None = None
    """Step at which the decay reaches min_lr; null: `steps`. If it is later, the run stops before the decay is over."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on biases and norms."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays."""
    eps: float = 1e-8
    """AdamW epsilon."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    spike_zscore: float = 0.0
    """Skip a step whose loss or gradient norm is this many robust deviations above the last 100; 0 skips none."""
    exit_after_minutes: float = 0.0
    """Save and exit for requeue after this time; 0 trains on."""

    def __post_init__(self) -> None:
        require_positive("train", self, "steps", "micro_batch_size", "global_batch_size", "lr", "muon_lr", "eps")
        end = self.end_of_decay
        require(end > 0, f"train.decay_steps must be positive, got {end}")
        both = self.warmup_steps and self.warmup_fraction
        require(not both, "train.warmup_steps and train.warmup_fraction exclude each other; drop one, or set it to 0")
        share = self.warmup_fraction
        require(0.0 <= share < 1.0, f"train.warmup_fraction must lie in [0, 1), got {share}")
        what = f"train.warmup_steps must lie in 0..steps - 1 (of the decay), got {self.warmup_steps} of {end}"
        require(0 <= self.warmup_steps < end, f"{what}; add --train.warmup_steps {end // 10}")
        require(0 <= self.min_lr <= self.lr, f"train.min_lr must lie in 0..lr, got {self.min_lr}")
        require_not_negative("train", self, "weight_decay", "clip_grad", "spike_zscore")

    @property
    def end_of_decay(self) -> int:
        """Step at which the decay ends."""
        return self.steps if self.decay_steps is None else self.decay_steps

    @property
    def samples_of_warmup(self) -> int:
        """Samples of linear warm-up; a fraction above 0 gives at least one step if the decay has two or more."""
        share = min(self.end_of_decay - 1, math.ceil(self.warmup_fraction * self.end_of_decay))
        return self.samples_after(self.warmup_steps or share)

    @property
    def samples_of_fall(self) -> int:
        """Samples over which a trapezoid falls: the last fifth of its schedule, or what the warm-up leaves of it."""
        whole = self.samples_after(self.end_of_decay)
        return min(math.ceil(whole / 5), whole - self.samples_of_warmup)

    def samples_after(self, steps: int) -> int:
        """Samples that the first `steps` steps consume."""
        return steps * self.global_batch_size


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
    """Best checkpoints kept, by validation bits per base."""
    init_from: str = ""
    """Start from the weights of this run or checkpoint: at step 0, with new data, schedule, seed or longer context."""
    max_failed: int = 0
    """Failed saves in a row after which the run ends; 0 never ends it."""

    def __post_init__(self) -> None:
        require_positive("checkpoint", self, "interval", "keep_last")
        require_not_negative("checkpoint", self, "keep_every", "keep_best", "max_failed")


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
        require(not bad, f"validation.extra: name {bad[:1]}: use letters, digits, _, . and - only")
        require_not_negative("validation", self, "interval")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged while training."""

    interval: int = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases as well (pip install 'megadna[wandb]'); WANDB_MODE=offline keeps it in RUN/wandb."""

    def __post_init__(self) -> None:
        require_positive("log", self, "interval")


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
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logs."""

    def __post_init__(self) -> None:
        length = self.data.sequence_length
        rows = self.model.max_positions
        fits = self.model.positions == "rotary" or length == "auto" or length <= rows
        require(fits, f"data.sequence_length ({length}) exceeds model.max_positions ({rows})")
        local, kind = self.model.local_context, self.tokenizer.kind
        require(
            local == "none" or kind == "nucleotide",
            f"model.local_context {local} needs tokenizer.kind nucleotide, got {kind}; set model.local_context none",
        )
        multiple = 16 if kind == "nucleotide" else 64  # model/shapes.py
        self.parallel.check_model(self.model, vocabulary_multiple=multiple)

    def data_parallel_size(self, world_size: int) -> int:
        """Data-parallel size with `world_size` ranks; UserError with the numbers if they do not divide."""
        return self.parallel.data_size(world_size, self.train.global_batch_size, self.train.micro_batch_size)
