"""The effect of every substitution of a base, by a masked language model or by a fine-tuned head.

In:  stretches with the bases of context that the model reads.
Out: effects [L, 4] of each of L bases (columns A, C, G, T; [L, 4 K] of a head with K outputs, output by output); 0 for
     the base that is there, NaN at N, and where no token of A, C, G and T alone covers a base.

Language model: ln p(base) - ln p(base that is there), both at the base hidden in the middle of a window; at the ends of
a contig the window is moved inwards. Both strands: the mean of the two ln p. A head: its output for the changed
sequence minus that for the sequence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.mutagenesis_options import MutateOptions
from megadna.downstream.options import PredictOptions
from megadna.downstream.predict import Predictor
from megadna.errors import UserError, require
from megadna.genome.records import Stretch, reverse_complement

# Shapes: L bases of a stretch, 4 the bases A C G T, K outputs of a head, N sequences.

WHOLE = 1 << 62
"""Context: all of a stretch."""


class MaskedEffects:
    """Of a masked language model: one masked pass a base and strand."""

    columns = ("llr",)
    unit = "ln p(base) - ln p(base that is there)"
    is_language_model = True
    context: int
    """Bases of its contig that a region needs on either side."""
    around: int
    """Bases that a piece of a region needs on either side."""

    def __init__(self, options: MutateOptions) -> None:
        self.model = MaskedBases(
            options.model,
            max_tokens=options.max_tokens,
            trust_remote_code=options.trust_remote_code,
            batch_tokens=options.batch_tokens,
        )
        most = self.model.max_bases
        require(options.window <= most, f"--window {options.window}: the context of {options.model} holds {most} bases")
        self.window, k = options.window or most - (most + 1) % 2, self.model.tokenizer.bases_per_token
        require(self.window >= k, f"--window {self.window}: a token of {options.model} covers {k} bases; raise it")
        self.context = self.around = self.window - 1
        self.is_both = options.strand == "both"

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return self.window * (1 + self.is_both)

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self.is_both else "one strand"
        return f"each base hidden in the middle of up to {self.window:,} bases, {strands}"

    def check(self, stretch: Stretch) -> None:
        """Any region or record fits."""

    def __call__(self, stretch: Stretch) -> np.ndarray:
        """ln p(base) - ln p(base that is there), fp32 [L, 4]."""
        codes_L = _codes(stretch)
        known = np.flatnonzero(codes_L < 4)
        windows, hidden = self._windows(stretch, known)
        log_p_L4 = np.full((len(codes_L), 4), np.nan, np.float32)
        if len(known):
            log_p_L4[known] = np.concatenate(self.model.hidden(windows, [[at] for at in hidden]))
        if self.is_both and len(known):
            others = [len(bases) - 1 - at for bases, at in zip(windows, hidden, strict=True)]
            found = self.model.hidden([reverse_complement(bases) for bases in windows], [[at] for at in others])
            log_p_L4[known] = (log_p_L4[known] + np.concatenate(found)[:, ::-1]) / 2  # A C G T are T G C A there
        log_p_L4[known] -= log_p_L4[known, codes_L[known]][:, None]
        return log_p_L4

    def _windows(self, stretch: Stretch, indices: np.ndarray) -> tuple[list[str], list[int]]:
        """The window of each base, and where in it the base is."""
        at = stretch.before + indices
        starts = np.clip(at - self.window // 2, 0, max(0, len(stretch.bases) - self.window)).tolist()
        windows = [stretch.bases[start : start + self.window] for start in starts]
        return windows, (at - starts).tolist()


class HeadEffects:
    """Of a fine-tuned model of sequences: three passes a base, and one for the sequence as it is."""

    is_language_model = False
    context = 0
    """Of the contig: none; the head reads the region as `megadna predict` reads it."""
    around = WHOLE

    def __init__(self, options: MutateOptions) -> None:
        require(
            options.window == 0, f"--window {options.window}: a fine-tuned model reads the whole region; leave it out"
        )
        run: dict[str, Any] = {"max_tokens": options.max_tokens, "batch_tokens": options.batch_tokens}
        self.predictor = Predictor(
            PredictOptions(
                model=options.model, input=options.input, trust_remote_code=options.trust_remote_code,
                precision="fp32", **run,
            )
        )  # fmt: skip
        if self.predictor.per_base:
            raise UserError(
                f"{options.model}: predicts every nucleotide; mutate reads a language model or a fine-tuned model of "
                "sequences, which has one output to compare"
            )
        fits = options.scale == "probability" or self.predictor.problem != "regression"
        require(fits, f"--scale {options.scale} is for classifiers; {options.model} predicts numbers")
        self._strand, self._scale, self._model = options.strand, options.scale, options.model
        self.columns = tuple(f"change_{name}" for name in self.predictor.names)

    @property
    def unit(self) -> str:
        """What an effect is."""
        what = {"regression": "the number", "single_label_classification": "p", "multi_label_classification": "p"}
        scale = "ln p/(1-p)" if self._scale == "log_odds" else what[self.predictor.problem]
        return f"change of {scale}"

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self._strand == "both" else "one strand"
        return f"{self.unit} by each substitution, {strands}"

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return 3 * len(stretch.bases) * (1 + (self._strand == "both"))

    def check(self, stretch: Stretch) -> None:
        """UserError if the model cannot read the region at once."""
        most = self.predictor.tokenizer.window_bases(stretch.bases)
        size = len(stretch.bases)
        require(
            size <= most,
            f"{stretch.name}:{stretch.start}-{stretch.end}: {size} bases, and the context of {self._model} holds "
            f"{most}; give shorter regions with --bed",
        )

    def __call__(self, stretch: Stretch) -> np.ndarray:
        """Output of the changed sequence minus output of the sequence, fp32 [L, 4 K]."""
        codes_L = _codes(stretch)
        indices = [(i, b) for i, code in enumerate(codes_L.tolist()) if code < 4 for b in range(4) if b != code]
        whole, changed = stretch.bases, []
        for i, b in indices:
            at = stretch.before + i
            changed.append(whole[:at] + BASES[b] + whole[at + 1 :])
        outputs_NK = self.outputs([whole, *changed])
        effects_LK4 = np.full((len(codes_L), len(self.columns), 4), np.nan, np.float32)
        known = np.flatnonzero(codes_L < 4)
        effects_LK4[known, :, codes_L[known]] = 0.0
        for (i, b), output_K in zip(indices, outputs_NK[1:], strict=True):
            effects_LK4[i, :, b] = output_K - outputs_NK[0]
        return effects_LK4.reshape(len(codes_L), -1)

    def outputs(self, sequences: Sequence[str]) -> np.ndarray:
        """The outputs [N, K] of sequences: numbers; of classes and labels p, or ln p/(1-p)."""
        run = [Stretch("", 0, len(bases), "+", bases) for bases in sequences]
        logits_NK = torch.from_numpy(np.stack(self.predictor.runner.strands(run, self._strand)))
        if self.predictor.problem == "regression":
            return logits_NK.numpy()
        if self.predictor.problem == "single_label_classification":
            log_p_NK = logits_NK.double().log_softmax(-1)
            logits_NK = log_p_NK - torch.log(-torch.expm1(log_p_NK.clamp(max=-1e-12)))
        return (logits_NK.sigmoid() if self._scale == "probability" else logits_NK).float().numpy()


Effects = MaskedEffects | HeadEffects


def load_effects(options: MutateOptions) -> Effects:
    """A language model's, or, if the folder is a fine-tuned model, its head's."""
    from megadna.downstream.encoder import load_config

    config = load_config(options.model, trust_remote_code=options.trust_remote_code)
    classes, known = " ".join(config.architectures or []), " ".join(getattr(config, "auto_map", None) or {})
    if "Classification" in classes or ("Classification" in known and "MaskedLM" not in classes + known):
        return HeadEffects(options)
    require(options.scale == "probability", f"--scale {options.scale} is for fine-tuned classifiers")
    return MaskedEffects(options)


def _codes(stretch: Stretch) -> np.ndarray:
    """Codes [L] of the stretch's bases, without context; 4 is N."""
    return base_codes(dna_of(stretch.bases[stretch.before : len(stretch.bases) - stretch.after]))
