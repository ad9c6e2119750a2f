"""Effects of substitutions beside loops over transformers; tracks, tables, strands, resumption, mistakes."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import by_hand, softmax, task_folder
from toy_models import kmer_folder, megadna_folder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadna import mutate
from megadna.cli import main
from megadna.downstream import mutate as mutate_module
from megadna.downstream import outputs
from megadna.downstream.pictures import importance, probabilities
from megadna.downstream.tasks import Target
from megadna.errors import UserError
from megadna.genome.records import reverse_complement

RNG = np.random.default_rng(12)
CHR1, CHR2 = ("".join(RNG.choice(list("ACGT"), size)) for size in (210, 60))
WINDOW = 41


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    plain = megadna_folder(home / "m")
    return {
        "nucleotide": str(plain),
        "kmer": str(kmer_folder(home / "k")),
        "classes": task_folder(plain, home / "c", Target("classification", ["donor", "acceptor", "negative"])),
        "number": task_folder(plain, home / "n", Target("regression", ["strength"])),
        "base": task_folder(plain, home / "b", Target("base_classification", ["out", "in"])),
    }


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(f">chr1\n{CHR1}\n>chr2\n{CHR2}\n")
    return path


@cache
def loaded(folder: str):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return tokenizer, AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()


def log_p(folder: str, bases: str, at: int) -> np.ndarray:
    """ln p of A, C, G, T at a hidden base, by transformers; of overlapping 3-mers the mean of p of those over it."""
    tokenizer, model = loaded(folder)
    k = 3 if Path(folder).name == "k" else 1
    words = [bases[i : i + k] for i in range(len(bases) - k + 1)]
    over = [i for i in range(at - k + 1, at + 1) if 0 <= i < len(words)]
    ids = [tokenizer.mask_token_id if i in over else tokenizer.convert_tokens_to_ids(w) for i, w in enumerate(words)]
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])).logits[0, 1:-1]
    p_4 = np.zeros(4)
    for i in over:
        texts = [words[i][: at - i] + base + words[i][at - i + 1 :] for base in "ACGT"]
        p_4 += logits[i][tokenizer.convert_tokens_to_ids(texts)].double().softmax(-1).numpy() / len(over)
    return np.log(p_4)


def window_at(contig: str, at: int) -> tuple[str, int]:
    start = min(max(0, at - WINDOW // 2), len(contig) - WINDOW)
    return contig[start : start + WINDOW], at - start


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
@pytest.mark.parametrize("strand", ["forward", "both"])
def test_masked_log_odds_equal_transformers_by_hand(kind, strand, folders, genome, tmp_path):
    (tmp_path / "r.bed").write_text("chr1\t100\t104\ta\t0\t-\nchr1\t0\t3\tb\t0\t+\nchr2\t57\t60\tc\t0\t-\n")
    found = mutate(folders[kind], genome, bed=tmp_path / "r.bed", window=WINDOW, strand=strand)
    expected = []
    for name, contig, start, end, sign in (
        ("a", CHR1, 100, 104, "-"),
        ("b", CHR1, 0, 3, "+"),
        ("c", CHR2, 57, 60, "-"),
    ):
        for position in range(start, end) if sign == "+" else reversed(range(start, end)):
            bases, at = window_at(contig, position)
            other, back = reverse_complement(bases), WINDOW - 1 - at
            ways = [(bases, at), (other, back)] if sign == "+" else [(other, back), (bases, at)]
            parts = [log_p(folders[kind], *ways[0])]
            if strand == "both":
                parts.append(log_p(folders[kind], *ways[1])[::-1])
            mean_4, ref = np.mean(parts, axis=0), ways[0][0][ways[0][1]]
            values = dict(zip("ACGT", mean_4, strict=True))
            expected += [(name, position, sign, ref, alt, values[alt] - values[ref]) for alt in "ACGT" if alt != ref]
    assert found.columns.tolist() == ["contig", "position", "name", "strand", "ref", "alt", "llr"]
    rows = found[["name", "position", "strand", "ref", "alt"]].itertuples(index=False, name=None)
    assert list(rows) == [row[:5] for row in expected]
    np.testing.assert_allclose(found.llr, [row[5] for row in expected], atol=2e-5)


def test_a_window_is_the_context_unless_it_is_given(folders, genome):
    """The toy's context holds 126 bases: 125 around the base, all 60 of chr2."""
    found = mutate(folders["nucleotide"], genome)
    assert len(found) == 3 * (210 + 60) and found.strand.unique().tolist() == ["."]
    for contig, text, position in (("chr1", CHR1[40:165], 102), ("chr1", CHR1[:125], 5), ("chr2", CHR2, 59)):
        rows = found[(found.contig == contig) & (found.position == position)]
        log_p_4 = log_p(folders["nucleotide"], text, 62 if position == 102 else position)
        right = [log_p_4["ACGT".index(alt)] - log_p_4["ACGT".index(rows.ref.iloc[0])] for alt in rows.alt]
        np.testing.assert_allclose(rows.llr, right, atol=2e-5)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
def test_rings_are_read_across_their_ends_and_short_records_do_not_stop_it(kind, folders, tmp_path):
    (tmp_path / "ring.fa").write_text(f">r circular=true\n{CHR2}\n>s\nAC\n")
    found = mutate(folders[kind], tmp_path / "ring.fa", window=WINDOW)
    window = CHR2[-20:] + CHR2[:21]
    log_p_4, rows = log_p(folders[kind], window, 20), found[(found.position == 0) & (found.contig == "r")]
    right = [log_p_4["ACGT".index(alt)] - log_p_4["ACGT".index(CHR2[0])] for alt in rows.alt]
    np.testing.assert_allclose(rows.llr, right, atol=2e-5)
    assert found[found.contig == "s"].llr.isna().tolist() == [kind == "kmer"] * 6


def test_changes_of_a_head_equal_the_model_by_hand(folders, genome, tmp_path):
    (tmp_path / "r.bed").write_text("chr1\t100\t130\ta\t0\t-\n")
    region = reverse_complement(CHR1[100:130])
    options = {"bed": tmp_path / "r.bed"}
    p = mutate(folders["classes"], genome, **options)
    odds = mutate(folders["classes"], genome, scale="log_odds", **options)
    number = mutate(folders["number"], genome, strand="both", **options)
    assert len(p) == len(number) == 90 and p.position.tolist()[:4] == [129, 129, 129, 128]
    for row in (0, 41, 89):
        at = 129 - p.position[row]
        changed = region[:at] + p.alt[row] + region[at + 1 :]
        assert p.ref[row] == region[at]
        one, other = (softmax(by_hand(folders["classes"], bases).astype(float)) for bases in (changed, region))
        names = ["change_donor", "change_acceptor", "change_negative"]
        np.testing.assert_allclose(p.loc[row, names].to_list(), one - other, atol=1e-5)
        np.testing.assert_allclose(odds.loc[row, names].to_list(), _logit(one) - _logit(other), atol=2e-5)
        mean = [
            np.mean([by_hand(folders["number"], text)[0] for text in (bases, reverse_complement(bases))])
            for bases in (changed, region)
        ]
        assert number.change_strength[row] == pytest.approx(mean[0] - mean[1], abs=1e-5)


def _logit(p):
    return np.log(p) - np.log1p(-p)


def test_every_output_says_the_same(folders, genome, tmp_path):
    """Two regions with an N beyond them; values of the table, the array and the tracks agree, as does the order."""
    text = CHR1[:50] + "N" + CHR1[51:]
    (tmp_path / "g.fa").write_text(f">chr1\n{text}\n>chr2\n{CHR2}\n")
    (tmp_path / "r.bed").write_text("chr2\t10\t20\tb\t0\t+\nchr1\t45\t55\ta\t0\t-\n")
    files = [str(tmp_path / f"out.{ending}") for ending in ("parquet", "tsv", "npy", "bw")]
    run = ["mutate", "--model", folders["nucleotide"], "--input", str(tmp_path / "g.fa"), "--window", "21"]
    main([*run, "--bed", str(tmp_path / "r.bed"), "--output", *files])
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.entropy.bw", "out.max_abs.bw", "out.npy", "out.npy.index.tsv", "out.parquet", "out.tsv",
    ]  # fmt: skip
    table, array_N4 = pd.read_parquet(tmp_path / "out.parquet"), np.load(tmp_path / "out.npy")
    index = pd.read_csv(tmp_path / "out.npy.index.tsv", sep="\t")
    assert array_N4.shape == (20, 4) and len(table) == 3 * 19
    assert index.position.tolist() == [*reversed(range(45, 55)), *range(10, 20)]
    assert np.isnan(array_N4[4]).all() and index.ref[4] == "N" and np.isfinite(np.delete(array_N4, 4, 0)).all()
    for row in table.itertuples():
        at = index[(index.contig == row.contig) & (index.position == row.position)].index[0]
        assert array_N4[at, "ACGT".index(row.alt)] == np.float32(row.llr) and array_N4[at, "ACGT".index(row.ref)] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.tsv", sep="\t").llr, table.llr, rtol=1e-6)
    p_N4 = np.exp(array_N4) / np.exp(array_N4).sum(axis=1, keepdims=True)
    with pyBigWig.open(files[3].replace(".bw", ".entropy.bw")) as file:
        assert file.chroms() == {"chr1": 210, "chr2": 60}
        np.testing.assert_allclose(file.values("chr2", 10, 20), -(p_N4 * np.log2(p_N4)).sum(1)[10:], rtol=1e-5)
        assert len(file.intervals("chr1")) == 9
    with pyBigWig.open(files[3].replace(".bw", ".max_abs.bw")) as file:
        np.testing.assert_allclose(file.values("chr1", 45, 55), np.abs(array_N4[:10]).max(1)[::-1], rtol=1e-6)
    both = mutate(folders["nucleotide"], tmp_path / "g.fa", bed=tmp_path / "r.bed", window=21)
    pd.testing.assert_frame_equal(both, table)


def test_tracks_and_arrays_of_a_head(folders, genome, tmp_path):
    (tmp_path / "r.bed").write_text("chr1\t100\t110\n")
    files = [str(tmp_path / f"out.{ending}") for ending in ("npy", "bw")]
    run = ["mutate", "--model", folders["classes"], "--input", str(genome), "--bed", str(tmp_path / "r.bed")]
    main([*run, "--output", *files])
    array_LK4 = np.load(tmp_path / "out.npy").reshape(10, 3, 4)
    assert sorted(path.name for path in tmp_path.glob("*.bw")) == [
        f"out.max_abs.{name}.bw" for name in ("acceptor", "donor", "negative")
    ]
    with pyBigWig.open(str(tmp_path / "out.max_abs.acceptor.bw")) as file:
        np.testing.assert_allclose(file.values("chr1", 100, 110), np.abs(array_LK4[:, 1]).max(1), rtol=1e-6)


def test_results_do_not_depend_on_where_parts_end(folders, genome, tmp_path, monkeypatch):
    (tmp_path / "r.bed").write_text("chr1\t5\t60\ta\t0\t-\nchr1\t100\t103\tb\nchr2\t0\t60\tc\t0\t+\n")
    cases = [("nucleotide", {"window": 41, "strand": "both"}), ("number", {})]
    whole = [mutate(folders[kind], genome, bed=tmp_path / "r.bed", **options) for kind, options in cases]
    monkeypatch.setattr(mutate_module, "MAX_PART_TOKENS", 700)
    for (kind, options), right in zip(cases, whole, strict=True):
        divided = mutate(folders[kind], genome, bed=tmp_path / "r.bed", batch_tokens=100, **options)
        pd.testing.assert_frame_equal(divided, right, atol=2e-5)


def test_a_stopped_command_is_resumed(folders, genome, tmp_path, monkeypatch):
    monkeypatch.setattr(mutate_module, "MAX_PART_TOKENS", 2000)
    run = ["mutate", "--model", folders["nucleotide"], "--input", str(genome), "--window", "41", "--output"]
    main([*run, str(tmp_path / "whole.npy")])
    computed, write = [], outputs.parquet.write_table

    def stop_at_the_third(table, part, **options):
        computed.append(part.name)
        if len(computed) == 3:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_third)
    with pytest.raises(SystemExit):
        main([*run, str(tmp_path / "b.npy")])
    assert not (tmp_path / "b.npy").exists() and len(computed) == 3
    main([*run, str(tmp_path / "b.npy")])
    assert computed[2] == computed[3] and len(set(computed)) == len(computed) - 1
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_probabilities_and_importance_by_hand():
    np.testing.assert_allclose(probabilities(np.log([[1, 2, 4, 1]])), [[0.125, 0.25, 0.5, 0.125]])
    np.testing.assert_allclose(
        importance(np.array([[0, -1, -2, -3], [1, 1, 0, 2]]), "AG"), [[1.5, 0, 0, 0], [0, 0, -1, 0]]
    )


def test_mistakes_end_in_one_line(folders, genome, tmp_path, capsys):
    (tmp_path / "none.bed").write_text("# nothing\n")
    (tmp_path / "twice.bed").write_text("chr1\t50\t90\nchr1\t10\t70\n")
    (tmp_path / "long.bed").write_text("chr1\t10\t200\n")
    (tmp_path / "there.npy").touch()
    (tmp_path / "elsewhere").mkdir()
    plain = folders["nucleotide"]
    cases = [
        (plain, ["x.txt"], [], "its ending must be one of .parquet, .tsv, .npy, .bw, .png, .html"),
        (plain, [], [], "say what to write with --output"),
        (plain, ["x.npy", "y.npy"], [], "--output names 2 files that end in .npy"),
        (plain, ["x.npy", "elsewhere/x.bw"], [], "must be in the folder of"),
        (plain, ["x.npy", "there.npy"], [], "names 2 files"),
        (plain, ["there.npy"], [], "exists; choose another --output"),
        (plain, ["x.npy"], ["--bed", "none.bed"], "empty: holds no interval"),
        (plain, ["x.bw"], ["--bed", "twice.bed"], "sorted and do not overlap"),
        (plain, ["x.npy"], ["--window", "40"], "--window must be odd"),
        (plain, ["x.npy"], ["--window", "127"], "holds 126 bases"),
        (plain, ["x.npy"], ["--input", "-"], "--input - can be read only once"),
        (folders["kmer"], ["x.npy"], ["--window", "1"], "covers 3 bases"),
        (plain, ["x.npy"], ["--scale", "log_odds"], "for fine-tuned classifiers"),
        (plain, ["x.npy"], ["--gff", "none.bed"], "--gff is drawn in .png and .html only; name such a file"),
        (folders["number"], ["x.npy"], ["--window", "41"], "reads the whole region"),
        (folders["number"], ["x.npy"], ["--scale", "log_odds"], "predicts numbers"),
        (folders["number"], ["x.npy"], ["--bed", "long.bed"], "190 bases, and the context"),
        (folders["base"], ["x.npy"], [], "predicts every nucleotide"),
    ]
    for folder, names, more, message in cases:
        more = [str(tmp_path / word) if word.endswith(".bed") else word for word in more]
        out = ["--output", *(str(tmp_path / name) for name in names)] if names else []
        with pytest.raises(SystemExit) as stopped:
            main(["mutate", "--model", folder, *([] if "--input" in more else ["--input", str(genome)]), *out, *more])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("x.*"))
    with pytest.raises(UserError, match="--strand must be one of forward, both, got 'reverse'"):
        mutate(plain, genome, strand="reverse")
