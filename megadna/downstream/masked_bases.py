"""What a masked language model says of bases: ln p of A, C, G and T where a base is hidden, or where it is shown.

In:  windows of upper-case DNA, and for each the bases to hide together; the model as `megadna evaluate` reads it
     (encoder.load_masked_model): single nucleotides, or k-mers, overlapping or not.
Out: ln p [bases, 4] in the order of the request, renormalised over A, C, G, T; NaN where no token of A, C, G and T
     alone covers the base. Or the mean of the last hidden states over the tokens of a window's bases.

A base is hidden by [MASK] on every token over it. For k-mers, p of a base is defined in megadna/train/bits.py, the same
as in `evaluate`: from the k-mers that agree with the visible bases of the token, summed over its other hidden bases,
averaged over the tokens that cover the base. A shown base gets p from the tokens over it as they are, not masked.
Windows are sorted by length and run in batches without padding where lengths agree. The head runs on the tokens that
are asked for, in a megadna model the queries of the last layer too (megadna/downstream/partial_forward.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from megadna.alphabet import base_codes, dna_of
from megadna.data.batch import IGNORE_INDEX
from megadna.data.evaluation import HiddenBases
from megadna.downstream.encoder import batch_limit, batches_by_length, load_masked_model, pick_device
from megadna.downstream.partial_forward import PartialForward
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import kmer_log_p_of_tokens

# Shapes: B windows of a batch, S tokens, L bases of a window, H hidden bases of a window, N of a batch, M tokens of a
# batch whose logits are needed, V vocabulary, E features of a hidden state.

Hidden = Sequence[int]
"""0-based positions in the window of the bases to hide together."""


class MaskedBases:
    """A masked language model, loaded once."""

    def __init__(
        self,
        model: Path | str,
        *,
        max_tokens: int = 0,
        trust_remote_code: bool = False,
        batch_tokens: int = 16384,
        precision: str = "fp32",
    ) -> None:
        """precision: fp32, bf16, or auto (bf16 on a GPU)."""
        self.model, self.tokenizer, context = load_masked_model(
            str(model), max_tokens=max_tokens, trust_remote_code=trust_remote_code
        )
        self.digest = digest_of(self.model)
        """See digest_of."""
        device = pick_device()
        bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
        self.model.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
        self._forward = PartialForward(self.model, [self.tokenizer.cls_id, *self.tokenizer.nucleotide_ids[:4].tolist()])
        self.max_bases = self.tokenizer.num_bases(context - 2)
        """Bases that fit the context."""
        self._batch_tokens = batch_limit(batch_tokens, device)

    def hidden(self, windows: Sequence[str], hidden: Sequence[Hidden]) -> list[np.ndarray]:
        """ln p, fp32 [H, 4], of the hidden bases of each window; each window is one row of a batch."""
        return self._run(windows, hidden, self._hidden)

    def shown(self, windows: Sequence[str]) -> list[np.ndarray]:
        """ln p, fp32 [L, 4], of every base of each window, none hidden."""
        return self._run(windows, [()] * len(windows), self._shown)

    def pooled(self, windows: Sequence[str]) -> list[np.ndarray]:
        """Mean of the last hidden states over the tokens of the bases of each window, none hidden: fp32 [E]."""
        return self._run(windows, [()] * len(windows), self._pooled)

    def at(self, codes_BL: np.ndarray, row_N: np.ndarray, position_N: np.ndarray) -> np.ndarray:
        """ln p, fp32 [N, 4], of the bases at these rows and positions by a model of single nucleotides; codes_BL: codes
        0..3 of windows of one length, 4: hidden, whether it is asked for or not."""
        tokenizer = self.tokenizer
        assert tokenizer.bases_per_token == 1
        ids_BS = np.append(tokenizer.base_ids, tokenizer.mask_id)[np.pad(codes_BL, ((0, 0), (1, 1)))]
        ids_BS[:, 0], ids_BS[:, -1] = tokenizer.cls_id, tokenizer.sep_id
        log_p_N4 = np.empty((len(row_N), 4), np.float32)
        count = max(1, self._batch_tokens // ids_BS.shape[1])
        for first in range(0, len(ids_BS), count):
            batch_BS = torch.from_numpy(ids_BS[first : first + count])
            lengths_B = torch.full((len(batch_BS),), batch_BS.shape[1])
            inside_N = (row_N >= first) & (row_N < first + count)
            places = torch.from_numpy(row_N[inside_N] - first), torch.from_numpy(position_N[inside_N] + 1)
            log_p_N4[inside_N] = self._of_bases(self._forward.logits(batch_BS, lengths_B, *places))
        return log_p_N4

    def _run(
        self, windows: Sequence[str], hidden: Sequence[Hidden], score: Callable[[list[str], list[Hidden]], list[Any]]
    ) -> list[np.ndarray]:
        found: list[Any] = [None] * len(windows)
        for batch in batches_by_length([len(bases) + 2 for bases in windows], self._batch_tokens):
            scores = score([windows[i] for i in batch], [hidden[i] for i in batch])
            for i, log_p_H4 in zip(batch, scores, strict=True):
                found[i] = log_p_H4
        return found

    def _tokens(self, windows: list[str]) -> tuple[Tensor, Tensor]:
        """(ids [B, S] padded, tokens of each row [B])."""
        tokenizer = self.tokenizer
        rows = [tokenizer.encode(dna_of(bases)).astype(np.int64) for bases in windows]
        ids_BS = np.full((len(rows), max(map(len, rows)) + 2), tokenizer.pad_id)
        for ids_S, row in zip(ids_BS, rows, strict=True):
            ids_S[0], ids_S[1 : len(row) + 1], ids_S[len(row) + 1] = tokenizer.cls_id, row, tokenizer.sep_id
        return torch.from_numpy(ids_BS), torch.tensor([len(row) + 2 for row in rows], dtype=torch.int32)

    def _hidden(self, windows: list[str], hidden: list[Hidden]) -> list[np.ndarray]:
        tokenizer = self.tokenizer
        truth_BS, lengths_B = self._tokens(windows)
        where = _all_hidden(windows, hidden)
        k, stride = tokenizer.bases_per_token, tokenizer.stride
        masked_BS = torch.zeros_like(truth_BS, dtype=torch.bool)
        for row, position in zip(where.row_H.tolist(), where.position_H.tolist(), strict=True):
            first, last = max(0, -(-(position - k + 1) // stride)), position // stride
            masked_BS[row, first + 1 : min(last + 1, int(lengths_B[row]) - 2) + 1] = True
        ids_BS = truth_BS.masked_fill(masked_BS, tokenizer.mask_id)
        if k == 1:
            row_N, position_N = torch.from_numpy(where.row_H), torch.from_numpy(where.position_H) + 1
            log_p_N4 = self._of_bases(self._forward.logits(ids_BS, lengths_B, row_N, position_N))
        else:
            labels_BS = self._words(truth_BS.masked_fill(~masked_BS, IGNORE_INDEX))
            logits_MV = self._forward.logits(ids_BS, lengths_B, *(labels_BS >= 0).nonzero(as_tuple=True))
            log_p_N4 = self._of_kmers(logits_MV, labels_BS, where)
        return np.split(log_p_N4, np.cumsum([len(one) for one in hidden])[:-1])

    def _shown(self, windows: list[str], _: list[Hidden]) -> list[np.ndarray]:
        ids_BS, lengths_B = self._tokens(windows)
        k = self.tokenizer.bases_per_token
        found = [np.full((len(bases), 4), np.nan, np.float32) for bases in windows]
        labels_BS = ids_BS if k == 1 else self._words(ids_BS)
        if k > 1:
            logits_MV = self._forward.logits(ids_BS, lengths_B, *(labels_BS >= 0).nonzero(as_tuple=True))
        for phase in range(k):  # so that no token covers two of the bases that are asked for
            hidden = [range(phase, len(bases), k) for bases in windows]
            where = _all_hidden(windows, hidden)
            if k == 1:
                row_N, position_N = torch.from_numpy(where.row_H), torch.from_numpy(where.position_H) + 1
                log_p_N4 = self._of_bases(self._forward.logits(ids_BS, lengths_B, row_N, position_N))
            else:
                log_p_N4 = self._of_kmers(logits_MV, labels_BS, where)
            for row, part_H4 in enumerate(np.split(log_p_N4, np.cumsum([len(one) for one in hidden])[:-1])):
                found[row][phase::k] = part_H4
        return found

    def _pooled(self, windows: list[str], _: list[Hidden]) -> list[np.ndarray]:
        ids_BS, lengths_B = self._tokens(windows)
        states_BSE = self._forward.states(ids_BS, lengths_B).float()
        return [
            state_SE[1 : length - 1].mean(dim=0).cpu().numpy()
            for state_SE, length in zip(states_BSE, lengths_B.tolist(), strict=True)
        ]

    def _words(self, ids_BS: Tensor) -> Tensor:
        """The ids that are words of A, C, G and T; IGNORE_INDEX elsewhere."""
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, KmerTokenizer)
        return ids_BS.masked_fill(ids_BS < tokenizer.first, IGNORE_INDEX)

    def _of_bases(self, logits_NV: Tensor) -> np.ndarray:
        ids_4 = torch.from_numpy(self.tokenizer.base_ids).to(logits_NV.device)
        return torch.log_softmax(logits_NV[:, ids_4].float(), dim=1).cpu().numpy()

    def _of_kmers(self, logits_MV: Tensor, labels_BS: Tensor, where: HiddenBases) -> np.ndarray:
        """From the tokens with a label."""
        assert isinstance(self.tokenizer, KmerTokenizer)
        return kmer_log_p_of_tokens(logits_MV, labels_BS.to(logits_MV.device), where, self.tokenizer).cpu().numpy()


def load_masked_bases(options: Any, precision: str = "fp32") -> MaskedBases:
    """The model that the options of a verb name."""
    names = ("max_tokens", "trust_remote_code", "batch_tokens")
    return MaskedBases(options.model, precision=precision, **{name: getattr(options, name) for name in names})


def digest_of(model: Any) -> str:
    """Of the weights: 32 hexadecimal digits of xxh3_128."""
    state = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        state.update(name.encode())
        state.update(parameter.detach().cpu().contiguous().numpy().view(np.uint8).reshape(-1))
    return state.hexdigest()


def _all_hidden(windows: Sequence[str], hidden: Sequence[Sequence[int]]) -> HiddenBases:
    """The hidden bases of a batch as `evaluate` describes them."""
    counts = [len(one) for one in hidden]
    row_N = np.repeat(np.arange(len(windows)), counts)
    position_N = np.concatenate([np.asarray(one, np.int64) for one in hidden]) if hidden else np.zeros(0, np.int64)
    codes = [base_codes(dna_of(bases))[list(one)] for bases, one in zip(windows, hidden, strict=True)]
    base_N = np.concatenate(codes).astype(np.uint8) if codes else np.zeros(0, np.uint8)
    return HiddenBases(row_N, position_N, base_N, np.zeros(len(row_N), bool))
