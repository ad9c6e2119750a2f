"""Dependency maps beside a loop over transformers; runs planted in noise; files, regions, mistakes; learnt hairpins."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import kmer_folder, megadna_folder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadna import dependencies as dependency_table
from megadna.cli import main
from megadna.downstream import dependencies as module
from megadna.downstream import outputs
from megadna.downstream.dependencies import Run, dependency_map, find_runs, log2_odds, run_row
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.region_files import Region
from megadna.genome.records import reverse_complement
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.tokenizer.base import NucleotideTokenizer

RNG = np.random.default_rng(4)
CHR1, CHR2 = ("".join(RNG.choice(list("ACGT"), size)) for size in (90, 30))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    return {"nucleotide": str(megadna_folder(home / "m", 64)), "kmer": str(kmer_folder(home / "k"))}


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(f">chr1\n{CHR1}\n>chr2\n{CHR2}\n")
    return path


def by_hand(folder: str, bases: str, epsilon: float = 1e-10) -> np.ndarray:
    """e(i, j) by the definition, a pass a mutant, p of a base from its token, or as the mean of the 3-mers over it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    k = 3 if Path(folder).name == "k" else 1

    def log2_odds_L4(text: str) -> np.ndarray:
        words = [text[i : i + k] for i in range(len(text) - k + 1)]
        ids = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(words), tokenizer.sep_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, 1:-1].double()
        p_L4 = np.zeros((len(text), 4))
        for at in range(len(text)):
            over = [i for i in range(at - k + 1, at + 1) if 0 <= i < len(words)]
            for i in over:
                four = [words[i][: at - i] + base + words[i][at - i + 1 :] for base in "ACGT"]
                p_L4[at] += logits[i][tokenizer.convert_tokens_to_ids(four)].softmax(-1).numpy() / len(over)
        p_L4 = (p_L4 + epsilon) / (p_L4 + epsilon).sum(axis=1, keepdims=True)
        return np.log2(p_L4 / (1 - p_L4))

    reference_L4, map_LL = log2_odds_L4(bases), np.zeros((len(bases), len(bases)))
    for i in range(len(bases)):
        for alt in "ACGT".replace(bases[i], ""):
            change_L4 = np.abs(log2_odds_L4(bases[:i] + alt + bases[i + 1 :]) - reference_L4)
            map_LL[i] = np.maximum(map_LL[i], change_L4.max(axis=1))
        map_LL[i, i] = 0
    return map_LL


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
def test_a_map_equals_the_definition_by_hand(kind, folders):
    bases = CHR2[:20]
    right = by_hand(folders[kind], bases)
    found = dependency_map(MaskedBases(folders[kind], batch_tokens=100), bases)
    assert found.shape == (20, 20) and (np.diag(found) == 0).all() and found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=3e-5)
    assert np.abs(right - right.T).max() > 0.01


def test_log2_odds_by_hand():
    """p = 1/2, 1/4, 1/4, 0 -> odds 1, 1/3, 1/3, and epsilon where p is 0."""
    with np.errstate(divide="ignore"):
        found = log2_odds(np.log([[0.5, 0.25, 0.25, 0.0]]), 1e-10)
    np.testing.assert_allclose(found, [[0, -np.log2(3), -np.log2(3), np.log2(1e-10)]], atol=1e-8)
    certain = log2_odds(np.array([[0.0, -30.0, -30.0, -30.0]], np.float32), 1e-10)  # 1 - p is not 0
    np.testing.assert_allclose(certain[0, 0], -np.log2(3e-10), rtol=1e-3)


def test_files_regions_and_flanks(folders, genome, tmp_path, monkeypatch, capsys):
    """A minus-strand region with flanks is its part of the map of all that the model sees; parts do not matter."""
    (tmp_path / "r.bed").write_text("chr1\t20\t45\thair pin\t0\t-\nchr2\t0\t30\tend\t0\t+\n")
    monkeypatch.setattr(module, "MAX_PART_TOKENS", 3 * 40 * 7)
    monkeypatch.setattr(module, "_MAX_GROUP_TOKENS", 3 * 40 * 2)
    files = [str(tmp_path / f"x.{ending}") for ending in ("npy", "parquet", "tsv")]
    run = ["dependencies", "--model", folders["nucleotide"], "--input", str(genome), "--bed", str(tmp_path / "r.bed")]
    main([*run, "--flank", "5", "--epsilon", "1e-4", "--shuffles", "19", "--output", *files])
    out = capsys.readouterr().out
    names = ["x.end.npy", "x.end.npy.json", "x.hair pin.npy", "x.hair pin.npy.json", "x.parquet", "x.tsv"]
    assert sorted(path.name for path in tmp_path.glob("x*")) == names and f"wrote {tmp_path / 'x.tsv'}" in out
    minus, plus = (np.load(tmp_path / names[at]) for at in (2, 0))
    right = by_hand(folders["nucleotide"], reverse_complement(CHR1[15:50]), 1e-4)[5:30, 5:30]
    np.testing.assert_allclose(minus, right, atol=3e-5)
    np.testing.assert_allclose(plus, by_hand(folders["nucleotide"], CHR2, 1e-4), atol=3e-5)
    facts = json.loads((tmp_path / names[3]).read_text())
    assert facts["epsilon"] == 1e-4 and facts["log_base"] == 2 and facts["model"] == folders["nucleotide"]
    assert (facts["contig"], facts["start"], facts["end"], facts["strand"]) == ("chr1", 20, 45, "-")
    assert facts["bases"] == reverse_complement(CHR1[20:45]) and facts["rows"] == "mutated base i"
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert len(table) == 25**2 + 30**2
    row = table[(table.name == "hair pin") & (table.i == 44) & (table.j == 40)]
    assert row.value.item() == minus[0, 4]
    options = {"bed": tmp_path / "r.bed", "flank": 5, "epsilon": 1e-4}
    pd.testing.assert_frame_equal(dependency_table(folders["nucleotide"], genome, **options), table, atol=1e-4)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
def test_n_has_no_row_and_no_column(kind, folders, caplog):
    found = dependency_map(MaskedBases(folders[kind]), "ACGTACNGCATTACG")
    assert np.isnan(found[6]).all() and np.isnan(found[:, 6]).all()
    assert np.isfinite(np.delete(np.delete(found, 6, 0), 6, 1)).all()


def noise(length: int) -> np.ndarray:
    """Values that decay with distance, as maps do."""
    rng = np.random.default_rng(8)
    apart = np.abs(np.arange(length)[:, None] - np.arange(length))
    return rng.gamma(2.0, 1.0 / (1 + 0.2 * apart))


def test_planted_runs_are_found_and_nothing_in_noise():
    options = {"min_distance": 4, "shuffles": 99, "seed": 1}
    map_LL = noise(60)
    assert find_runs(map_LL, **options) == []
    for step in range(7):
        map_LL[10 + step, 40 - step] += 3  # i + j = 50
        map_LL[25 + step, 50 + step] += 2  # j - i = 25
    stem, repeat = find_runs(map_LL, **options)
    assert (stem.kind, stem.i_start, stem.i_end, stem.j_start, stem.j_end) == ("stem", 10, 17, 34, 41)
    assert (repeat.kind, repeat.i_start, repeat.i_end, repeat.j_start, repeat.j_end) == ("repeat", 25, 32, 50, 57)
    assert stem.p == 0.01 and stem.mean > 5 * stem.background and len(stem) == 7
    assert stem.pairs()[0] == (10, 40) and repeat.pairs()[0] == (25, 50)


def test_maps_without_pairs_or_values():
    options = {"min_distance": 4, "shuffles": 9, "seed": 1}
    for map_LL in (np.zeros((3, 3)), np.full((20, 20), np.nan), np.zeros((20, 20)), np.ones((6, 6))):
        assert find_runs(map_LL, **options) == []


def test_a_run_in_coordinates_of_its_contig():
    bases = "AACCGTTTTTACGGTC"
    region = Region("c", 100, 116, "-", "n", bases)
    run = Run("stem", 2, 6, 10, 14, 1.0, 0.5, 3.0, 0.01)
    row = run_row(region, run)
    assert (row["i_bases"], row["j_bases"], row["matching"]) == ("CCGT", "ACGG", 1.0)
    assert (row["i_start"], row["i_end"], row["j_start"], row["j_end"]) == (110, 114, 102, 106)


def test_a_stopped_command_is_resumed(folders, genome, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_PART_TOKENS", 3 * 30 * 9)
    (tmp_path / "r.bed").write_text("chr2\t0\t30\n")
    run = ["dependencies", "--model", folders["nucleotide"], "--input", str(genome), "--bed", str(tmp_path / "r.bed")]
    main([*run, "--output", str(tmp_path / "whole.npy")])
    computed, write = [], outputs.parquet.write_table

    def stop_at_the_third(table, part, **options):
        computed.append(part.name)
        if len(computed) == 3:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_third)
    with pytest.raises(SystemExit):
        main([*run, "--output", str(tmp_path / "b.npy")])
    assert not (tmp_path / "b.npy").exists()
    main([*run, "--output", str(tmp_path / "b.npy")])
    assert computed[2] == computed[3] and len(computed) == 5
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(tmp_path / "whole.npy"))


def test_mistakes_end_in_one_line(folders, genome, tmp_path, capsys):
    (tmp_path / "n.fa").write_text(">n\nNNNNNNNN\n")
    (tmp_path / "none.bed").write_text("\n")
    (tmp_path / "in.bed").write_text("chr1\t20\t45\n")
    (tmp_path / "x.npy.json").touch()
    cases = [
        ([], ["y.npy"], "chr1:0-90: 90 bases, and the context of"),
        (["--bed", "in.bed", "--flank", "30"], ["y.npy"], "chr1:20-45 (+), --flank 30: 75 bases, and the context"),
        (["--bed", "none.bed"], ["y.npy"], "empty: holds no interval"),
        (["--bed", "in.bed"], ["x.npy"], "x.npy.json: is a file that exists"),
        (["--input", "n.fa"], ["y.npy"], "every base is N"),
        (["--epsilon", "0"], ["y.npy"], "--epsilon must lie in (0, 0.01)"),
        (["--shuffles", "0"], ["y.tsv"], "is the summary, which needs --shuffles"),
        ([], ["y.bw"], "its ending must be one of .npy, .parquet, .tsv, .png, .html"),
    ]
    for more, names, message in cases:
        more = [str(tmp_path / word) if "." in word and word[0].isalpha() else word for word in more]
        source = [] if "--input" in more else ["--input", str(genome)]
        out = ["--output", *(str(tmp_path / name) for name in names)]
        with pytest.raises(SystemExit) as stopped:
            main(["dependencies", "--model", folders["nucleotide"], *source, *more, *out])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("y*"))


ARM, LOOP, FLANK = 8, 4, 2


def hairpins(rng: np.random.Generator, count: int) -> np.ndarray:
    """Codes [count, 24] of random bases whose arms, bases 2 to 9 and 14 to 21, are complementary."""
    codes = rng.integers(0, 4, (count, 2 * (ARM + FLANK) + LOOP))
    codes[:, FLANK + ARM + LOOP : FLANK + 2 * ARM + LOOP] = 3 - codes[:, FLANK : FLANK + ARM][:, ::-1]
    return codes


def is_whole_stem(run: Run, size: int) -> bool:
    """Whether it is the hairpin's own stem, or most of it."""
    return run.kind == "stem" and run.i_start + run.j_end == size and len(run) > ARM // 2


def trained_on_hairpins(folder: Path) -> list[str]:
    """Fill `folder` with a small megadna model trained on hairpins for half a minute; eight hairpins that it never saw.

    Half of the bases to predict are masked, the others are random bases: where all are masked, what the model says of
    a base that it sees, which the map is made of, stays untrained. Trainings differ by rounding from machine to
    machine, so it goes on until the arms are learnt (composition alone is ln 4 = 1.386), then the rate falls to 0.
    """
    torch.manual_seed(1)
    megadna_folder(folder, 64)
    config = MegaDnaConfig(
        vocab_size=16, max_position_embeddings=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128,
    )  # fmt: skip
    torch.manual_seed(1)
    model, tokenizer, rng = MegaDnaForMaskedLM(config), NucleotideTokenizer(), np.random.default_rng(1)
    ids_4 = torch.from_numpy(tokenizer.base_ids.astype(np.int64))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layer." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layer." not in name]
    rates = {
        torch.optim.Muon(matrices, weight_decay=0.0): 0.02,
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98)): 5e-3,
    }
    step, smooth_loss, falling = 0, math.log(4), 200
    while falling:
        falling -= smooth_loss < 0.83 or falling < 200 or step > 1000
        for optimizer, rate in rates.items():
            optimizer.param_groups[0]["lr"] = rate * min(1, step / 100) * falling / 200
        codes_BL = torch.from_numpy(hairpins(rng, 128))
        hidden_BL = torch.rand(codes_BL.shape) < 0.15
        ids_BS = torch.nn.functional.pad(ids_4[codes_BL].masked_fill(hidden_BL, tokenizer.mask_id), (1, 1))
        shown_BL = hidden_BL & (torch.rand(codes_BL.shape) < 0.5)
        ids_BS[:, 1:-1][shown_BL] = ids_4[torch.randint(4, (int(shown_BL.sum()),))]
        ids_BS[:, 0], ids_BS[:, -1] = tokenizer.cls_id, tokenizer.sep_id
        logits_N4 = model(input_ids=ids_BS).logits[:, 1:-1][hidden_BL][:, ids_4]
        loss = torch.nn.functional.cross_entropy(logits_N4, codes_BL[hidden_BL])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in rates:
            optimizer.step()
        step, smooth_loss = step + 1, 0.95 * smooth_loss + 0.05 * loss.item()
    stated = json.loads((folder / "config.json").read_text())
    model.save_pretrained(folder)
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(sizes | {"auto_map": stated["auto_map"]}))
    return ["".join("ACGT"[code] for code in codes) for codes in hairpins(rng, 8)]


def seen_arms(model: MaskedBases, sequences: list[str]) -> tuple[float, list[str]]:
    """How far the arms stand out from other pairs, mean over the hairpins; the hairpins whose whole stem is found."""
    size = len(sequences[0])
    arms = np.zeros((size, size), bool)
    arms[np.arange(FLANK, FLANK + ARM), size - 1 - np.arange(FLANK, FLANK + ARM)] = True
    others = np.triu(~arms, 4)
    ratios, stems = [], []
    for bases in sequences:
        map_LL = dependency_map(model, bases)
        even_LL = (map_LL + map_LL.T) / 2
        ratios.append(even_LL[arms].mean() / even_LL[others].mean())
        if any(is_whole_stem(run, size) for run in find_runs(map_LL, min_distance=4, shuffles=99, seed=1)):
            stems.append(bases)
    return float(np.mean(ratios)), stems


@pytest.mark.slow
def test_a_model_trained_on_hairpins_shows_their_arms(tmp_path, capsys):
    """Arms stand out from other pairs and shuffled maps after training; before it, no stem is found."""
    sequences = trained_on_hairpins(tmp_path / "m")
    ratio, stems = seen_arms(MaskedBases(tmp_path / "m"), sequences)
    assert ratio > 20 and len(stems) >= 6, (ratio, stems)  # 117 to 220 times, 8 of 8 in each of eight trainings
    assert not seen_arms(MaskedBases(megadna_folder(tmp_path / "fresh", 64)), sequences)[1]
    (tmp_path / "h.fa").write_text(f">hairpin\n{stems[0]}\n")
    out = ["--output", str(tmp_path / "x.tsv"), str(tmp_path / "x.html")]
    main(["dependencies", "--model", str(tmp_path / "m"), "--input", str(tmp_path / "h.fa"), *out])
    rows = pd.read_csv(tmp_path / "x.tsv", sep="\t")
    assert ((rows.kind == "stem") & (rows.matching >= 0.6)).any() and "stem" in capsys.readouterr().out
