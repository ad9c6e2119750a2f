"""Predictions of fine-tuned models in genome coordinates, strands apart, against the model called by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import kmer_folder, megadna_folder
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from megadna import embed, predict
from megadna.cli import main
from megadna.downstream.encoder import load_config, load_tokenizer
from megadna.downstream.genome import reverse_complement
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.task_model import build_model, save_model
from megadna.downstream.tasks import Target
from megadna.errors import UserError


def task_folder(encoder: Path, folder: Path, target: Target) -> str:
    """A head of random weights, saved as `megadna finetune` saves one."""
    config = load_config(str(encoder), trust_remote_code=False)
    tokenizer = load_tokenizer(str(encoder), config, trust_remote_code=False)
    torch.manual_seed(1)
    model = build_model(FinetuneOptions(model=str(encoder), head_sizes=[8]), target, tokenizer, None)
    save_model(model, model, tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    plain, words = megadna_folder(home / "m"), kmer_folder(home / "k")
    return {
        "sequence": task_folder(plain, home / "s", Target("classification", ["donor", "acceptor", "negative"])),
        "number": task_folder(plain, home / "n", Target("regression", ["strength"])),
        "base": task_folder(words, home / "b", Target("base_classification", ["out", "in"])),
        "encoder": str(plain),
    }


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    rng = np.random.default_rng(8)
    contigs = {name: "".join(rng.choice(list("ACGT"), size)) for name, size in (("chr1", 310), ("chr2", 95))}
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text("".join(f">{name} x\n{text}\n" for name, text in contigs.items()))
    return path, contigs


def by_hand(folder: str, letters: str, token: bool = False) -> np.ndarray:
    kind = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([tokenizer(letters)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0].numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_regions_are_read_on_their_strand_and_sequences_in_windows(folders, genome, tmp_path):
    path, contigs = genome
    (tmp_path / "r.bed").write_text("chr1\t10\t70\ta\t0\t-\nchr2\t0\t95\tb\t0\t+\n")
    found = predict(folders["sequence"], path, bed=tmp_path / "r.bed")
    for row, letters in enumerate((reverse_complement(contigs["chr1"][10:70]), contigs["chr2"])):
        expected = softmax(by_hand(folders["sequence"], letters))
        np.testing.assert_allclose(found.loc[row, ["donor", "acceptor", "negative"]].to_list(), expected, atol=1e-5)
        assert found.label[row] == ["donor", "acceptor", "negative"][expected.argmax()]
    assert found.strand.tolist() == ["-", "+"] and found.start.tolist() == [10, 0]
    whole = predict(folders["number"], path)
    windows = [by_hand(folders["number"], contigs["chr1"][start : start + 126])[0] for start in (0, 95, 184)]
    assert whole.strength[0] == pytest.approx(np.mean(windows), abs=1e-5)


def test_bases_of_both_strands_in_genome_coordinates(folders, genome, tmp_path):
    path, contigs = genome
    text = contigs["chr2"]
    main(["predict", "--model", folders["base"], "--input", str(path), "--strand", "apart",
          "--output", str(tmp_path / "t.bw")])  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"t.{name}.{strand}.bw" for name in ("in", "out") for strand in ("minus", "plus")
    ]
    tokens = {"plus": by_hand(folders["base"], text[:64], token=True)[1:-1],
              "minus": by_hand(folders["base"], reverse_complement(text)[:64], token=True)[1:-1]}  # fmt: skip
    for strand, logits in tokens.items():
        with pyBigWig.open(str(tmp_path / f"t.in.{strand}.bw")) as file:
            assert file.chroms() == {"chr1": 310, "chr2": 95}
            values = np.array(file.values("chr2", 0, 95))
            assert not np.isnan(values).any() and not np.isnan(file.values("chr1", 0, 310)).any()
        values = values if strand == "plus" else values[::-1]
        bases = [softmax(logits[max(0, b - 2) : b + 1].mean(axis=0))[1] for b in range(40)]
        np.testing.assert_allclose(values[:40], bases, atol=1e-5)
    table = predict(folders["base"], path, strand="both")
    assert table.groupby("name").position.apply(list).to_dict() == {"chr1": [*range(310)], "chr2": [*range(95)]}


def test_a_window_slides_over_a_genome_as_table_bed_and_bigwig(folders, genome, tmp_path):
    path, contigs = genome
    arguments = ["predict", "--model", folders["sequence"], "--input", str(path), "--window", "60", "--step", "40"]
    for ending in ("parquet", "bed", "bw"):
        main([*arguments, "--strand", "apart", "--output", str(tmp_path / f"t.{ending}")])
    table = pd.read_parquet(tmp_path / "t.parquet")
    starts = {"chr1": [0, 40, 80, 120, 160, 200, 240, 250], "chr2": [0, 35]}
    for strand in "+-":
        rows = table[table.strand == strand]
        assert rows.groupby("name").start.apply(list).to_dict() == starts
    row = table[(table.strand == "-") & (table.name == "chr1") & (table.start == 80)].iloc[0]
    expected = softmax(by_hand(folders["sequence"], reverse_complement(contigs["chr1"][80:140])))
    np.testing.assert_allclose(row[["donor", "acceptor", "negative"]].to_list(), expected, atol=1e-5)
    bed = pd.read_csv(tmp_path / "t.bed", sep="\t", header=None)
    assert bed[3].tolist() == table.label.tolist() and bed[4].between(0, 1000).all()
    with pyBigWig.open(str(tmp_path / "t.donor.minus.bw")) as file:
        assert file.values("chr1", 90, 130) == pytest.approx([row.donor] * 40, abs=1e-6)
        two = table[(table.name == "chr2") & (table.strand == "-")].donor.tolist()
        assert [interval[:2] for interval in file.intervals("chr2")] == [(10, 50), (50, 85)]
        assert [interval[2] for interval in file.intervals("chr2")] == pytest.approx(two, abs=1e-6)


def test_a_window_slides_round_a_ring(folders, genome):
    path, contigs = genome
    table = predict(folders["sequence"], path, window=60, step=40, circular=["chr2"], strand="apart")
    rows = table[table.name == "chr2"]
    assert rows[rows.strand == "+"].start.tolist() == [0, 40, 80]
    assert rows[rows.strand == "+"].end.tolist() == [60, 95, 95]  # a row ends with its contig, the window goes on
    letters = (contigs["chr2"] * 2)[80:140]
    for strand, text in (("+", letters), ("-", reverse_complement(letters))):
        row = rows[(rows.strand == strand) & (rows.start == 80)].iloc[0]
        expected = softmax(by_hand(folders["sequence"], text))
        np.testing.assert_allclose(row[["donor", "acceptor", "negative"]].to_list(), expected, atol=1e-5)
    assert table[(table.name == "chr1") & (table.strand == "+")].start.tolist()[-1] == 250


def test_a_fine_tuned_model_is_no_encoder(folders, genome):
    with pytest.raises(UserError, match="is a fine-tuned model, which megadna predict runs"):
        embed(folders["sequence"], genome[0])


def test_mistakes_end_in_one_line(folders, genome, tmp_path, capsys):
    path, _ = genome
    (tmp_path / "r.bed").write_text("chr1\t50\t90\nchr1\t10\t70\n")
    cases = [
        (folders["encoder"], "x.parquet", [], "no fine-tuned model"),
        (folders["base"], "x.bw", ["--window", "10"], "--window is for models of sequences"),
        (folders["sequence"], "x.bw", ["--window", "10", "--circular", "chrM"], "--circular names chrM"),
        (folders["base"], "x.bed", [], "a model of nucleotides writes .parquet or .bw"),
        (folders["sequence"], "x.tsv", [], "its ending must be one of .parquet, .bed, .bw"),
        (folders["sequence"], "x.bw", ["--bed", str(tmp_path / "r.bed")], "sorted and do not overlap"),
        (folders["sequence"], "x.bw", ["--window", "10", "--step", "20"], "--step 20 is longer than --window 10"),
    ]
    for model, output, more, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(["predict", "--model", model, "--input", str(path), "--output", str(tmp_path / output), *more])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
        assert not (tmp_path / output).exists()
