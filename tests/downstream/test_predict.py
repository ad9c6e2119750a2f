"""Predictions of fine-tuned models in genome coordinates, strands apart, against the model called by hand."""

import logging
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
from megadna.downstream.encoder import load_tokenizer
from megadna.downstream.inference import Runner
from megadna.downstream.options import FinetuneOptions, PredictOptions
from megadna.downstream.predict import Predictor
from megadna.downstream.task_training import build_model, save_model
from megadna.downstream.tasks import Target
from megadna.errors import UserError
from megadna.genome.records import Stretch, reverse_complement

PROBABILITIES = ["p_donor", "p_acceptor", "p_negative"]


def task_folder(encoder: Path, folder: Path, target: Target) -> str:
    """A head of random weights, saved as `megadna finetune` saves one."""
    tokenizer = load_tokenizer(str(encoder), trust_remote_code=False)
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


def by_hand(folder: str, bases: str, token: bool = False) -> np.ndarray:
    kind = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([tokenizer(bases)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0].numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_regions_are_read_on_their_strand_and_sequences_in_windows(folders, genome, tmp_path):
    path, contigs = genome
    (tmp_path / "r.bed").write_text("chr1\t10\t70\ta\t0\t-\nchr2\t0\t95\tb\t0\t+\n")
    found = predict(folders["sequence"], path, bed=tmp_path / "r.bed")
    for row, bases in enumerate((reverse_complement(contigs["chr1"][10:70]), contigs["chr2"])):
        expected = softmax(by_hand(folders["sequence"], bases))
        np.testing.assert_allclose(found.loc[row, PROBABILITIES].to_list(), expected, atol=1e-5)
        assert found.label[row] == ["donor", "acceptor", "negative"][expected.argmax()]
    assert found.strand.tolist() == ["-", "+"] and found.start.tolist() == [10, 0]
    whole = predict(folders["number"], path)
    windows = [by_hand(folders["number"], contigs["chr1"][start : start + 126])[0] for start in (0, 95, 184)]
    assert whole.value_strength[0] == pytest.approx(np.mean(windows), abs=1e-5)


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
    assert table.groupby("contig").position.apply(list).to_dict() == {"chr1": [*range(310)], "chr2": [*range(95)]}


def test_a_window_slides_over_a_genome_as_table_bed_and_bigwig(folders, genome, tmp_path):
    path, contigs = genome
    arguments = ["predict", "--model", folders["sequence"], "--input", str(path), "--window", "60", "--step", "40"]
    for ending in ("parquet", "bed", "bw"):
        main([*arguments, "--strand", "apart", "--output", str(tmp_path / f"t.{ending}")])
    table = pd.read_parquet(tmp_path / "t.parquet")
    starts = {"chr1": [0, 40, 80, 120, 160, 200, 240, 250], "chr2": [0, 35]}
    for strand in "+-":
        rows = table[table.strand == strand]
        assert rows.groupby("contig").start.apply(list).to_dict() == starts
    row = table[(table.strand == "-") & (table.contig == "chr1") & (table.start == 80)].iloc[0]
    expected = softmax(by_hand(folders["sequence"], reverse_complement(contigs["chr1"][80:140])))
    np.testing.assert_allclose(row[PROBABILITIES].to_list(), expected, atol=1e-5)
    bed = pd.read_csv(tmp_path / "t.bed", sep="\t", header=None)
    assert bed[3].tolist() == table.label.tolist() and bed[4].between(0, 1000).all()
    with pyBigWig.open(str(tmp_path / "t.donor.minus.bw")) as file:
        assert file.values("chr1", 90, 130) == pytest.approx([row.p_donor] * 40, abs=1e-6)
        two = table[(table.contig == "chr2") & (table.strand == "-")].p_donor.tolist()
        assert [interval[:2] for interval in file.intervals("chr2")] == [(10, 50), (50, 85)]
        assert [interval[2] for interval in file.intervals("chr2")] == pytest.approx(two, abs=1e-6)


def test_a_window_slides_around_a_circular_record(folders, genome):
    path, contigs = genome
    table = predict(folders["sequence"], path, window=60, step=40, circular=["chr2"], strand="apart")
    rows = table[table.contig == "chr2"]
    assert rows[rows.strand == "+"].start.tolist() == [0, 40, 80]
    assert rows[rows.strand == "+"].end.tolist() == [60, 95, 95]  # a row ends with its contig, the window goes on
    bases = (contigs["chr2"] * 2)[80:140]
    for strand, text in (("+", bases), ("-", reverse_complement(bases))):
        row = rows[(rows.strand == strand) & (rows.start == 80)].iloc[0]
        expected = softmax(by_hand(folders["sequence"], text))
        np.testing.assert_allclose(row[PROBABILITIES].to_list(), expected, atol=1e-5)
    assert table[(table.contig == "chr1") & (table.strand == "+")].start.tolist()[-1] == 250


ODD = ["start", "end", "name", "contig", "label", "a/b", "Start"]
FILES = ["start", "end", "name", "contig", "label", "a%2Fb", "%53tart"]


def test_classes_called_like_columns_or_folders_stay_apart_from_them(folders, genome, tmp_path):
    path, contigs = genome
    model = task_folder(Path(folders["encoder"]), tmp_path / "model", Target("classification", ODD))
    regions = [("chr1", 10, 70, "dnaA", "-"), ("chr1", 90, 150, ".", "+"), ("chr2", 0, 95, '5"x y', "+")]
    lines = (f"{contig}\t{start}\t{end}\t{name}\t0\t{sign}\n" for contig, start, end, name, sign in regions)
    (tmp_path / "r.bed").write_text("".join(lines))
    run = ["predict", "--model", model, "--input", str(path), "--bed", str(tmp_path / "r.bed"), "--output"]
    for ending in ("parquet", "bed", "bw"):
        main([*run, str(tmp_path / f"t.{ending}")])
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert table.columns.tolist() == ["contig", "start", "end", "name", "strand", "label", *(f"p_{n}" for n in ODD)]
    assert list(zip(table.contig, table.start, table.end, table.strand, strict=True)) == [
        (contig, start, end, sign) for contig, start, end, _, sign in regions
    ]
    assert table.name.tolist() == ["dnaA", "", '5"x y']
    expected = softmax(by_hand(model, reverse_complement(contigs["chr1"][10:70])))
    np.testing.assert_allclose(table.loc[0, [f"p_{name}" for name in ODD]].to_list(), expected, atol=1e-5)
    assert table.label[0] == ODD[expected.argmax()]
    bed = [line.split("\t") for line in (tmp_path / "t.bed").read_text().splitlines()]
    assert [row[:4] for row in bed] == [
        ["chr1", "10", "70", "dnaA"], ["chr1", "90", "150", table.label[1]], ["chr2", "0", "95", '5"x y'],
    ]  # fmt: skip
    assert [row[5:] for row in bed] == [["-", table.label[0]], ["+", table.label[1]], ["+", table.label[2]]]
    assert [int(row[4]) for row in bed] == (1000 * table.filter(like="p_").max(axis=1)).round().astype(int).tolist()
    written = {file.name for file in tmp_path.glob("*.bw")}
    assert written == {f"t.{name}.{sign}.bw" for name in FILES for sign in ("plus", "minus")}
    with pyBigWig.open(str(tmp_path / "t.a%2Fb.minus.bw")) as file:
        assert file.values("chr1", 10, 70) == pytest.approx([table["p_a/b"][0]] * 60, abs=1e-6)
    with pytest.raises(SystemExit):
        main([*run, str(tmp_path / "t.bw")])  # one file for each class is there already


def test_numbers_and_bases_without_a_prediction_say_so(folders, genome, tmp_path):
    path, _ = genome
    (tmp_path / "r.bed").write_text("chr1\t10\t70\n")
    main(["predict", "--model", folders["number"], "--input", str(path), "--bed", str(tmp_path / "r.bed"),
          "--output", str(tmp_path / "t.bed")])  # fmt: skip
    (value,) = predict(folders["number"], path, bed=tmp_path / "r.bed").value_strength
    assert (tmp_path / "t.bed").read_text() == f"chr1\t10\t70\t{value:.6g}\t0\t+\t{value:.6g}\n"
    predictor = Predictor(PredictOptions(model=folders["base"], input=path))
    predictor.runner = Runner(predictor.runner.tokenizer, lambda ids, mask: torch.full((*ids.shape, 2), torch.nan),
                              "nucleotide", device=torch.device("cpu"), batch_tokens=999)  # fmt: skip
    assert predictor.table([Stretch("c", 0, 9, "+", "ACGTACGTA")])["label"].null_count == 9


def test_two_records_of_one_name(folders, tmp_path, caplog):
    """Refused where coordinates need the name (test_labels.py); else counted, and the rows are in the file's order."""
    one, other = "ACGGTTACG" * 5, "TTGACCATG" * 7
    (tmp_path / "twice.fa").write_text(f">1\n{one}\n>1\n{other}\n>2\n{one}\n")
    logging.getLogger("megadna").addHandler(caplog.handler)
    for table in (
        embed(folders["encoder"], tmp_path / "twice.fa"),
        predict(folders["sequence"], tmp_path / "twice.fa"),
    ):
        assert list(zip(table.contig, table.end, strict=True)) == [("1", 45), ("1", 63), ("2", 45)]
    logging.getLogger("megadna").removeHandler(caplog.handler)
    said = [text for text in caplog.messages if "1 of 3 records have the name of an earlier one" in text]
    assert len(said) == 2
    with pytest.raises(UserError, match="two records are called 1"):
        predict(folders["sequence"], tmp_path / "twice.fa", window=20)


def test_a_fine_tuned_model_is_no_encoder(folders, genome):
    with pytest.raises(UserError, match="is a fine-tuned model, for megadna predict"):
        embed(folders["sequence"], genome[0])


def test_a_track_of_others_is_not_replaced(folders, genome, tmp_path, capsys):
    track = tmp_path / "x.in.minus.bw"
    track.write_text("mine")
    with pytest.raises(SystemExit):
        main(["predict", "--model", folders["base"], "--input", str(genome[0]), "--output", str(tmp_path / "x.bw")])
    assert f"{track}: is a file that exists" in capsys.readouterr().err and track.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [track]


def test_mistakes_end_in_one_line(folders, genome, tmp_path, capsys):
    path, _ = genome
    (tmp_path / "r.bed").write_text("chr1\t50\t90\nchr1\t10\t70\n")
    cases = [
        (folders["encoder"], "x.parquet", [], "not a fine-tuned model"),
        (folders["base"], "x.bw", ["--window", "10"], "--window is for models of sequences"),
        (folders["sequence"], "x.bw", ["--window", "10", "--circular", "chrM"], "--circular chrM: no such record"),
        (folders["base"], "x.bed", [], "a nucleotide model writes .parquet or .bw"),
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
