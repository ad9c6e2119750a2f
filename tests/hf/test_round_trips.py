"""Checkpoint -> Hugging Face folder -> checkpoint gives the same bits, for every preset and every format."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_checkpoint

from megadna.alphabet import dna_of
from megadna.arguments import load_config
from megadna.config import Config, DataConfig, ModelConfig, TokenizerConfig
from megadna.errors import UserError
from megadna.hf.checkpoints import CheckpointTensors
from megadna.hf.export import export
from megadna.hf.formats import choose_format, name_table
from megadna.hf.gate import NOT_COMPARED
from megadna.hf.importing import import_folder
from megadna.tokenizer.bpe import train_bpe
from megadna.train.checkpoint import find_checkpoint, read_config, read_numbers

DATA = Path(__file__).parents[1] / "data"
CONFIGS = Path(__file__).parents[2] / "configs"
FORMATS = {
    "demo": "megadna", "megadna-86m": "megadna", "aido-dna-300m": "aido", "dnabert-3mer": "bert",
    "dnabert-4mer": "bert", "dnabert-5mer": "bert", "dnabert-6mer": "bert", "bionemo-dnabert-86m": "megatron_bert",
}  # fmt: skip
LARGE = {"aido-dna-7b": "aido", "megadna-7b-hd128": "aido"}
NATIVE = ModelConfig(
    num_layers=3, hidden_size=64, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=96, layernorm_epsilon=1e-6,
    normalization="rmsnorm", qk_norm=True, linear_bias=False, rotary_base=5000, rotary_interpolation=2.0,
)  # fmt: skip
ODD = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=96, activation="gelu", norm_placement="post",
    positions="learned", max_positions=130, token_types=3, qk_norm=True,
)  # fmt: skip
BERT = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=96, activation="gelu", norm_placement="post",
    positions="learned", max_positions=128, token_types=2, layernorm_epsilon=1e-12,
)  # fmt: skip


def kmers(k=3, layout="dnabert", stride=1):
    return TokenizerConfig(kind="kmer", k=k, layout=layout, stride=stride)


def shallow(preset):
    config = load_config(CONFIGS / f"{preset}.yaml")
    return replace(config, model=replace(config.model, num_layers=2))


def same_model(one: Config, other: Config):
    free = {"attention": "auto", "init_std": 0.02, "dropout": 0.0}
    models = [replace(config.model, **free) for config in (one, other)]
    models = [replace(model, num_query_groups=model.query_groups) for model in models]
    if models[0].positions == "rotary":
        models = [replace(model, max_positions=1) for model in models]
    assert models[0] == models[1]
    assert one.tokenizer == other.tokenizer


def round_trip(config, tmp_path, *, wanted="auto", check=False, dtype="fp32", pieces=""):
    """Export and import; the differences that the gates found."""
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    checkpoint, weights = random_checkpoint(tmp_path / "first", config, dtype=stored)
    found = [export(checkpoint, tmp_path / "hf", wanted=wanted, dtype=dtype, check=check)]
    found.append(import_folder(tmp_path / "hf", tmp_path / "second", check=check, pieces=pieces))
    back = CheckpointTensors(find_checkpoint(tmp_path / "second"), master=True)
    assert set(back.names()) == set(weights) and back.dtype == stored
    for name, weight in weights.items():
        assert torch.equal(back.read(name), weight), name
    same_model(config, read_config(tmp_path / "second"))
    assert all((text == NOT_COMPARED) != check for text in found)
    return found


@pytest.mark.parametrize("preset", FORMATS)
def test_presets_come_back_bit_for_bit(preset, tmp_path):
    config = shallow(preset)
    assert choose_format(config, "auto") == FORMATS[preset]
    round_trip(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", LARGE)
def test_large_presets_come_back_bit_for_bit(preset, tmp_path):
    round_trip(shallow(preset), tmp_path, dtype="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["megadna-86m", "aido-dna-300m", "dnabert-3mer"])
def test_a_preset_of_each_format_passes_the_gate_in_both_directions(preset, tmp_path, every_core):
    """At full width; megadna, megatron_bert and multimolecule pass it below, in every run of the tests."""
    round_trip(shallow(preset), tmp_path, check=True)


@pytest.mark.parametrize(
    ("target", "model", "tokenizer"),
    [
        ("megadna", NATIVE, TokenizerConfig()),
        ("megadna", replace(NATIVE, local_context="both"), TokenizerConfig()),
        pytest.param("megadna", ODD, kmers(3, "bionemo"), marks=pytest.mark.slow),
        ("megatron_bert", replace(BERT, norm_placement="pre", token_types=0), kmers(3, "bionemo")),
    ],
    ids=["rmsnorm-gqa", "local-context", "post-norm-kmers", "megatron_bert"],
)
def test_formats_pass_the_gate_in_both_directions(target, model, tokenizer, tmp_path):
    config = Config(model=model, tokenizer=tokenizer, data=DataConfig(sequence_length=120))
    assert choose_format(config, "auto") == target
    round_trip(config, tmp_path, check=True)


def test_blocks_of_bases_come_back(tmp_path):
    round_trip(Config(model=ODD, tokenizer=kmers(4, stride=4), data=DataConfig(sequence_length=120)), tmp_path)


@pytest.mark.slow
def test_byte_pair_pieces_come_back(tmp_path):
    """The pieces are in the folder's tokenizer.json; back they come from the folder that trained them."""
    genome = gzip.decompress((DATA / "mgenitalium_G37.fa.gz").read_bytes()).decode().splitlines()[1:]
    letters = dna_of("".join(genome))
    train_bpe(np.array_split(letters, 600), tmp_path / "pieces", vocab_size=300, max_piece_length=16, info={})
    tokenizer = TokenizerConfig(kind="sentencepiece", model=str(tmp_path / "pieces"))
    config = Config(model=NATIVE, tokenizer=tokenizer, data=DataConfig(sequence_length=120))
    round_trip(config, tmp_path, pieces=str(tmp_path / "pieces"))
    with pytest.raises(UserError, match="byte-pair pieces need --pieces"):
        import_folder(tmp_path / "hf", tmp_path / "third", check=False)


def test_bf16_weights_come_out_bit_for_bit(tmp_path):
    config = Config(model=replace(NATIVE, num_layers=1), data=DataConfig(sequence_length=120))
    round_trip(config, tmp_path, dtype="bf16")


def test_multimolecule_rows_stand_in_its_order(tmp_path):
    """From DNABERT's order to multimolecule's and back to a checkpoint in the latter: each row follows its word."""
    config = Config(model=BERT, tokenizer=kmers(), data=DataConfig(sequence_length=120))
    checkpoint, weights = random_checkpoint(tmp_path / "first", config)
    export(checkpoint, tmp_path / "hf", wanted="multimolecule")
    import_folder(tmp_path / "hf", tmp_path / "second")
    second = read_config(tmp_path / "second")
    assert second.tokenizer.layout == "multimolecule" and choose_format(second, "auto") == "multimolecule"
    rows = CheckpointTensors(tmp_path / "second", master=True).read("embedding.word_embeddings.weight")
    vocab_rows = name_table("multimolecule", config).vocab_rows
    assert vocab_rows[:6] == [0, 2, 3, 1, 4, -1]  # pad, cls, eos = sep, unk, mask, null
    assert vocab_rows[6:10] == [5, 7, 8, 6]  # AAA, AAC, AAG, AAT
    for row, source in enumerate(vocab_rows):
        expected = torch.zeros(64) if source < 0 else weights["embedding.word_embeddings.weight"][source]
        assert torch.equal(rows[row], expected)
    third = export(tmp_path / "second", tmp_path / "bert", wanted="bert", check=False)
    assert third == NOT_COMPARED
    import_folder(tmp_path / "bert", tmp_path / "third", check=False)
    tensors = CheckpointTensors(tmp_path / "third", master=True)
    assert all(torch.equal(tensors.read(name), weight) for name, weight in weights.items())


def test_a_bias_that_was_added_twice_counts_twice(tmp_path):
    config = Config(model=BERT, tokenizer=kmers(), data=DataConfig(sequence_length=120))
    checkpoint, weights = random_checkpoint(tmp_path / "first", config)
    export(checkpoint, tmp_path / "hf", check=False)
    import_folder(tmp_path / "hf", tmp_path / "second", double_bias=True)
    doubled = CheckpointTensors(tmp_path / "second", master=True).read("output_layer.bias")
    assert torch.equal(doubled, 2 * weights["output_layer.bias"])


@pytest.mark.parametrize(
    ("wanted", "change", "reason"),
    [
        ("aido", {"normalization": "rmsnorm"}, "model.normalization is rmsnorm, and it has only layernorm"),
        ("aido", {"num_query_groups": 2}, "model.num_query_groups is 2, and it has as many as heads"),
        ("bert", {}, "model.activation is swiglu, and it has only gelu"),
        ("esm", {}, "no such format; one of: auto, bert"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(wanted, change, reason):
    with pytest.raises(UserError, match=reason):
        choose_format(Config(model=ModelConfig(**change)), wanted)


def test_vocab_txt_of_six_mers_is_dnaberts_own_file(tmp_path):
    """MD5 of the file that DNABERT's authors publish."""
    config = Config(model=replace(BERT, num_layers=1), tokenizer=kmers(6), data=DataConfig(sequence_length=120))
    checkpoint, _ = random_checkpoint(tmp_path / "first", config)
    export(checkpoint, tmp_path / "hf", check=False)
    vocabulary = (tmp_path / "hf" / "vocab.txt").read_bytes()
    assert hashlib.md5(vocabulary).hexdigest() == "63a210dc7e7a6062e89cddca6111b198"


def test_no_verify_is_recorded_in_both_folders(tmp_path):
    config = Config(model=BERT, tokenizer=kmers(), data=DataConfig(sequence_length=120))
    round_trip(config, tmp_path)
    assert NOT_COMPARED in (tmp_path / "hf" / "megadna.json").read_text()
    assert read_numbers(tmp_path / "second")["imported"]["gate"] == NOT_COMPARED
