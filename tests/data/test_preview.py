"""A batch as text, and the tokenizer that `megadna train-tokenizer` makes, through the command line."""

from pathlib import Path

import numpy as np
import pytest
from loader_config import make_config

from megadna import cli
from megadna.arguments import dump_config, load_config
from megadna.config import BlendConfig, MaskingConfig, RateChange, TokenizerConfig
from megadna.data.dataset import open_chunks
from megadna.data.loader import resolve_sequence_length
from megadna.data.samples import Samples
from megadna.data.loader import show_batch
from megadna.tokenizer.build import build_tokenizer


@pytest.fixture(scope="module")
def bpe_folder(two_genomes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    cli.main(["train-tokenizer", "--data.path", two_genomes[0], "--output", str(folder), "--vocab_size", "500"])
    return folder


def test_the_lines_of_a_batch_are_aligned(two_genomes: list[str]) -> None:
    lines = show_batch(make_config(two_genomes, sequence_length=502), max_rows=2).splitlines()
    blocks = [lines[i : i + 3] for i, line in enumerate(lines) if line.startswith("  genome")]
    assert len(blocks) == 6 and blocks[0][0][13] == "<"
    asked = 0
    for genome, seen, labels in blocks:
        for column in range(13, len(genome)):
            label = labels[column] if column < len(labels) else " "
            assert label in (" ", genome[column])
            assert label != " " or seen[column] == genome[column]
            asked += label != " "
    assert 50 < asked < 130


@pytest.mark.parametrize("kind", ["kmer", "sentencepiece"])
def test_other_tokenizers_show_their_tokens(two_genomes: list[str], bpe_folder: Path, kind: str) -> None:
    model = str(bpe_folder) if kind == "sentencepiece" else ""
    config = make_config(two_genomes, tokenizer=TokenizerConfig(kind=kind, model=model))
    text = show_batch(config, max_rows=1)
    assert text.count("model sees") == 3 and "_" in text


def test_a_byte_pair_tokenizer_fills_rows(two_genomes: list[str], bpe_folder: Path) -> None:
    config = make_config(two_genomes, tokenizer=TokenizerConfig(kind="sentencepiece", model=str(bpe_folder)))
    tokenizer = build_tokenizer(config.tokenizer)
    assert tokenizer.vocab_size == 500
    pool = open_chunks(two_genomes, "train")
    length = resolve_sequence_length(config, pool.chunk_length, tokenizer)
    rows = Samples(config, tokenizer, pool, sequence_length=length).rows(np.arange(200))
    assert length > 200 and rows.lengths_B.max() == length and np.median(rows.lengths_B) > 0.9 * length
    assert abs(len(rows.positions_M) / rows.lengths_B.sum() - 0.15) < 0.02


def test_inspect_prints_the_batch_of_a_config(two_genomes: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "c.yaml").write_text("data: {sequence_length: 302}\ntrain: {micro_batch_size: 3}\n")
    cli.main(["inspect", two_genomes[0], "--show_batch", "--config", str(tmp_path / "c.yaml")])
    text = capsys.readouterr().out
    assert text.startswith("3 rows of 302 tokens") and text.count("model sees") == 9


def test_a_tokenizer_folder_is_not_overwritten(two_genomes: list[str], bpe_folder: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train-tokenizer", "--data.path", two_genomes[0], "--output", str(bpe_folder)])
    assert caught.value.code == 2 and "not empty" in capsys.readouterr().err


def test_schedule_and_blend_survive_the_resolved_config(tmp_path: Path) -> None:
    masking = MaskingConfig(schedule=[RateChange(step=10, fraction=0.2, sample=160)])
    config = make_config("d", masking=masking, blend=BlendConfig(by="source", weights={"a": 1.0, "b": 2.5}))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
