"""What attributions explain: one number of a sequence, differentiable, of a fine-tuned head or a masked language model.

In:  sequences of upper-case DNA that fit the context; the model's logits of their tokens.
Out: the score [B] of each.
A class: its log odds ln p / (1 - p) (of several labels at once: its logit, which is the same). A number: itself. A
model of nucleotides: the mean of this over the bases of `target` (all bases, if empty).
A masked language model: the mean of ln p of the true bases, p renormalised over A, C, G, T. Without a target nothing is
hidden and all bases count (those that no token of A, C, G, T alone covers do not); the bases of a target are hidden
together, as masked_bases.py hides them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megadna.alphabet import OTHER, base_codes, dna_of
from megadna.data.batch import IGNORE_INDEX
from megadna.data.evaluation import HiddenBases
from megadna.downstream.encoder import SequenceTokenizer, Tokens
from megadna.downstream.stated import Head
from megadna.errors import require
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.evaluation import base_log_p

# Shapes: B sequences, S tokens, C labels, V vocabulary, L bases, N bases of all sequences, M tokens over them.


@dataclass(frozen=True)
class Row:
    """One sequence as the model reads it."""

    bases: str
    tokens: Tokens
    """The target is hidden in their ids."""
    labels: np.ndarray
    """Ids [S] of the tokens that are hidden, IGNORE_INDEX elsewhere."""


class Explained:
    """A model and the number that is explained."""

    def __init__(
        self,
        model: Any,
        tokenizer: SequenceTokenizer,
        target: Sequence[int],
        *,
        device: torch.device,
        batch_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.target, self.device = model, tokenizer, tuple(target), device
        self.batch_tokens = batch_tokens

    what = "ln p of the true bases"
    """What the score is, for captions."""
    unit = "nats"
    hides_target = False
    """Whether the model sees [MASK] at the target."""

    def rows(self, windows: Sequence[str], shift: int = 0) -> list[Row]:
        """Tokenize; base `shift` of a window is number 0 of the target."""
        found = []
        for bases, tokens in zip(windows, self.tokenizer(list(windows)), strict=True):
            ids, labels = np.array(tokens.ids), np.full(len(tokens.ids), IGNORE_INDEX)
            if self.hides_target and self.target:
                at = np.array(self.target) + shift
                first, end = tokens.starts[:, None], (tokens.starts + tokens.lengths)[:, None]
                chosen = self.tokenizer.prefix + np.flatnonzero(((first <= at) & (at < end)).any(axis=1))
                labels[chosen], ids[chosen] = ids[chosen], self.mask_id
            found.append(Row(bases, Tokens(ids.tolist(), tokens.starts, tokens.lengths), labels))
        return found

    @property
    def mask_id(self) -> int:
        """Of [MASK]; UserError if the tokenizer has none."""
        found = self.tokenizer.tokenizer.mask_token_id
        require(
            found is not None,
            "the tokenizer has no mask token, which gradients start from; choose another of --methods",
        )
        return int(found)

    def batch(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) [B, S], padded."""
        shape = len(rows), max(len(row.tokens.ids) for row in rows)
        ids_BS, mask_BS = torch.full(shape, self.tokenizer.pad_id), torch.zeros(shape, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids_BS[number, : len(row.tokens.ids)] = torch.tensor(row.tokens.ids)
            mask_BS[number, : len(row.tokens.ids)] = 1
        return ids_BS.to(self.device), mask_BS.to(self.device)

    def logits(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """As the model gives them, fp32."""
        return self.model(input_ids=ids_BS, attention_mask=mask_BS).logits.float()

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """The explained number [B] of each row."""
        raise NotImplementedError

    @torch.inference_mode()
    def values(self, windows: Sequence[str], shift: int = 0) -> np.ndarray:
        """The explained number of each sequence, fp64 [B], in batches of similar length."""
        rows = self.rows(windows, shift)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens.ids))
        found = np.empty(len(rows))
        while order:
            count = max(1, self.batch_tokens // len(rows[order[0]].tokens.ids))
            batch, order = order[:count], order[count:]
            chosen = [rows[i] for i in batch]
            found[batch] = self.scores(self.logits(*self.batch(chosen)), chosen, shift).double().cpu().numpy()
        return found

    def positions(self, row: Row, shift: int) -> np.ndarray:
        """The bases of the target (all, if there is none), in the row."""
        return np.array(self.target, np.int64) + shift if self.target else np.arange(len(row.bases))


class ExplainedHead(Explained):
    """One class or number of a fine-tuned model."""

    def __init__(self, head: Head, label: str, *parts: Any, **more: Any) -> None:
        """label: one of the head's names, or "", the first."""
        super().__init__(*parts, **more)
        self._head, self._column = head, head.names.index(label) if label else 0
        name = head.names[self._column]
        is_number = head.problem == "regression"
        self.what, self.unit = (name, name) if is_number else (f"ln p/(1-p) of {name}", "nats")

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """Log odds of the class, or the number."""
        if not self._head.per_base:
            return self._odds(logits)
        row_M, token_M, number_M, counts = self._cover(rows, shift)
        index_M = torch.from_numpy(number_M).to(logits.device)
        flat_MC = logits[row_M, token_M]
        total_NC = flat_MC.new_zeros(sum(counts), flat_MC.shape[1]).index_add(0, index_M, flat_MC)
        odds_N = self._odds(total_NC / torch.bincount(index_M, minlength=sum(counts)).clamp_min(1)[:, None])
        return torch.stack([part.mean() for part in odds_N.split(counts)])

    def _odds(self, logits_NC: Tensor) -> Tensor:
        one_N = logits_NC[:, self._column]
        if self._head.problem != "single_label_classification" or logits_NC.shape[1] == 1:
            return one_N
        others = [number for number in range(logits_NC.shape[1]) if number != self._column]
        return one_N - logits_NC[:, others].logsumexp(-1)

    def _cover(self, rows: Sequence[Row], shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """(row, token, number of the target's base) [M] of each token over a base of the target; bases of each row."""
        parts: list[tuple[np.ndarray, ...]] = []
        counts: list[int] = []
        for number, row in enumerate(rows):
            at, starts = self.positions(row, shift), row.tokens.starts
            covers = (starts[:, None] <= at) & (at < (starts + row.tokens.lengths)[:, None])
            token_M, base_M = np.nonzero(covers)
            parts.append((np.full(len(token_M), number), token_M + self.tokenizer.prefix, base_M + sum(counts)))
            counts.append(len(at))
        row_M, token_M, number_M = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return row_M, token_M, number_M, counts


class ExplainedBases(Explained):
    """A masked language model."""

    hides_target = True

    def __init__(self, bases: Tokenizer, *parts: Any, **more: Any) -> None:
        """bases: the tokenizer as `megadna evaluate` reads it."""
        super().__init__(*parts, **more)
        self._bases = bases

    def scores(self, logits: Tensor, rows: Sequence[Row], shift: int = 0) -> Tensor:
        """Mean ln p of the true bases; NaN if there is none."""
        ids_BS = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row.labels) if self.target else torch.tensor(row.tokens.ids) for row in rows],
            batch_first=True, padding_value=IGNORE_INDEX,
        )  # fmt: skip
        if isinstance(self._bases, KmerTokenizer):
            ids_BS = ids_BS.masked_fill(ids_BS < self._bases.first, IGNORE_INDEX)
        total_B, count_B = logits.new_zeros(len(rows)), logits.new_zeros(len(rows))
        phases = 1 if self.target else self._bases.bases_per_token  # no token covers two bases of a phase
        for phase in range(phases):
            where = self._where(rows, shift, phase, phases)
            log_p_N4 = base_log_p(logits, ids_BS.to(logits.device), where, self._bases)
            true_N = log_p_N4[torch.arange(len(log_p_N4)), torch.from_numpy(where.base_H.astype(np.int64))]
            known = ~true_N.isnan()
            row_N = torch.from_numpy(where.row_H).to(logits.device)[known]
            total_B = total_B.index_add(0, row_N, true_N[known])
            count_B = count_B.index_add(0, row_N, torch.ones_like(true_N[known]))
        return total_B / count_B

    def _where(self, rows: Sequence[Row], shift: int, phase: int, phases: int) -> HiddenBases:
        """The bases that count, every one of `phases` from `phase` on."""
        found = []
        for row in rows:
            at = self.positions(row, shift)[phase::phases]
            codes = base_codes(dna_of(row.bases))[at]
            found.append((at[codes != OTHER], codes[codes != OTHER]))
        row_N = np.repeat(np.arange(len(rows)), [len(at) for at, _ in found])
        at_N, code_N = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return HiddenBases(row_N, at_N, code_N, np.zeros(len(row_N), bool))
