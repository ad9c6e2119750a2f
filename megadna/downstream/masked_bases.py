"""What a masked language model says of bases: ln p of A, C, G and T where a base is hidden, or where it is shown.

In:  windows of upper-case DNA, and for each the bases to hide together; the model as `megadna evaluate` reads it
     (encoder.load_masked_model): single nucleotides, or k-mers, overlapping or not.
Out: ln p [bases, 4] in the order of the request, renormalised over A, C, G, T; NaN where no token of A, C, G and T
     alone covers the base. Or the mean of the last hidden states over the tokens of a window's bases.

A base is hidden by [MASK] on every token over it. For k-mers, p of a base is defined in megadna/train/bits.py, the same
as in `evaluate`: from the k-mers that agree with the visible bases of the token, summed over its other hidden bases,
averaged over the tokens that cover the base. A shown base gets p from the tokens over it as they are, not masked.
Windows are sorted by length and run in batches without padding where lengths agree. The head runs on the tokens that
are asked for. In a megadna encoder the last layer computes keys and values of all tokens, the rest for the chosen ones.
Whether a model can be run so is seen by running it both ways once, not by its name: parts that do not give the whole's
logits are not used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from megadna.alphabet import base_codes, dna_of
from megadna.data.batch import IGNORE_INDEX
from megadna.data.evaluation import HiddenBases
from megadna.downstream.encoder import batch_limit, batches_by_length, load_masked_model, pick_device
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train.bits import kmer_log_p_of_tokens

# Shapes: B windows of a batch, S tokens, L bases of a window, H hidden bases of a window, N of a batch, M tokens of a
# batch whose logits are needed, C of a row, V vocabulary, E features of a hidden state; in attention N heads of D.

_HEADS = ("cls", "lm_head")
_TOLERANCE = 1e-4  # of fp32 logits of order 1 to 10, from sums in another order; bf16 is compared before it is cast
Hidden = Sequence[int]
"""0-based positions in the window of the bases to hide together."""


class MaskedBases:
    """A masked language model, loaded once."""

    def __init__(
        self,
        model: Path | str,
        *,
        trust_remote_code: bool = False,
        batch_tokens: int = 16384,
        precision: str = "fp32",
        condition: Tensor | None = None,
    ) -> None:
        """precision: fp32, bf16, or auto (bf16 on a GPU); condition: see load_masked_model."""
        self.model, self.tokenizer, context = load_masked_model(
            str(model), trust_remote_code=trust_remote_code, condition=condition
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
        return self._run(windows, lambda batch: self._hidden([windows[i] for i in batch], [hidden[i] for i in batch]))

    def shown(self, windows: Sequence[str]) -> list[np.ndarray]:
        """ln p, fp32 [L, 4], of every base of each window, none hidden."""
        return self._run(windows, lambda batch: self._shown([windows[i] for i in batch]))

    def pooled(self, windows: Sequence[str]) -> list[np.ndarray]:
        """Mean of the last hidden states over the tokens of the bases of each window, none hidden: fp32 [E]."""
        return self._run(windows, lambda batch: self._pooled([windows[i] for i in batch]))

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
            log_p_N4[inside_N] = self._of_bases(batch_BS, lengths_B, row_N[inside_N] - first, position_N[inside_N])
        return log_p_N4

    def _run(self, windows: Sequence[str], score: Callable[[list[int]], list[np.ndarray]]) -> list[np.ndarray]:
        """What `score` gives of the windows with these numbers, batch by batch, in the order of the windows."""
        found: list[Any] = [None] * len(windows)
        for batch in batches_by_length([len(bases) + 2 for bases in windows], self._batch_tokens):
            for i, values in zip(batch, score(batch), strict=True):
                found[i] = values
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
            log_p_N4 = self._of_bases(ids_BS, lengths_B, where.row_H, where.position_H)
        else:
            labels_BS = self._words(truth_BS.masked_fill(~masked_BS, IGNORE_INDEX))
            logits_MV = self._forward.logits(ids_BS, lengths_B, *(labels_BS >= 0).nonzero(as_tuple=True))
            log_p_N4 = self._of_kmers(logits_MV, labels_BS, where)
        return np.split(log_p_N4, np.cumsum([len(one) for one in hidden])[:-1])

    def _shown(self, windows: list[str]) -> list[np.ndarray]:
        ids_BS, lengths_B = self._tokens(windows)
        k = self.tokenizer.bases_per_token
        if k == 1:
            where = _all_hidden(windows, [range(len(bases)) for bases in windows])
            log_p_N4 = self._of_bases(ids_BS, lengths_B, where.row_H, where.position_H)
            return np.split(log_p_N4, np.cumsum([len(bases) for bases in windows])[:-1])
        found = [np.full((len(bases), 4), np.nan, np.float32) for bases in windows]
        labels_BS = self._words(ids_BS)
        logits_MV = self._forward.logits(ids_BS, lengths_B, *(labels_BS >= 0).nonzero(as_tuple=True))
        for phase in range(k):  # so that no token covers two of the bases that are asked for
            hidden = [range(phase, len(bases), k) for bases in windows]
            log_p_N4 = self._of_kmers(logits_MV, labels_BS, _all_hidden(windows, hidden))
            for row, part_H4 in enumerate(np.split(log_p_N4, np.cumsum([len(one) for one in hidden])[:-1])):
                found[row][phase::k] = part_H4
        return found

    def _pooled(self, windows: list[str]) -> list[np.ndarray]:
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

    def _of_bases(self, ids_BS: Tensor, lengths_B: Tensor, row_N: np.ndarray, position_N: np.ndarray) -> np.ndarray:
        """ln p [N, 4] of the bases at these rows and positions by a model of single nucleotides."""
        logits_NV = self._forward.logits(ids_BS, lengths_B, torch.from_numpy(row_N), torch.from_numpy(position_N) + 1)
        ids_4 = torch.from_numpy(self.tokenizer.base_ids).to(logits_NV.device)
        return torch.log_softmax(logits_NV[:, ids_4].float(), dim=1).cpu().numpy()

    def _of_kmers(self, logits_MV: Tensor, labels_BS: Tensor, where: HiddenBases) -> np.ndarray:
        """From the tokens with a label."""
        assert isinstance(self.tokenizer, KmerTokenizer)
        return kmer_log_p_of_tokens(logits_MV, labels_BS.to(logits_MV.device), where, self.tokenizer).cpu().numpy()


def load_masked_bases(options: Any, precision: str = "fp32") -> MaskedBases:
    """The model that the options of a verb name."""
    shared = {name: getattr(options, name) for name in ("trust_remote_code", "batch_tokens")}
    return MaskedBases(options.model, precision=precision, **shared)


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


class PartialForward:
    """A model in eval mode, on its device."""

    def __init__(self, model: Any, probe: list[int]) -> None:
        """probe: ids of some tokens; the model is still to be called with others."""
        self._model, self._base = model, model.base_model
        self._last: Any = None
        self._head: Any = None
        heads = [found for name in _HEADS if isinstance(found := getattr(model, name, None), nn.Module)]
        head = heads[0] if heads and self._base is not model else None
        for last, part in ((_last_layer(self._base), head), (None, head), (None, None)):
            self._last, self._head = (last, part) if part is not None else (None, None)
            if part is None or self._agrees(probe):
                break

    @torch.inference_mode()
    def _agrees(self, probe: list[int]) -> bool:
        """Whether the parts give the logits of the whole."""
        ids_BS, lengths_B = torch.tensor([probe, probe[::-1]]), torch.tensor([len(probe)] * 2)
        row_M, position_M = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
        tolerance = _TOLERANCE if next(self._model.parameters()).dtype == torch.float32 else 0.1
        whole_MV = self._whole(ids_BS, lengths_B)[row_M, position_M].float()
        try:
            part_MV = self.logits(ids_BS, lengths_B, row_M, position_M).float()
        except Exception:  # of code that others wrote: a head that takes something else
            return False
        return part_MV.shape == whole_MV.shape and torch.allclose(part_MV, whole_MV, atol=tolerance, rtol=tolerance)

    @torch.inference_mode()
    def logits(self, ids_BS: Tensor, lengths_B: Tensor, row_M: Tensor, position_M: Tensor) -> Tensor:
        """[M, V] of the tokens at these rows and positions, in their order."""
        device = self._model.device
        row_M, position_M = row_M.to(device), position_M.to(device)
        if self._head is None:
            return self._whole(ids_BS, lengths_B)[row_M, position_M]
        if self._last is None or len(row_M) * 2 > ids_BS.numel():  # most tokens: gathering them costs more
            return self._head(self.states(ids_BS, lengths_B)[row_M, position_M])
        chosen_BC, column_M = _by_row(row_M, position_M, len(ids_BS))
        with _only(self._last, chosen_BC):
            states_BCE = self.states(ids_BS, lengths_B)
        return self._head(states_BCE[row_M, column_M])

    @torch.inference_mode()
    def states(self, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Last hidden states [B, S, E]."""
        inputs = self._inputs(ids_BS, lengths_B)
        if self._base is self._model:
            return self._model(**inputs, output_hidden_states=True).hidden_states[-1]
        return self._base(**inputs)[0]

    def _whole(self, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        return self._model(**self._inputs(ids_BS, lengths_B)).logits

    def _inputs(self, ids_BS: Tensor, lengths_B: Tensor) -> dict[str, Tensor]:
        mask_BS = (torch.arange(ids_BS.shape[1]) < lengths_B[:, None]).long()
        device = self._model.device
        return {"input_ids": ids_BS.to(device), "attention_mask": mask_BS.to(device)}


def _by_row(row_M: Tensor, position_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """(positions [B, C] of each row's chosen tokens, 0 where a row has fewer; each chosen token's column in it [M])."""
    order_M = torch.argsort(row_M, stable=True)
    count_B = torch.bincount(row_M, minlength=num_rows)
    first_B = count_B.cumsum(0) - count_B
    column_M = torch.empty_like(row_M)
    column_M[order_M] = torch.arange(len(row_M), device=row_M.device) - first_B[row_M[order_M]]
    chosen_BC = torch.zeros((num_rows, int(count_B.max())), dtype=torch.int64, device=row_M.device)
    chosen_BC[row_M, column_M] = position_M
    return chosen_BC, column_M


def _last_layer(base: Any) -> Any | None:
    """The last layer of a megadna encoder; None of another, or where more than attention and MLP read its input."""
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    if not layers or type(layers[-1]).__name__ != "MegaDnaLayer" or hasattr(layers[-1].attention, "convolution"):
        return None
    return layers[-1] if base.config._attn_implementation in (None, "sdpa") else None


@contextmanager
def _only(layer: Any, chosen_BC: Tensor) -> Iterator[None]:
    """Inside, the layer gives the residual stream [B, C, E] of the chosen tokens."""

    def forward(
        hidden_BSE: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, *_: Any
    ) -> tuple[Tensor, None]:
        attention = layer.attention
        branch_BSE = attention.ln(hidden_BSE) if layer.pre_norm else hidden_BSE
        branch_BCE = attention.output(_attend(attention.self, branch_BSE, chosen_BC, rotary, mask))
        sum_BCE = _taken(hidden_BSE, chosen_BC) + branch_BCE
        if layer.pre_norm:
            return sum_BCE + layer.mlp(layer.ln(sum_BCE)), None
        sum_BCE = attention.ln(sum_BCE)
        return layer.ln(sum_BCE + layer.mlp(sum_BCE)), None

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def _taken(values_BSE: Tensor, chosen_BC: Tensor) -> Tensor:
    return values_BSE.gather(1, chosen_BC[:, :, None].expand(-1, -1, values_BSE.shape[2]))


def _attend(
    own: Any, branch_BSE: Tensor, chosen_BC: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None
) -> Tensor:
    """Self-attention [B, C, E] of the chosen tokens over all."""
    inputs = {"query": _taken(branch_BSE, chosen_BC), "key": branch_BSE, "value": branch_BSE}
    query, key, value = (getattr(own, name)(x).unflatten(-1, (-1, own.head_size)) for name, x in inputs.items())
    if own.config.qk_norm:
        query, key = own.query_norm(query), own.key_norm(key)
    if rotary is not None:
        cos_SD, sin_SD = rotary
        query = _rotated(query, cos_SD[chosen_BC][:, :, None], sin_SD[chosen_BC][:, :, None])
        key = _rotated(key, cos_SD[:, None], sin_SD[:, None])
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if own.heads_per_group > 1:
        key, value = (x.repeat_interleave(own.heads_per_group, dim=1) for x in (key, value))
    context_BNCD = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context_BNCD.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), pairs (i, i + D/2), of x [B, S, N, D]; cos and sin broadcast to its half."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
