"""The part of the config that says what the model reads: tokenizer, masking, blending, data."""

from dataclasses import dataclass, field
from typing import Literal

from megadna.errors import require, require_positive, require_share


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
    """kmer: whose vocabulary: special tokens and order of the bases."""
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
    """From a step on, another masking rate."""

    step: int
    """Optimizer steps before the new rate."""
    fraction: float
    """The new rate."""
    sample: int | None = None
    """First sample with the new rate: filled in once from step and batch size, and kept on resume."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens the model must predict, and what it sees instead (BERT, arXiv:1810.04805, section 3.1)."""

    fraction: float = 0.15
    """Share of the maskable tokens chosen for prediction."""
    mask_share: float = 0.8
    """Share of the chosen tokens replaced by [MASK]."""
    random_share: float = 0.1
    """Share of the chosen tokens replaced by another nucleotide; the rest stays as it is."""
    mode: Literal["auto", "token", "span", "dnabert"] = "auto"
    """`token`: each on its own. `span`: bases are hidden, and every token over them. `dnabert`: DNABERT's spans, leaks
    included. `auto`: span for overlapping k-mers, token otherwise."""
    hidden_bases: int = 1
    """span: bases that one span hides; it masks hidden_bases + k - 1 tokens."""
    exact: bool = False
    """token: choose the rounded share of each sample exactly, instead of each token with that probability."""
    choose_n: bool = False
    """token: let N be chosen as well."""
    schedule: list[RateChange] = field(default_factory=list)
    """Rates that replace `fraction` later in the run, by rising step."""

    def __post_init__(self) -> None:
        require(0.0 < self.fraction < 1.0, f"data.masking.fraction must lie in (0, 1), got {self.fraction}")
        require_share("data.masking.mask_share", self.mask_share)
        require_share("data.masking.random_share", self.random_share)
        require(
            self.mask_share + self.random_share <= 1.0 + 1e-9,
            f"data.masking.mask_share + random_share must not exceed 1, got {self.mask_share} + {self.random_share}",
        )
        require_positive("data.masking", self, "hidden_bases")
        steps = [change.step for change in self.schedule]
        require(steps == sorted(set(steps)), f"data.masking.schedule: steps must rise, got {steps}")
        for change in self.schedule:
            require(0.0 < change.fraction < 1.0, f"data.masking.schedule: fraction {change.fraction} not in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """In which proportions groups of genomes are read; without it every base comes once an epoch."""

    by: str = ""
    """What a group is: `dataset`, `source`, `species` or another column of the sample sheet; empty: no blending."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each group by name, scaled to sum 1; empty: by bases and temperature."""
    temperature: float = 1.0
    """Shares proportional to bases ^ (1 / temperature); 1 keeps the proportions, larger values even them out."""

    def __post_init__(self) -> None:
        require_positive("data.blend", self, "temperature")
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
    crop: Literal["windows", "random"] = "windows"
    """A chunk longer than a row gives consecutive windows, or one window at a random position."""
    variable_length: float = 0.0
    """Share of samples cut to a length drawn uniformly, as DNABERT's 0.5."""
    packing: bool = False
    """Put several short chunks into one row instead of padding each."""
    lower_case_weight: float = 1.0
    """Weight of soft-masked (lower-case) bases in the loss."""
    n_weight: float = 0.0
    """Weight of N in the loss, where masking.choose_n lets it be chosen."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Masked language modelling."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    """Proportions of datasets, genomes or species."""

    def __post_init__(self) -> None:
        if self.sequence_length != "auto":
            require(self.sequence_length >= 8, f"data.sequence_length must be at least 8, got {self.sequence_length}")
        require(self.num_workers >= 0, f"data.num_workers must not be negative, got {self.num_workers}")
        for key in ("reverse_complement", "variable_length", "lower_case_weight", "n_weight"):
            require_share(f"data.{key}", getattr(self, key))
        require(not (self.packing and self.variable_length), "data.packing and data.variable_length exclude each other")
