"""Motifs: each step of the search beside a loop; planted ones are found again, and none in shuffled sequence."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna import attribute, finetune, motifs, splice_sites
from megadna.cli import main
from megadna.downstream.motif_search import (
    Candidate,
    best_overlap,
    consensus,
    containing,
    find_motifs,
    high_runs,
    informative,
    merged,
    with_p_values,
)
from megadna.downstream.motifs import nearest_known
from megadna.downstream.windows import shuffle_dinucleotides
from megadna.errors import UserError
from megadna.genome.meme import Motif, read_meme

DATA = Path(__file__).parents[1] / "data"
JASPAR = DATA / "jaspar_2024_clusters_60.meme.gz"
PLANTED = ("TGACTCA", "CCATTGGC")
SIZE = 80


def random_dna(rng: np.random.Generator, count: int, size: int = SIZE) -> list[str]:
    return ["".join(rng.choice(list("ACGT"), size)) for _ in range(count)]


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], list[np.ndarray], list[str], list[tuple[int, str]]]:
    """(positives, importances, negatives, (where, what) was planted): two of three positives have a motif, one base of
    which is another one in a fifth of them; its bases have importance, as have random runs anywhere."""
    rng = np.random.default_rng(5)
    positives, importances, where = random_dna(rng, 150), [], []
    for number in range(150):
        importance_L = rng.uniform(0.02, 0.3, SIZE)
        if number % 3:
            text, start = list(PLANTED[number % 2]), int(rng.integers(20, 50))
            if rng.random() < 0.2:
                text[rng.integers(len(text))] = str(rng.choice(list("ACGT")))
            bases = positives[number]
            positives[number] = bases[:start] + "".join(text) + bases[start + len(text) :]
            importance_L[start : start + len(text)] += 1
            where.append((start, PLANTED[number % 2]))
        else:
            where.append((-1, ""))
        noise = int(rng.integers(0, SIZE - 6))
        importance_L[noise : noise + 6] += 0.8
        importances.append(importance_L)
    return positives, importances, random_dna(rng, 150), where


def test_planted_motifs_are_found_where_they_were_planted(planted):
    positives, importances, negatives, where = planted
    found = find_motifs(positives, importances, negatives)
    assert len(found) == 2
    texts = [consensus(p_W4[informative(p_W4, 50, 0.8)]) for p_W4 in (m.counts_W4 / len(m.windows) for m in found)]
    assert sorted(texts) == sorted(PLANTED)
    for motif in found:
        name = max(PLANTED, key=lambda text: sum(text in window for window in motif.windows))
        shift = motif.windows[0].find(name)
        right = sum(where[number] == (start + shift, name) for number, start in motif.positions)
        assert right >= 0.9 * len(motif.positions) and len(motif.positions) >= 30
        for window, (number, start) in zip(motif.windows, motif.positions, strict=True):
            assert window == positives[number][start : start + 24]


def test_nothing_is_found_in_shuffled_sequence(planted):
    positives, importances, negatives, _ = planted
    rng = np.random.default_rng(6)
    shuffled = [shuffle_dinucleotides(bases, rng) for bases in positives]
    assert find_motifs(shuffled, importances, negatives) == []
    assert find_motifs(negatives, importances, positives) == []


def test_runs_are_above_the_mean_and_ten_times_the_minimum():
    rng = np.random.default_rng(2)
    sequences = [*random_dna(rng, 20, 60), "ACGTNACGTA" * 6]
    importances = [rng.exponential(size=60).round(2) * (rng.random() < 0.8) + 0.05 for _ in sequences]
    importances[0][:] = -1.0
    importances[0][10:18] = 1.0
    importances[1][7] = np.nan
    expected: dict[str, list[tuple[int, int]]] = {}
    for number, (bases, importance_L) in enumerate(zip(sequences, importances, strict=True)):
        usable = [i for i in range(60) if bases[i] != "N" and not np.isnan(importance_L[i])]
        mean = sum(importance_L[i] for i in usable) / len(usable)
        least = min(importance_L[i] for i in usable)
        start = None
        for i in range(61):
            high = i < 60 and i in usable and importance_L[i] > mean and importance_L[i] > 10 * least
            if high and start is None:
                start = i
            if not high and start is not None:
                if i - start >= 3:
                    expected.setdefault(bases[start:i], []).append((number, start))
                start = None
    found = high_runs(sequences, importances, 3)
    assert found == expected and len(found) > 3 and (0, 10) in found[sequences[0][10:18]]


def test_candidates_are_counted_once_in_a_sequence_and_tested():
    positives = ["ACGTACGT", "TTACGTTT", "GGGGGGGG", "ACGACGAC"]
    negatives = ["TTTTTTTT", "ACGAAAAA", "GGGGGGGG"]
    assert containing(["ACGT", "ACG", "GGG"], positives) == {"ACGT": 2, "ACG": 3, "GGG": 1}
    one, two, three = with_p_values({"ACGT": [(0, 0)], "ACG": [], "GGG": []}, positives, negatives)
    assert (one.positives, one.negatives, two.negatives, three.negatives) == (2, 0, 1, 1)
    # P(X >= x) by counting: N = 7 sequences, K = 4 positive, n = 2 with ACGT, both positive: C(4, 2) / C(7, 2).
    assert one.p == pytest.approx(6 / 21) and three.p == pytest.approx(1 - 3 / 21)
    assert two.p == pytest.approx(sum(hypergeom.pmf(x, 7, 4, 4) for x in (3, 4)))
    assert with_p_values({}, positives, negatives) == []


def test_the_best_ungapped_overlap():
    assert best_overlap("TGACTCA", "GACTC") == (5, 1)
    assert best_overlap("ACGTT", "GTTAA") == (3, 2)
    assert best_overlap("GTTAA", "ACGTT") == (3, -2)
    assert best_overlap("AAAA", "CCCC")[0] == 0
    rng = np.random.default_rng(4)
    for one, other in product(random_dna(rng, 6, 9), random_dna(rng, 6, 6)):
        scores = {}
        for shift in range(-5, 9):
            scores[shift] = sum(
                one[i] == other[i - shift] for i in range(9) if 0 <= i - shift < 6
            )  # fmt: skip
        score, shift = best_overlap(one, other)
        assert score == max(scores.values()) == scores[shift]


def test_the_informative_part_is_beyond_what_few_sites_have_by_chance():
    even, strong = [0.25] * 4, [1.0, 0.0, 0.0, 0.0]
    weak = [0.55, 0.15, 0.15, 0.15]  # 0.291 bits
    p_W4 = np.array([even, weak, strong, even, strong, weak, even])
    assert informative(p_W4, 10_000) == slice(1, 6) and informative(p_W4, 20) == slice(2, 5)
    assert informative(np.array([even, even]), 20) == slice(0, 2)
    assert consensus(p_W4[1:4]) == "AAa"


def candidate(text: str, p: float, runs: list[tuple[int, int]]) -> Candidate:
    return Candidate(text, runs, len(runs), 0, p, p)


def test_similar_candidates_merge_as_aligned_and_ties_join_all():
    """Limits are max(min_length - 1, half the shorter): 4 here."""
    found = merged(
        [
            candidate("TGACTCA", 1e-9, [(0, 11)]),
            candidate("GACTC", 1e-5, [(1, 20)]),
            candidate("AAAAA", 1e-4, [(2, 5)]),
            candidate("AAAATGACT", 1e-6, [(3, 30)]),  # 4 of AAAAA; 4 of GACTC
            candidate("CCGGCC", 1e-6, [(4, 0)]),
        ],
        5,
    )
    starts = {motif.core.text: motif.starts for motif in found}
    assert starts == {
        "AAAAA": [(2, 5), (3, 30 - 0)],
        "GACTC": [(1, 20), (0, 12), (3, 35)],
        "CCGGCC": [(4, 0)],
    }


def test_windows_that_cross_an_end_are_left_out():
    sequences = [
        "TGACTCA" + "C" * 40,
        "C" * 17 + "TGACTCA",
        "C" * 15 + "TGACTCA" + "C" * 9,
        "C" * 30 + "TGACTCA" + "C" * 30,
    ]
    importances = [np.array([1.0 if base != "C" else 0.0 for base in bases]) for bases in sequences]
    for importance_L, bases in zip(importances, sequences, strict=True):
        start = bases.find("TGACTCA")
        importance_L[start : start + 7] = 1.0
    negatives = ["C" * 40] * 20
    (found,) = find_motifs(sequences, importances, negatives, min_instances=1)
    assert found.positions == [(2, 7), (3, 22)]  # the window of (2, 7) ends with its sequence
    assert find_motifs(sequences, importances, negatives, min_instances=3) == []


@pytest.fixture(scope="module")
def files(planted, tmp_path_factory) -> tuple[Path, Path]:
    """The positives as regions of one contig, every second on the minus strand, as `megadna attribute` writes them."""
    folder = tmp_path_factory.mktemp("motifs")
    tables = []
    for number, (bases, importance_L) in enumerate(zip(planted[0], planted[1], strict=True)):
        positions = np.arange(number * 100, number * 100 + SIZE)
        minus = number % 2 == 1
        table = pd.DataFrame({"contig": "c", "position": positions[::-1] if minus else positions, "name": ""})
        table = table.assign(strand="-" if minus else "+", region=number, base=list(bases))
        tables.append(table.assign(importance_gradient=importance_L.astype(np.float32)))
    pd.concat(tables).to_parquet(folder / "positives.parquet", index=False)
    (folder / "negatives.fa").write_text("".join(f">n{i}\n{bases}\n" for i, bases in enumerate(planted[2])))
    return folder / "positives.parquet", folder / "negatives.fa"


def test_the_command_writes_a_folder(files, planted, tmp_path, capsys):
    output = tmp_path / "out"
    main(["motifs", "--input", str(files[0]), "--negatives", str(files[1]), "--importance", "importance_gradient",
          "--modisco", "--output", str(output)])  # fmt: skip
    assert "motif_2" in capsys.readouterr().out
    table = pd.read_csv(output / "motifs.tsv", sep="\t")
    same = motifs(files[0], files[1], importance="importance_gradient")
    assert table.motif.tolist() == ["motif_1", "motif_2"] and table.instances.tolist() == same.instances.tolist()
    found = read_meme(output / "motifs.meme")
    for one, (name, counts) in zip(found, same.attrs["counts"].items(), strict=True):
        p_W4 = np.array(counts) / one.sites
        np.testing.assert_allclose(one.p_W4, p_W4[informative(p_W4, one.sites)])
        assert one.name == name and (output / "logos" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (output / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page.replace("http://www.w3.org/1999/xhtml", "")
    lines = [line.split("\t") for line in (output / "instances.bed").read_text().splitlines()]
    assert len(lines) == table.instances.sum()
    for contig, start, end, name, _, strand in lines:
        number, at = divmod(int(start), 100)
        assert contig == "c" and strand == "+-"[number % 2] and int(end) - int(start) == 24
        first = at if strand == "+" else SIZE - at - 24
        motif = np.array(same.attrs["counts"][name])
        window = planted[0][number][first : first + 24]
        assert all(motif[i]["ACGT".index(base)] > 0 for i, base in enumerate(window))


def test_the_arrays_for_tf_modisco(files, planted, tmp_path):
    motifs(files[0], files[1], importance="importance_gradient", modisco=True, output=tmp_path / "out")
    ones, values = (
        np.load(tmp_path / "out" / "modisco" / f"{name}.npz")["arr_0"] for name in ("sequences", "contributions")
    )
    assert ones.shape == values.shape == (150, 4, SIZE) and ones.dtype == values.dtype == np.float32
    for number in (0, 77):
        for at, base in enumerate(planted[0][number]):
            row = ["ACGT".index(base)]
            assert ones[number, :, at].tolist() == [float(i in row) for i in range(4)]
            assert values[number, row, at] == np.float32(planted[1][number][at]) == values[number, :, at].sum()
    table = pd.read_parquet(files[0])
    for column, base in enumerate("ACGT"):
        table[f"hypothetical_{base}"] = np.float32(np.arange(len(table)) * 10 + column)
    table.rename(columns={"importance_gradient": "importance"}).to_parquet(tmp_path / "four.parquet")
    motifs(tmp_path / "four.parquet", files[1], modisco=True, output=tmp_path / "four")
    values = np.load(tmp_path / "four" / "modisco" / "contributions.npz")["arr_0"]
    assert values[77, :, 5].tolist() == [(77 * SIZE + 5) * 10 + column for column in range(4)]


def test_no_motif_is_an_answer(files, tmp_path, capsys):
    main(["motifs", "--input", str(files[0]), "--negatives", str(files[1]), "--importance", "importance_gradient",
          "--min_instances", "1000", "--output", str(tmp_path / "out")])  # fmt: skip
    assert "no motif" in capsys.readouterr().out and "No motif" in (tmp_path / "out" / "index.html").read_text()


def test_mistakes_end_in_one_line(files, tmp_path, capsys):
    positives, negatives = map(str, files)
    other, uneven = tmp_path / "other.parquet", tmp_path / "uneven.parquet"
    pd.DataFrame({"sequence": ["ACGT"]}).to_parquet(other)
    table = pd.read_parquet(positives)
    table.iloc[:-1].to_parquet(uneven)
    gradient = ["--importance", "importance_gradient"]
    cases = [
        ([positives, negatives], "no column 'importance'; choose one of importance_gradient with --importance"),
        ([str(other), negatives], "no column contig, position, name, strand, region, base, importance; give a Parquet"),
        ([negatives, negatives], "not a Parquet file; give the .parquet that megadna attribute wrote"),
        (
            [positives, negatives, *gradient, "--window", "81"],
            f"--window 81: the longest sequence of {positives} has 80 bases; lower it",
        ),
        ([positives, str(tmp_path / "no.fa")], "no.fa: no such file or folder (--negatives)"),
        ([positives, negatives, *gradient, "--known", negatives], "no motif in it; give a file in MEME format"),
        ([positives, negatives, "--min_length", "0"], "--min_length must be positive"),
        ([positives, negatives, "--window", "4"], "--window 4 is shorter than --min_length"),
        ([positives, negatives, "--cutoff", "2"], "--cutoff must lie in [0, 1]"),
        ([str(uneven), negatives, *gradient, "--modisco"], "needs sequences of one length, and these have 79 to 80"),
    ]
    for (source, against, *more), message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(["motifs", "--input", source, "--negatives", against, *more, "--output", str(tmp_path / "out")])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="2 bases and 3 importances"):
        find_motifs(["AC"], [np.zeros(3)], ["AC"])


@pytest.mark.slow  # numba compiles Tomtom for a minute
def test_known_motifs_find_themselves_on_either_strand():
    known = read_meme(JASPAR)
    rng = np.random.default_rng(1)
    queries = []
    for number in (3, 25, 54):
        p_W4 = known[number].p_W4
        sample = np.stack([rng.multinomial(50, p_4 / p_4.sum()) / 50 for p_4 in p_W4])
        queries += [Motif("plus", sample), Motif("minus", sample[::-1, ::-1])]
    found = nearest_known(queries, known)
    assert found["known"] == [known[number].name for number in (3, 3, 25, 25, 54, 54)]
    assert found["known_strand"][::2] != found["known_strand"][1::2] and max(found["known_p"]) < 1e-4
    np.testing.assert_allclose(found["known_e"], np.array(found["known_p"]) * 60)


@pytest.mark.slow  # 35 s
def test_the_consensus_of_splice_donors_comes_out_of_a_splice_model(tmp_path):
    """Two layers of 32, trained from random weights for 400 steps on sites of A. thaliana; the consensus AG|GTAAGT from
    donors of genes that the model has not seen."""
    names = ["donor", "acceptor", "negative"]
    model, bacs = megadna_folder(tmp_path / "encoder"), DATA / "arabidopsis_bacs.fa.gz"
    splice_sites(
        genome=bacs,
        annotation=DATA / "arabidopsis_bacs.gff3.gz",
        length=40,
        negatives="random",
        output=tmp_path / "data",
    )
    scores = finetune(
        model, tmp_path / "data", tmp_path / "run", random_weights=True, head_sizes=[32], dropout=0.0, max_steps=400,
        eval_steps=400, batch_size=64, learning_rate=3e-3, label_names=names, stranded=True,
    )  # fmt: skip
    test = scores[(scores.split == "test") & (scores.score == "accuracy")].value.item()
    assert test > 0.75
    sites = pd.concat([pd.read_csv(tmp_path / "data" / f"{split}.csv") for split in ("dev", "test")])
    for label in (0, 2):
        sites[sites.label == label].to_csv(tmp_path / f"{label}.csv", index=False)
    found = attribute(tmp_path / "run/seed-1/model", tmp_path / "0.csv", label="donor")
    found.to_parquet(tmp_path / "donors.parquet")
    mean_L = np.mean([rows.importance for _, rows in found.groupby("region")], axis=0)
    assert sorted(np.argsort(mean_L)[-3:]) == [19, 20, 21]  # the last base of the exon, and GT
    table = motifs(tmp_path / "donors.parquet", tmp_path / "2.csv", min_length=4, output=tmp_path / "motifs")
    assert "AGGTA" in table.consensus[0].upper() and table.q[0] < 1e-6
    starts = [line.split("\t") for line in (tmp_path / "motifs" / "instances.bed").read_text().splitlines()]
    counts = np.array(table.attrs["counts"]["motif_1"])
    boundary = [20 - int(start) for _, start, _, name, *_ in starts if name == "motif_1"]
    at = max(set(boundary), key=boundary.count)
    assert boundary.count(at) > 0.9 * len(boundary)  # nearly all instances lie on the site
    assert [("ACGT"[int(row.argmax())]) for row in counts[at - 2 : at + 3]] == list("AGGTA")
