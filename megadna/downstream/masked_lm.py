"""Any Hugging Face masked language model over nucleotides or k-mers, as evaluation runs one: no megatron needed.

In:  a folder that AutoModelForMaskedLM and AutoTokenizer load.
Out: a function that runs the model on a batch, the tokenizer as ids of letters, the context in tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megadna.data.batch import Batch
from megadna.downstream.encoder import SequenceTokenizer, load_config, load_model, load_tokenizer, pick_device
from megadna.errors import UserError
from megadna.tokenizer.alphabet import BASES, IUPAC_AMBIGUOUS, letters_of, table
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.kmer import LAYOUTS, KmerTokenizer
from megadna.tokenizer.nucleotide import NucleotideTokenizer
from megadna.train.scoring import Forward

_PROBE = "ACGTTGCAACGGATCTCAGATTACAGGCCTAAGCTTGACCATGG"
SPECIALS = ("pad", "mask", "cls", "sep", "unk")


class VocabularyNucleotides(NucleotideTokenizer):
    """One token a base by the ids of any vocabulary that names A, C, G and T."""

    def __init__(self, vocabulary: dict[str, int], specials: dict[str, int]) -> None:
        super().__init__()
        for name, number in specials.items():
            setattr(self, f"{name}_id", number)
        self._texts = {number: text for text, number in vocabulary.items()}
        self.base_ids[:] = [vocabulary[base] for base in BASES]
        self.nucleotide_ids = self.base_ids.copy()
        self.nucleotide_ids.sort()
        self.n_id = vocabulary.get("N", self.unk_id)
        entries = {letter: vocabulary[letter] for letter in "ACGTU" if letter in vocabulary}
        self._table = table(dict.fromkeys(IUPAC_AMBIGUOUS, self.n_id) | entries, self.unk_id, dtype="int64")

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return [self._texts.get(number, "") for number in range(max(self._texts) + 1)]


def load_masked_lm(
    folder: str, *, max_tokens: int = 0, trust_remote_code: bool = False
) -> tuple[Forward, Tokenizer, int]:
    """(forward, tokenizer, context); UserError where the folder does not load or its tokens are of no kind known here.

    `max_tokens` replaces the context that config and tokenizer state.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    found = load_tokenizer(folder, config, trust_remote_code=trust_remote_code, max_tokens=max_tokens)
    tokenizer = _tokenizer(found, folder)
    device = pick_device()
    model = load_model(folder, "AutoModelForMaskedLM", trust_remote_code=trust_remote_code).to(device)

    @torch.inference_mode()
    def forward(batch: Batch, score: Callable[[Tensor], Any]) -> Any:
        places_S = torch.arange(batch.tokens_BS.shape[1])
        lengths_B = torch.full((len(batch.tokens_BS),), len(places_S)) if batch.lengths_B is None else batch.lengths_B
        mask_BS = (places_S < lengths_B[:, None]).long().to(device)
        return score(model(input_ids=batch.tokens_BS.to(device), attention_mask=mask_BS).logits)

    return forward, tokenizer, found.max_tokens


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
    ids = found([_PROBE])[0].ids
    for candidate in candidates:
        same = all(getattr(candidate, f"{name}_id") == specials[name] for name in SPECIALS)
        if same and [candidate.cls_id, *candidate.encode(letters_of(_PROBE)).tolist(), candidate.sep_id] == ids:
            return candidate
    raise UserError(
        f"{folder}: evaluate reads [CLS] x [SEP] with x single nucleotides or k-mers in the vocabulary layout of "
        f"{', '.join(LAYOUTS)}; the tokenizer of this model makes something else"
    )
