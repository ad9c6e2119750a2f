"""Tokenizer files that travel with an export: raw sequence in, the same ids as training out.

In:  a megadna tokenizer, an export folder.
Out: tokenizer.json and tokenizer_config.json, read by transformers 4.48 to 5.x as a fast tokenizer. Overlapping
k-mers, which a fast tokenizer cannot express: vocab.txt, tokenizer_config.json and tokenization_megadna.py
(trust_remote_code=True). Formats of others: vocab.txt and the tokenizer_config.json of their own class, which for
BertTokenizer means k-mers with spaces between them.

Bases are upper-cased. IUPAC ambiguity codes: N for nucleotides and byte-pair pieces, unknown in k-mers. Special
tokens in the text, such as [MASK], are kept.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from megadna.alphabet import BASES, IUPAC_AMBIGUOUS
from megadna.config import TokenizerConfig
from megadna.errors import UserError
from megadna.files import write_json
from megadna.reading import read_json, read_text
from megadna.tokenizer.base import NucleotideTokenizer
from megadna.tokenizer.base import Tokenizer as DnaTokenizer
from megadna.tokenizer.build import build_tokenizer
from megadna.tokenizer.kmer import LAYOUTS, KmerTokenizer

_ANY_CHARACTER = r"[\s\S]"


def write_tokenizer(tokenizer: DnaTokenizer, folder: Path, max_length: int, *, target: str = "megadna") -> None:
    """Write the files of `tokenizer` for a format; `max_length` counts tokens, [CLS] and [SEP] included."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **_special_names(tokenizer),
    }
    overlapping = isinstance(tokenizer, KmerTokenizer) and tokenizer.stride < tokenizer.bases_per_token
    if overlapping or target in _FOREIGN:
        (folder / "vocab.txt").write_text("\n".join(tokenizer.tokens()) + "\n", encoding="utf-8")
        k = tokenizer.bases_per_token
        config |= _FOREIGN.get(target) or {
            "tokenizer_class": "MegadnaKmerTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_megadna.MegadnaKmerTokenizer", None]},
            "k": k,
        }
        if target == "multimolecule":
            config |= {"nmers": k, "bos_token": "<cls>", "eos_token": "<eos>", "null_token": "<null>"}
        if target not in _FOREIGN:
            source = Path(__file__).with_name("tokenization_megadna.py")
            (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    else:
        _fast(tokenizer).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)


_BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}  # lower case would make every k-mer unknown
_FOREIGN: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "megatron_bert": _BERT,
    "multimolecule": {"tokenizer_class": "DnaTokenizer", "alphabet": "nucleobase"},
}


def recognise_tokenizer(folder: Path, target: str, vocab_size: int, pieces: str) -> TokenizerConfig:
    """The tokenizer of a Hugging Face folder, by its vocabulary; by its size alone where there are no files.

    pieces: folder of the sentencepiece model, which a Hugging Face folder does not hold; empty for the other kinds.
    UserError where the vocabulary is none that megadna knows.
    """
    if pieces:
        return TokenizerConfig(kind="sentencepiece", model=pieces)
    words: list[str] | None = None
    if (folder / "vocab.txt").is_file():
        words = read_text(folder / "vocab.txt").split()
    elif (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
            raise UserError(f"{folder / 'tokenizer.json'}: model.vocab is not a table of tokens and their ids")
        words = sorted(vocabulary, key=vocabulary.__getitem__)
    stride_one = (folder / "vocab.txt").is_file() or words is None
    layouts = {"multimolecule": ["multimolecule"], "megatron_bert": ["bionemo", "dnabert"]}.get(target, list(LAYOUTS))
    candidates = [TokenizerConfig()] if target in ("aido", "megadna") else []
    candidates += [
        TokenizerConfig(kind="kmer", k=k, stride=1 if stride_one else k, layout=layout)  # type: ignore[arg-type]
        for k in range(1, 9)
        for layout in layouts
        if 4**k < vocab_size
    ]
    for candidate in candidates:
        tokenizer = build_tokenizer(candidate)
        if tokenizer.vocab_size == vocab_size and words in (None, tokenizer.tokens()):
            return candidate
    raise UserError(
        f"{folder}: its vocabulary ({vocab_size} tokens) is neither AIDO.DNA's nor k-mers in the order of DNABERT, "
        "BioNeMo or multimolecule; byte-pair pieces need --pieces FOLDER of megadna train-tokenizer"
    )


def _special_names(tokenizer: DnaTokenizer) -> dict[str, str]:
    texts = tokenizer.tokens()
    return {f"{name}_token": texts[getattr(tokenizer, f"{name}_id")] for name in ("pad", "mask", "cls", "sep", "unk")}


def _upper_case(bases: str) -> list[normalizers.Normalizer]:
    return [normalizers.Replace(base.lower(), base) for base in bases]


def _fast(tokenizer: DnaTokenizer) -> Tokenizer:
    texts, names = tokenizer.tokens(), _special_names(tokenizer)
    vocabulary = {text: number for number, text in enumerate(texts)}
    decoder: decoders.Decoder = decoders.Fuse()
    if isinstance(tokenizer, NucleotideTokenizer):
        ambiguous = Regex(f"[{IUPAC_AMBIGUOUS}{IUPAC_AMBIGUOUS.lower()}]")
        fast = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
        fast.normalizer = normalizers.Sequence([*_upper_case("ACGTU"), normalizers.Replace(ambiguous, "N")])
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), "isolated")
    elif isinstance(tokenizer, KmerTokenizer):  # that do not overlap; an incomplete one at the end gives no token
        k = tokenizer.bases_per_token
        fast = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
        fast.normalizer = normalizers.Sequence(_upper_case(BASES))
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(f"{_ANY_CHARACTER}{{{k}}}"), "removed", invert=True)
        decoder = decoders.Sequence([decoders.Replace(names["unk_token"], "N" * k), decoder])
    else:  # sentencepiece's merges by rank: a piece's rank is its id, whichever two pieces it is joined from
        merges = [
            (piece[:cut], piece[cut:])
            for piece in texts[tokenizer.nucleotide_ids[0] :]
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        fast = Tokenizer(models.BPE(vocabulary, merges))
        other = normalizers.Replace(Regex("[^ACGT]"), "N")
        fast.normalizer = normalizers.Sequence([*_upper_case(BASES), other])
    cls, sep = names["cls_token"], names["sep_token"]
    fast.add_special_tokens(list(names.values()))
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )
    fast.decoder = decoder
    return fast
