"""The part of the config that says how the model is optimised: AdamW, batch size, schedules."""

import math
from dataclasses import dataclass, field
from typing import Literal

from megadna.errors import require, require_positive


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation: AdamW, warm-up, schedule."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    micro_batch_size: int = 4
    """Samples per rank and forward pass."""
    global_batch_size: int = 32
    """Samples per optimizer step over all ranks."""
    batch_rampup: list[int] = field(default_factory=list)
    """[first global batch, increment, samples], as [32, 32, 100000]: over so many samples the batch grows to
    global_batch_size in equal steps. Empty: it is global_batch_size from the start."""
    lr: float = 4e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_samples: int = 0
    """Samples of linear warm-up, where they are said and not the steps."""
    warmup_fraction: float = 0.0
    """Share of the steps of the schedule (decay_steps, else `steps`) that are linear warm-up: it follows an override of
    train.steps."""
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = "cosine"
    """Shape of the decay from lr to min_lr: a function of the samples consumed. `wsd`: constant, then the decay of
    wsd_decay (arXiv:2404.06395). `inverse_sqrt`: lr sqrt(warm-up / samples), not below min_lr."""
    decay_steps: int | None = None
    """Step at which the decay arrives at min_lr; null: `steps`. A later one: the run stops before the decay is over."""
    wsd_decay_steps: int = 0
    """wsd: steps of the decay, which ends at decay_steps."""
    wsd_decay: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """wsd: its shape; minus_sqrt is 1 - sqrt(share) (arXiv:2405.18392)."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on biases and norms."""
    end_weight_decay: float | None = None
    """Weight decay at the last step, where it grows from weight_decay to it; null: it stays."""
    weight_decay_schedule: Literal["linear", "cosine"] = "linear"
    """Shape of that growth over the samples."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays."""
    eps: float = 1e-8
    """AdamW epsilon."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    exit_after_minutes: float = 0.0
    """Save and exit for requeue after so long; 0 trains on."""

    def __post_init__(self) -> None:
        require_positive("train", self, "steps", "micro_batch_size", "global_batch_size", "lr", "eps")
        decay_steps = self.steps if self.decay_steps is None else self.decay_steps
        require(decay_steps > 0, f"train.decay_steps must be positive, got {decay_steps}")
        given = [key for key in ("warmup_steps", "warmup_samples", "warmup_fraction") if getattr(self, key)]
        require(
            len(given) < 2,
            f"train.{' and train.'.join(given)} exclude each other; drop one, or set it to 0",
        )
        require(
            0.0 <= self.warmup_fraction < 1.0, f"train.warmup_fraction must lie in [0, 1), got {self.warmup_fraction}"
        )
        require(
            0 <= self.warmup_steps < decay_steps,
            f"train.warmup_steps must lie in 0..steps - 1 (of the decay), got {self.warmup_steps} of {decay_steps}; "
            f"add --train.warmup_steps {decay_steps // 10}",
        )
        self._check_rampup()
        samples = self.samples_after(decay_steps)
        require(
            0 <= self.warmup_samples < samples,
            f"train.warmup_samples must lie below the {samples} samples of the decay, got {self.warmup_samples}",
        )
        require(
            (0 < self.wsd_decay_steps <= decay_steps) if self.schedule == "wsd" else not self.wsd_decay_steps,
            f"train.wsd_decay_steps belongs to schedule wsd and lies in 1..{decay_steps}, got {self.wsd_decay_steps} "
            f"under {self.schedule}",
        )
        require(
            self.schedule != "inverse_sqrt" or self.samples_of_warmup > 0,
            "train.schedule inverse_sqrt needs a warm-up, from whose end it decays; give train.warmup_steps",
        )
        require(
            self.end_weight_decay is None or self.end_weight_decay >= self.weight_decay >= 0,
            f"train.end_weight_decay ({self.end_weight_decay}) must not be below weight_decay ({self.weight_decay})",
        )
        require(0 <= self.min_lr <= self.lr, f"train.min_lr must lie in 0..lr, got {self.min_lr}")
        require(self.clip_grad >= 0, f"train.clip_grad must not be negative, got {self.clip_grad}")

    def _check_rampup(self) -> None:
        if not self.batch_rampup:
            return
        require(
            len(self.batch_rampup) == 3 and min(self.batch_rampup) > 0,
            "train.batch_rampup must be first batch, increment and samples, as [32, 32, 100000], got "
            f"{self.batch_rampup}",
        )
        start, increment, _ = self.batch_rampup
        require(
            start < self.global_batch_size and (self.global_batch_size - start) % increment == 0,
            f"train.batch_rampup {self.batch_rampup} does not lead to train.global_batch_size "
            f"({self.global_batch_size}): {start} plus a multiple of {increment} must be it",
        )

    def batch_size(self, consumed_samples: int) -> int:
        """Samples of the step that follows `consumed_samples`: megatron's ramp-up, in whole numbers."""
        if not self.batch_rampup or consumed_samples >= self.batch_rampup[2]:
            return self.global_batch_size
        start, increment, samples = self.batch_rampup
        return start + consumed_samples * ((self.global_batch_size - start) // increment) // samples * increment

    @property
    def samples_of_warmup(self) -> int:
        """Samples of linear warm-up, whichever key says it; a fraction above 0 is at least one step where there are
        two."""
        if self.warmup_samples:
            return self.warmup_samples
        end = self.steps if self.decay_steps is None else self.decay_steps
        share = min(end - 1, math.ceil(self.warmup_fraction * end))
        return self.samples_after(self.warmup_steps or share)

    def samples_after(self, steps: int) -> int:
        """Samples that the first `steps` steps consume."""
        consumed = 0
        while steps > 0 and self.batch_size(consumed) < self.global_batch_size:
            consumed += self.batch_size(consumed)
            steps -= 1
        return consumed + steps * self.global_batch_size
