"""Tokenizer of overlapping k-mers for transformers; this file travels with an export and needs nothing of megadna.

Raw sequence in, one token for each k letters, one letter apart; a k-mer that is not in the vocabulary is the unknown
token. Special tokens in the text are kept; k-mers do not reach across them.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer


class MegadnaKmerTokenizer(PreTrainedTokenizer):
    """Overlapping k-mers between [CLS] and [SEP]."""

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, k: int = 6, **kwargs: Any) -> None:
        self.k = k
        self.words = Path(vocab_file).read_text(encoding="utf-8").split()
        self.ids = {word: number for number, word in enumerate(self.words)}
        super().__init__(k=k, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary."""
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        """Text of each token -> id."""
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.upper() if text.isascii() else "".join(c.upper() if c.isascii() else "?" for c in text)
        return [text[start : start + self.k] for start in range(len(text) - self.k + 1)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, self.ids[self.unk_token])

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[CLS] x [SEP], or [CLS] x [SEP] y [SEP]."""
        cls, sep = [self.ids[self.cls_token]], [self.ids[self.sep_token]]
        return cls + token_ids_0 + sep + (token_ids_1 + sep if token_ids_1 is not None else [])

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 at [CLS], [SEP] and [PAD]."""
        if not already_has_special_tokens:
            token_ids_0 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        special = {self.ids[token] for token in (self.cls_token, self.sep_token, self.pad_token)}
        return [int(number in special) for number in token_ids_0]

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The sequence under the k-mers; a base that no k-mer shows is N."""
        frame = {self.cls_token, self.sep_token, self.pad_token}
        text = ""
        run: list[str] = []
        for number in [token_ids] if isinstance(token_ids, int) else token_ids:
            word = self.words[number]
            if word in frame:
                text, run = text + self._join(run) + ("" if skip_special_tokens else word), []
            else:
                run.append(word)
        return text + self._join(run)

    def _join(self, words: list[str]) -> str:
        letters = ["N"] * (len(words) + self.k - 1 if words else 0)
        for start, word in enumerate(words):
            if len(word) == self.k and word.isalpha():
                letters[start : start + self.k] = word
        return "".join(letters)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write vocab.txt."""
        path = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + "vocab.txt")
        path.write_text("\n".join(self.words) + "\n", encoding="utf-8")
        return (str(path),)
