"""The effect of every substitution of a base, by a masked language model or by a fine-tuned head.

In:  stretches with the bases of context that the model reads.
Out: effects [L, 4] of each of L bases (columns A, C, G, T; [L, 4 K] of a head with K outputs, output by output); 0 for
     the base that is there, NaN at N, and where no token of A, C, G and T alone covers a base.

Language model: ln p(base) - ln p(base that is there), both at the base hidden in the middle of a window; at the ends of
a contig the window is moved inwards (records.centred_starts). Both strands: the mean of the two ln p.
A head: its output for the changed sequence minus that for the sequence.
What the JSON files of the folder show to be wrong is refused when the object is made, the rest by `load`, which imports
torch and loads the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.options import PredictOptions
from megadna.downstream.region_files import WHOLE, Region
from megadna.downstream.stated import (
    head_of,
    is_language_model,
    most_bases,
    read_config,
    require_context,
    require_window,
)
from megadna.errors import UserError, require
from megadna.genome.records import Stretch, centred_starts, reverse_complement

# Shapes: L bases of a stretch, 4 the bases A C G T, K outputs of a head, N sequences.


class MaskedEffects:
    """Of a masked language model: one masked pass a base and strand."""

    columns = ("llr",)
    unit = "ln p(base) - ln p(base that is there)"
    is_language_model = True
    context: int
    """Bases of its contig that a region needs on either side."""
    around: int
    """Bases that a piece of a region needs on either side."""

    def __init__(self, options: MutateOptions, config: dict[str, Any]) -> None:
        self.options, self.is_both = options, options.strand == "both"
        require(options.scale == "probability", f"--scale {options.scale} is for fine-tuned classifiers")
        require_window(options.window, most_bases(config, options.model, options.max_tokens), options.model)

    def load(self, regions: Sequence[Region]) -> None:
        """Load the model; UserError if the window does not fit. Regions: of any length."""
        from megadna.downstream.masked_bases import load_masked_bases

        options = self.options
        self.model = load_masked_bases(options)
        most, k = self.model.max_bases, self.model.tokenizer.bases_per_token
        require_window(options.window, most, options.model)
        self.window = options.window or most - (most + 1) % 2
        require(self.window >= k, f"--window {self.window}: a token of {options.model} covers {k} bases; raise it")
        self.context = self.around = self.window - 1

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return self.window * (1 + self.is_both)

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self.is_both else "one strand"
        return f"each base hidden in the middle of up to {self.window:,} bases, {strands}"

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
        starts = centred_starts(at, self.window, len(stretch.bases)).tolist()
        windows = [stretch.bases[start : start + self.window] for start in starts]
        return windows, (at - starts).tolist()


class HeadEffects:
    """Of a fine-tuned model of sequences: three passes a base, and one for the sequence as it is."""

    is_language_model = False
    context = 0
    """Of the contig: none; the head reads the region as `megadna predict` reads it."""
    around = WHOLE

    def __init__(self, options: MutateOptions, config: dict[str, Any], regions: Sequence[Region]) -> None:
        self.options, self._head = options, head_of(config, options.model)
        require(
            options.window == 0, f"--window {options.window}: a fine-tuned model reads the whole region; leave it out"
        )
        if self._head.per_base:
            raise UserError(
                f"{options.model}: predicts every nucleotide; mutate reads a language model or a fine-tuned model of "
                "sequences, which has one output to compare"
            )
        fits = options.scale == "probability" or self._head.problem != "regression"
        require(fits, f"--scale {options.scale} is for classifiers; {options.model} predicts numbers")
        self.columns = tuple(f"change_{name}" for name in self._head.names)
        most = most_bases(config, options.model, options.max_tokens)
        for region in regions:
            require_context(region.title, len(region), most, options.model)

    def load(self, regions: Sequence[Region]) -> None:
        """Load the model; UserError if it cannot read one of the regions at once."""
        from megadna.downstream.predict import Predictor

        options = self.options
        run: dict[str, Any] = {"max_tokens": options.max_tokens, "batch_tokens": options.batch_tokens}
        self.predictor = Predictor(
            PredictOptions(
                model=options.model, input=options.input, trust_remote_code=options.trust_remote_code,
                precision="fp32", **run,
            )
        )  # fmt: skip
        for region in regions:
            most = self.predictor.tokenizer.window_bases(region.bases)
            require_context(region.title, len(region), most, options.model)

    @property
    def unit(self) -> str:
        """What an effect is."""
        what = {"regression": "the number", "single_label_classification": "p", "multi_label_classification": "p"}
        scale = "ln p/(1-p)" if self.options.scale == "log_odds" else what[self._head.problem]
        return f"change of {scale}"

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self.options.strand == "both" else "one strand"
        return f"{self.unit} by each substitution, {strands}"

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return 3 * len(stretch.bases) * (1 + (self.options.strand == "both"))

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
        import torch

        run = [Stretch("", 0, len(bases), "+", bases) for bases in sequences]
        logits_NK = torch.from_numpy(np.stack(self.predictor.runner.strands(run, self.options.strand)))
        if self._head.problem == "regression":
            return logits_NK.numpy()
        if self._head.problem == "single_label_classification":
            log_p_NK = logits_NK.double().log_softmax(-1)
            logits_NK = log_p_NK - torch.log(-torch.expm1(log_p_NK.clamp(max=-1e-12)))
        return (logits_NK.sigmoid() if self.options.scale == "probability" else logits_NK).float().numpy()


Effects = MaskedEffects | HeadEffects


def effects_of(options: MutateOptions, regions: Sequence[Region]) -> Effects:
    """A language model's, or, if the folder is a fine-tuned model, its head's; not loaded yet."""
    config = read_config(options.model)
    return MaskedEffects(options, config) if is_language_model(config) else HeadEffects(options, config, regions)


def _codes(stretch: Stretch) -> np.ndarray:
    """Codes [L] of the stretch's bases, without context; 4 is N."""
    return base_codes(dna_of(stretch.own))
