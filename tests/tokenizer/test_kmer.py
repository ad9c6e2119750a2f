"""k-mers: the published ids, every k from 1 to 8, the unknown token, both strides, decoding."""

import hashlib

import numpy as np
import pytest

from megadna.alphabet import dna_of
from megadna.tokenizer.kmer import LAYOUTS, KmerTokenizer


def ids(tokenizer: KmerTokenizer, sequence: str) -> list[int]:
    return tokenizer.encode(dna_of(sequence)).tolist()


def random_letters(length: int, alphabet: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.frombuffer(alphabet.encode(), np.uint8), length)


def by_dictionary(tokenizer: KmerTokenizer, sequence: str) -> list[int]:
    """The ids the long way: cut, look up the text."""
    k = tokenizer.bases_per_token
    words = [sequence[at : at + k].upper() for at in range(0, len(sequence) - k + 1, tokenizer.stride)]
    vocabulary = {text: number for number, text in enumerate(tokenizer.tokens())}
    return [vocabulary.get(word, tokenizer.unk_id) for word in words]


ANCHORS = {
    "AAA": 5, "AAT": 6, "AAC": 7, "AAG": 8, "ATA": 9, "GGG": 68, "ACG": 16, "ACGT": 50, "ACGTA": 185,
    "ACGTAC": 727, "TTTTTT": 1370, "CCCCCC": 2735, "GGGGGG": 4100,
}  # fmt: skip


@pytest.mark.parametrize(("word", "number"), list(ANCHORS.items()))
def test_dnabert_anchors(word: str, number: int) -> None:
    tokenizer = KmerTokenizer(len(word), stride=1, layout="dnabert")
    assert ids(tokenizer, word) == [number]
    assert tokenizer.tokens()[number] == word


@pytest.mark.parametrize(("layout", "extra"), [("dnabert", 5), ("bionemo", 5), ("multimolecule", 6)])
def test_sizes_and_special_ids(layout: str, extra: int) -> None:
    for k in range(1, 9):
        assert KmerTokenizer(k, stride=1, layout=layout).vocab_size == 4**k + extra
    tokenizer = KmerTokenizer(3, stride=1, layout=layout)
    assert len(tokenizer.tokens()) == tokenizer.vocab_size
    names = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert names == ((0, 3, 1, 2, 4) if layout == "multimolecule" else (0, 1, 2, 3, 4))
    assert ids(tokenizer, "ACG") == [{"dnabert": 16, "bionemo": 11, "multimolecule": 12}[layout]]


def test_vocabulary_file_of_dnabert_6() -> None:
    text = "\n".join(KmerTokenizer(6, stride=1, layout="dnabert").tokens()) + "\n"
    assert hashlib.md5(text.encode()).hexdigest() == "63a210dc7e7a6062e89cddca6111b198"


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("k", range(1, 9))
def test_closed_form_equals_the_dictionary(k: int, layout: str) -> None:
    sequence = random_letters(500, "ACGTacgtACGTacgtNR-").tobytes().decode()
    for stride in {1, k}:
        tokenizer = KmerTokenizer(k, stride=stride, layout=layout)
        for cut in (sequence, sequence[: k - 1], sequence[:k], sequence[: k + 1], ""):
            assert ids(tokenizer, cut) == by_dictionary(tokenizer, cut)
            assert len(ids(tokenizer, cut)) == tokenizer.num_tokens(len(cut))


@pytest.mark.parametrize("stride", [1, 6])
def test_decode_gives_the_sequence_back(stride: int) -> None:
    tokenizer = KmerTokenizer(6, stride=stride, layout="dnabert")
    letters = random_letters(600, "ACGT")
    assert tokenizer.decode(tokenizer.encode(letters)) == letters.tobytes().decode()
    letters[100] = ord("N")
    decoded = tokenizer.decode(tokenizer.encode(letters))
    assert decoded == letters.tobytes().decode() if stride == 1 else decoded.count("N") == 6


def test_a_non_base_spoils_exactly_the_k_mers_over_it() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    result = np.array(ids(tokenizer, "ACGTACGTACNACGTACGTAC"))
    assert np.flatnonzero(result == tokenizer.unk_id).tolist() == [5, 6, 7, 8, 9, 10]
