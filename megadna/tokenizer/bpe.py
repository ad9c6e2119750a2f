"""Byte-pair encoding over DNA with the sentencepiece library (the kind of DNABERT-2 and GENA-LM).

Folder: sentencepiece.model, and sentencepiece.json with the bases that a token covers and where the model comes from.
Bases are upper-cased; everything but A, C, G, T is N, one token a base. Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3,
[MASK] 4, N 5, then the pieces by rank of their merge.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from megadna.alphabet import BASES, Dna, table
from megadna.errors import UserError
from megadna.reading import first_line, read_json
from megadna.tokenizer.base import Tokenizer

MODEL_NAME = "sentencepiece.model"
INFO_NAME = "sentencepiece.json"
_AGAIN = "make one with megadna train-tokenizer"
_UPPER_N = table({base: ord(base) for base in BASES}, ord("N"))


class BpeTokenizer(Tokenizer):
    """Pieces of 1 to some 16 bases."""

    kind = "sentencepiece"
    pad_id, unk_id, cls_id, sep_id, mask_id, n_id = range(6)

    def __init__(self, folder: Path) -> None:
        for name in (MODEL_NAME, INFO_NAME):
            if not (folder / name).is_file():
                raise UserError(f"tokenizer.model: {folder / name} is missing; make one with megadna train-tokenizer")
        mean = read_json(folder / INFO_NAME, _AGAIN).get("bases_per_token")
        if not isinstance(mean, int | float) or not mean > 0:
            raise UserError(f"tokenizer.model: {folder / INFO_NAME} states no bases_per_token; {_AGAIN}")
        self.mean_bases = float(mean)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_NAME))
        except (OSError, RuntimeError, ValueError) as error:
            what = f"not a sentencepiece model ({first_line(error)})"
            raise UserError(f"tokenizer.model: {folder / MODEL_NAME}: {what}; {_AGAIN}") from error
        pieces = self.tokens()
        self.nucleotide_ids = np.array([number for number, text in enumerate(pieces) if set(text) <= set(BASES)])
        self._lengths_V = np.array([len(text) if number > self.mask_id else 0 for number, text in enumerate(pieces)])

    def tokens(self) -> list[str]:
        """Text of every id, in id order."""
        return [self._processor.id_to_piece(number) for number in range(self._processor.vocab_size())]

    @property
    def vocab_size(self) -> int:
        """Special tokens, N and pieces."""
        return self._processor.vocab_size()

    def encode(self, bases: Dna) -> NDArray[np.uint32]:
        """Ids [m] of DNA [n]; the merges run in the sentencepiece library."""
        return np.array(self._processor.encode(_UPPER_N.take(bases).tobytes().decode()), dtype=np.uint32)

    def decode(self, ids: NDArray) -> str:
        """Pieces joined; special tokens appear as their text."""
        return "".join(self._processor.id_to_piece(int(number)) for number in ids)

    def spans(self, ids: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First base, and one past the last base, under each of the ids [m] of a sequence."""
        stops = np.cumsum(self._lengths_V[ids])
        return stops - self._lengths_V[ids], stops

    def num_tokens(self, num_bases: int) -> int:
        """Estimate of the tokens of `num_bases` bases; the real number varies."""
        return int(num_bases / self.mean_bases)

    def num_bases(self, num_tokens: int) -> int:
        """Bases that `num_tokens` tokens cover nine times out of ten; what does not fit a row is cut off."""
        return int(num_tokens * self.mean_bases)


def train_bpe(
    sequences: Iterable[Dna], output: Path, *, vocab_size: int, max_piece_length: int, info: dict[str, Any]
) -> None:
    """Train a model on `sequences` and write its folder. UserError where they are too few for `vocab_size`."""
    kept = [_UPPER_N.take(bases).tobytes().decode() for bases in sequences]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_between_n(kept),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentencepiece_length=max_piece_length,
            max_sentence_length=max(map(len, kept), default=1) + 1,
            character_coverage=1.0,
            required_chars=BASES,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]",
            control_symbols=["[MASK]"],
            user_defined_symbols=["N"],
            num_threads=1,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"sentencepiece cannot make {vocab_size} tokens of {sum(map(len, kept))} bases; lower --vocab_size "
            f"or raise --sample_bases ({' '.join(str(error).split())[-120:]})"
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ratios = [len(text) / len(processor.encode(text)) for text in kept if text]
    output.mkdir(parents=True, exist_ok=True)
    (output / MODEL_NAME).write_bytes(model.getvalue())
    # The low tenth of the chunks: rows filled by this figure seldom have to be cut.
    facts = {"bases_per_token": float(np.quantile(ratios, 0.1)), "vocab_size": vocab_size, **info}
    (output / INFO_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _between_n(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, text.split("N"))
