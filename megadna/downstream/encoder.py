"""Any Hugging Face DNA encoder: its weights, tokenizer and context, and which bases each of its tokens covers.

In:  a folder (or hub name) that transformers' auto classes load; megadna/downstream/trust.py decides about its code.
Out: SequenceTokenizer and the model; or, of a masked language model, what `megadna evaluate` needs.
Single nucleotides, overlapping k-mers (raw or, as DNABERT's, from blank-separated text), adjacent k-mers and byte pairs
are told apart by how the tokenizer splits a probe sequence, not by names.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megadna.alphabet import BASES, IUPAC_AMBIGUOUS, dna_of, table
from megadna.downstream.options import check_model
from megadna.downstream.stated import one_line
from megadna.downstream.trust import check_folder
from megadna.errors import UserError, require
from megadna.genome.records import reverse_complement
from megadna.tokenizer.base import NucleotideTokenizer, Tokenizer
from megadna.tokenizer.kmer import LAYOUTS, KmerTokenizer

if TYPE_CHECKING:
    from megadna.data.batch import Batch
    from megadna.train.evaluation import Forward

_PROBE = "ACGTTGCAACGGATCTCAGATTACAGGCCTAAGCTTGACCATGGTACCGTAAGTCTCGAGA"
_FAR = 10**9
_SAMPLE = 1 << 16  # bases from which the length of a byte-pair token is estimated


@dataclass(frozen=True)
class Tokens:
    """One tokenized sequence."""

    ids: list[int]
    """Special tokens included."""
    starts: np.ndarray
    """First base of each token that is not special, int64."""
    lengths: np.ndarray
    """Bases that each of them covers."""


class SequenceTokenizer:
    """Text of bases -> token ids and the bases they cover, whatever the tokenizer's kind."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.pad_id = tokenizer.pad_token_id or 0
        self.k, self.stride, self.spaced = 0, 1, False
        inner, whole = (self._ids([_PROBE], special)[0] for special in (False, True))
        if len(inner) <= 1:
            words = {len(word) for word in tokenizer.get_vocab() if re.fullmatch("[ACGT]+", word)}
            self.k, self.spaced = max(words, default=1), True
            inner, whole = (self._ids([_PROBE], special)[0] for special in (False, True))
        sizes = {len(word) for word in tokenizer.convert_ids_to_tokens(inner)}
        if len(sizes) == 1:
            (size,) = sizes
            if len(inner) == len(_PROBE) - size + 1:
                self.k = size
            elif len(inner) == len(_PROBE) // size:
                self.k = self.stride = size
        self.prefix = next((at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), 0)
        self.suffix = len(whole) - len(inner) - self.prefix
        self._ends = whole[: self.prefix], whole[len(whole) - self.suffix :]
        self._id_of_base = self._table() if self.k == 1 and not self.spaced else None
        if self.tokenizer.unk_token_id is not None and set(inner) == {self.tokenizer.unk_token_id}:
            raise UserError("the tokenizer knows no nucleotides: every base is its unknown token")

    def _table(self) -> np.ndarray | None:
        """Id of each character, -1 if not known; None if a base's id depends on its neighbours."""
        text = f"{_PROBE}NNNACGTN{_PROBE}"
        ids, codes = self._ids([text], False)[0], np.frombuffer(text.encode(), np.uint8)
        table = np.full(256, -1)
        if len(ids) != len(codes):
            return None
        table[codes] = ids
        return table if (table[codes] == ids).all() else None

    def require_single_bases(self, folder: str) -> None:
        """UserError unless a token is one base."""
        if self.k != 1 or self.spaced:
            text = (
                "its tokens are not single nucleotides: hiding a base would hide its neighbours; give a model of those"
            )
            raise UserError(f"{folder}: {text}")

    def max_bases(self, bases: str = "") -> int:
        """Bases that fit the context; if tokens vary in length, all of `bases` or as many as its mean token allows."""
        tokens = self.max_tokens - self.prefix - self.suffix
        if self.k or not bases:
            return self.stride * (tokens - 1) + max(1, self.k)
        sample = bases if len(bases) <= _SAMPLE else _spread(bases)  # a chromosome's tokens would take gigabytes
        found = len(self._ids([sample], False)[0])
        if len(bases) == len(sample) and found <= tokens:
            return len(bases)
        return max(1, 3 * tokens * len(sample) // (4 * found))  # three quarters of it, as density varies

    def window_bases(self, bases: str) -> int:
        """Bases that fit the context on either strand."""
        if self.k:
            return self.max_bases()
        return min(self.max_bases(bases), self.max_bases(reverse_complement(bases)))

    def __call__(self, sequences: list[str]) -> list[Tokens]:
        """Tokenize; UserError if a sequence gives more tokens than fit the context."""
        found = []
        for bases, ids in zip(sequences, self._all_ids(sequences), strict=True):
            if len(ids) > self.max_tokens:
                raise UserError(
                    f"{len(bases)} bases ({bases[:20]}...) give {len(ids)} tokens, more than the context of "
                    f"{self.max_tokens}; cut them"
                )
            inner = ids[self.prefix : len(ids) - self.suffix]
            if self.k:
                lengths = np.full(len(inner), self.k)
                starts = np.arange(len(inner)) * self.stride
            else:
                lengths = np.array(list(map(_token_bases, self.tokenizer.convert_ids_to_tokens(inner))))
                starts = np.cumsum(lengths) - lengths
            found.append(Tokens(ids, starts, np.minimum(lengths, np.maximum(len(bases) - starts, 0))))
        return found

    def _all_ids(self, sequences: list[str]) -> Iterable[list[int]]:
        """With special tokens; by table if possible, in a tenth of the time and memory."""
        table = self._id_of_base
        if table is None or not all(map(str.isascii, sequences)):
            return self._ids(sequences, True)
        found = [table[np.frombuffer(bases.encode(), np.uint8)] for bases in sequences]
        if any((ids < 0).any() for ids in found):
            return self._ids(sequences, True)
        return ([*self._ends[0], *ids.tolist(), *self._ends[1]] for ids in found)

    def _ids(self, sequences: list[str], special: bool) -> list[list[int]]:
        if self.spaced:
            k = self.k
            sequences = [" ".join(s[i : i + k] for i in range(len(s) - k + 1)) for s in sequences]
        return self.tokenizer(sequences, add_special_tokens=special, verbose=False)["input_ids"]


def _token_bases(token: str) -> int:
    """Bases of a byte pair; a special token ([UNK]) is one."""
    return 1 if "[" in token or "<" in token else len(re.sub("[^A-Za-z]", "", token))


def _spread(bases: str) -> str:
    """16 evenly spaced pieces, _SAMPLE bases together."""
    size, step = _SAMPLE // 16, len(bases) // 16
    return "".join(bases[i * step : i * step + size] for i in range(16))


def load_tokenizer(folder: str, *, trust_remote_code: bool) -> SequenceTokenizer:
    """The folder's tokenizer; the context is the smallest that tokenizer and config state."""
    config = load_config(folder, trust_remote_code=trust_remote_code)
    tokenizer = _load(transformers.AutoTokenizer, folder, trust_remote_code)
    with one_line(f"{folder}: its tokenizer reads no sequence"):
        stated = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or _FAR)
        max_tokens = min(int(size) for size in stated)
        missing = "neither tokenizer nor config states the context; write model_max_length into tokenizer_config.json"
        require(max_tokens < _FAR, f"{folder}: {missing}")
        found = SequenceTokenizer(tokenizer, max_tokens)
    require(found.max_bases() > 0, f"{folder}: a context of {max_tokens} tokens leaves no room for a base")
    return found


def load_model(folder: str, auto_class: str = "AutoModel", *, trust_remote_code: bool) -> Any:
    """The model in fp32, eval mode; UserError if the folder lacks weights of the encoder, or has NaN in them."""
    config = load_config(folder, trust_remote_code=trust_remote_code)
    writes = auto_class == "AutoModelForMaskedLM" and auto_class in str(getattr(config, "auto_map", ""))
    if auto_class in ("AutoModel", "AutoModelForMaskedLM") and config.model_type == "dna-task" and not writes:
        raise UserError(f"{folder}: is a fine-tuned model, for megadna predict or generate; give its encoder instead")
    model, report = _load(getattr(transformers, auto_class), folder, trust_remote_code, output_loading_info=True)
    missing = [name for name in report["missing_keys"] if "pooler" not in name]
    if missing:
        raise UserError(f"{folder}: no weights for {missing[0]} (and {len(missing) - 1} more) of {auto_class}")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{folder}: its weights {name} have NaN or infinity; fetch or export the model again")
    return model.float().eval()


def load_config(folder: str, *, trust_remote_code: bool) -> Any:
    """The folder's config.json as transformers reads it."""
    return _load(transformers.AutoConfig, folder, trust_remote_code)


def _load(auto_class: Any, folder: str, trust_remote_code: bool, **options: Any) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    trusted = trust_remote_code or _checked(folder)
    with one_line(f"{folder}: {auto_class.__name__} cannot load it"):
        return auto_class.from_pretrained(folder, trust_remote_code=trusted, **options)


def _checked(folder: str) -> bool:
    """Whether the folder's own code may run; UserError if there is no such folder, or it refers to files that may not
    be loaded without --trust_remote_code."""
    path = Path(folder)
    check_model(folder)
    if path.is_dir():
        return check_folder(path)
    with one_line(f"{folder}: no such folder, and not available from the Hugging Face Hub"):
        copy = snapshot_download(folder, allow_patterns=["*.json", "*.py", "custom_generate/*"])
    check_folder(Path(copy))
    return False  # the Hub's content may change before it is fetched again


CPU_BATCH_TOKENS = 2048


def batch_limit(batch_tokens: int, device: torch.device) -> int:
    """Tokens of a batch: on a CPU at most CPU_BATCH_TOKENS, as activations that leave its caches take a model of 128 to
    512 channels 1.2 to 1.7 times as long (tools/bench_embed.py)."""
    return min(batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else batch_tokens


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, the longest rows first: at most `batch_tokens` tokens, padding included."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while order:
        count = max(1, batch_tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), int64 [B, S]."""
    ids_BS = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths_B = torch.tensor([len(row) for row in rows])
    return ids_BS, (torch.arange(ids_BS.shape[1]) < lengths_B[:, None]).long()


def pick_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


SPECIALS = ("pad", "mask", "cls", "sep", "unk")


class VocabularyNucleotides(NucleotideTokenizer):
    """One token per base, with the ids of any vocabulary that has A, C, G and T."""

    def __init__(self, vocabulary: dict[str, int], specials: dict[str, int]) -> None:
        super().__init__()
        for name, number in specials.items():
            setattr(self, f"{name}_id", number)
        self._texts = {number: text for text, number in vocabulary.items()}
        self.base_ids[:] = [vocabulary[base] for base in BASES]
        self.nucleotide_ids = self.base_ids.copy()
        self.nucleotide_ids.sort()
        self.n_id = vocabulary.get("N", self.unk_id)
        entries = {base: vocabulary[base] for base in "ACGTU" if base in vocabulary}
        self._table = table(dict.fromkeys(IUPAC_AMBIGUOUS, self.n_id) | entries, self.unk_id, dtype="int64")

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return [self._texts.get(number, "") for number in range(max(self._texts) + 1)]


def load_masked_lm(folder: str, *, trust_remote_code: bool = False) -> tuple["Forward", Tokenizer, int]:
    """(forward, tokenizer, context in tokens) of a masked language model over nucleotides or k-mers; UserError if the
    folder does not load, or has tokens of another kind."""
    model, tokenizer, context = load_masked_model(folder, trust_remote_code=trust_remote_code)
    device = pick_device()
    model.to(device)

    @torch.inference_mode()
    def forward(batch: "Batch", score: Callable[[Tensor], Any]) -> Any:
        positions_S = torch.arange(batch.tokens_BS.shape[1])
        lengths_B = batch.lengths_B
        if lengths_B is None:
            lengths_B = torch.full((len(batch.tokens_BS),), len(positions_S))
        mask_BS = (positions_S < lengths_B[:, None]).long().to(device)
        return score(model(input_ids=batch.tokens_BS.to(device), attention_mask=mask_BS).logits)

    return forward, tokenizer, context


def load_masked_model(
    folder: str, *, trust_remote_code: bool = False, condition: Tensor | None = None
) -> tuple[Any, Tokenizer, int]:
    """(model in fp32 on the CPU, tokenizer, context in tokens), as `load_masked_lm`; condition: the class [1] or number
    [1, 1] for which a model of `finetune --task generation` is to write."""
    config = load_config(folder, trust_remote_code=trust_remote_code)
    found = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(found, folder)
    model = load_model(folder, "AutoModelForMaskedLM", trust_remote_code=trust_remote_code)
    if config.model_type == "dna-task":
        model = model.fixed(condition)
    return model, tokenizer, found.max_tokens


def _tokenizer(found: SequenceTokenizer, folder: str) -> Tokenizer:
    """The tokenizer that gives the same ids, special tokens [CLS] x [SEP] included."""
    vocabulary = found.tokenizer.get_vocab()
    eos = found.tokenizer.eos_token_id
    specials: dict[str, Any] = {name: getattr(found.tokenizer, f"{name}_token_id", None) for name in SPECIALS}
    specials["sep"] = eos if specials["sep"] is None else specials["sep"]
    candidates: list[Tokenizer] = []
    if None not in specials.values() and set(BASES) <= vocabulary.keys() and found.k == 1:
        candidates = [VocabularyNucleotides(vocabulary, specials)]
    elif 1 < found.k <= 8:
        candidates = [KmerTokenizer(found.k, stride=found.stride, layout=layout) for layout in LAYOUTS]
    ids = found._ids([_PROBE], True)[0]  # however short the context
    for candidate in candidates:
        same = all(getattr(candidate, f"{name}_id") == specials[name] for name in SPECIALS)
        if same and [candidate.cls_id, *candidate.encode(dna_of(_PROBE)).tolist(), candidate.sep_id] == ids:
            return candidate
    raise UserError(
        f"{folder}: evaluate reads [CLS] x [SEP] with x single nucleotides or k-mers in the vocabulary layout of "
        f"{', '.join(LAYOUTS)}; the tokenizer of this model gives something else"
    )
