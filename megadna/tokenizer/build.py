"""The tokenizer that a config asks for."""

from pathlib import Path

from megadna.config import TokenizerConfig
from megadna.tokenizer.base import NucleotideTokenizer, Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Tokenizer of `config.kind`; UserError where the folder of a sentencepiece model holds none."""
    if config.kind == "kmer":
        return KmerTokenizer(config.k, stride=config.stride, layout=config.layout)
    if config.kind == "sentencepiece":
        from megadna.tokenizer.bpe import BpeTokenizer  # only here is the library needed

        return BpeTokenizer(Path(config.model))
    return NucleotideTokenizer()
