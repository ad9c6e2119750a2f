"""Regression: z-scores of train that are undone exactly, relatives in one part, scores, baselines, mistakes."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna import benchmark, finetune, predict
from megadna.cli import main
from megadna.downstream import metrics
from megadna.downstream.benchmark import BASELINES
from megadna.downstream.datasets import grouped
from megadna.downstream.encoder import load_tokenizer
from megadna.downstream.finetune import _with_dev, read_data
from megadna.downstream.metrics import scored, scores
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.task_training import build_model, save_model
from megadna.downstream.tasks import Target, with_scale
from megadna.downstream.trust import check_folder
from megadna.errors import UserError
from megadna.genome.records import reverse_complement

EARLIER = Path(__file__).parents[1] / "data" / "earlier_code"
SHORT = {"task": "regression", "max_steps": 3, "eval_steps": 3, "learning_rate": 1e-2}
ONE = Target("regression", ["value"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(megadna_folder(tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 20)


def texts(count: int, length: int = 60, seed: int = 0) -> list[str]:
    bases = np.random.default_rng(seed).choice(list("ACGT"), (count, length))
    return ["".join(row) for row in bases]


def labelled(count: int, seed: int = 0) -> pd.DataFrame:
    """The share of GC, and that of A minus that of T."""
    found = texts(count, seed=seed)
    gc = [(text.count("G") + text.count("C")) / 60 for text in found]
    return pd.DataFrame({"sequence": found, "gc": gc, "skew": [(t.count("A") - t.count("T")) / 60 for t in found]})


def folder_of(home: Path, **tables: pd.DataFrame) -> Path:
    home.mkdir()
    for name, table in tables.items():
        table.to_csv(home / f"{name}.csv", index=False)
    return home


def test_numbers_on_another_scale_give_the_same_model_on_that_scale(model, tmp_path):
    parts = {"train": labelled(60, 1), "dev": labelled(20, 2), "test": labelled(20, 3)}
    parts["test"].loc[0, "gc"] = 40.0  # outside of train: no part of the scale
    found, all_scores = [], []
    for number, (factor, shift) in enumerate([(1.0, 0.0), (1000.0, 5e4)]):
        tables = {name: table.assign(label=factor * table.gc + shift) for name, table in parts.items()}
        run = tmp_path / f"run-{number}"
        finetune(model, folder_of(tmp_path / str(number), **tables), run, **SHORT)
        table = pd.read_parquet(run / "seed-1" / "predictions-test.parquet")
        config = json.loads((run / "seed-1" / "model" / "config.json").read_text())
        train = tables["train"].label.to_numpy(np.float32).astype(float)
        assert config["label_means"] == [train.mean()] and config["label_scales"] == [train.std()]
        tables["test"][["sequence"]].to_csv(tmp_path / "again.csv", index=False)
        again = predict(run / "seed-1" / "model", tmp_path / "again.csv")["value_value"]
        np.testing.assert_allclose(again, table["value_value"], rtol=1e-5)
        found.append((table["value_value"].to_numpy(float) - shift) / factor)
        all_scores.append(pd.read_csv(run / "metrics.csv").set_index(["split", "score"]).value)
    spread = np.ptp(found[0])
    assert spread > 1e-3 and abs(found[0].mean() - parts["train"].gc.mean()) < 0.1
    np.testing.assert_allclose(found[1], found[0], atol=0.02 * spread)  # fp32 at 50,000 resolves 0.004
    for score, factor in (("pearson", 1), ("r2", 1), ("mse", 1e6)):
        one, other = (values["dev", score] for values in all_scores)
        assert other == pytest.approx(factor * one, rel=0.02), score


def test_several_numbers_are_predicted_explained_and_mutated(model, tmp_path):
    table = labelled(80).rename(columns={"sequence": "Sequence"})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    found = finetune(
        model, tmp_path / "t.tsv", tmp_path / "run", label_columns=["gc", "skew"], test_fraction=0.2, **SHORT
    )
    test = found[found.split == "test"].set_index("score").value
    assert test["mse"] == pytest.approx((test["gc.mse"] + test["skew.mse"]) / 2)
    predictions = pd.read_parquet(tmp_path / "run/seed-1/predictions-test.parquet")
    assert len(predictions) == 16 and predictions.group.nunique() == 16
    assert test["skew.pearson"] == pytest.approx(
        stats.pearsonr(np.vstack(predictions.truth)[:, 1], predictions.value_skew)[0], abs=1e-5
    )
    folder, fasta = str(tmp_path / "run/seed-1/model"), tmp_path / "a.fa"
    bases = table.Sequence[0]
    other = "CATG"["ACGT".index(bases[0])]
    fasta.write_text(f">a\n{bases}\n>b\n{other}{bases[1:]}\n")
    both = predict(folder, fasta)
    main(["mutate", "--model", folder, "--input", str(fasta), "--output", str(tmp_path / "m.parquet")])
    changes = pd.read_parquet(tmp_path / "m.parquet")
    first = changes[(changes.contig == "a") & (changes.position == 0)]
    for name in ("gc", "skew"):
        expected = both[f"value_{name}"][1] - both[f"value_{name}"][0]
        assert first[first.alt == other][f"change_{name}"].item() == pytest.approx(expected, abs=1e-6)
    explain = ["attribute", "--model", folder, "--input", str(fasta), "--methods", "mutagenesis"]
    with pytest.raises(SystemExit):
        main([*explain, "--output", str(tmp_path / "x.parquet")])  # which of the two?
    main([*explain, "--label", "skew", "--output", str(tmp_path / "x.parquet")])
    explained = pd.read_parquet(tmp_path / "x.parquet")
    assert explained.importance[0] == pytest.approx(-first.change_skew.mean(), abs=1e-6)
    read = pd.read_csv(tmp_path / "x.sequences.tsv", sep="\t")
    np.testing.assert_allclose(read.score, both.value_skew, atol=1e-6)


def joined_by_hand(sequences: list[str], families: list[str]) -> list[set[int]]:
    """Union over sets of 31-mers, whole sequences and names."""
    keys = []
    for text, family in zip(sequences, families, strict=True):
        own = {family, text, reverse_complement(text)}
        for strand in (text, reverse_complement(text)):
            own |= {strand[i : i + 31] for i in range(len(strand) - 30) if set(strand[i : i + 31]) <= set("ACGT")}
        keys.append(own)
    parts: list[set[int]] = []
    for number, own in enumerate(keys):
        near = [part for part in parts if any(own & keys[other] for other in part)]
        parts = [part for part in parts if part not in near] + [set().union({number}, *near)]
    return parts


def test_groups_are_those_of_shared_stretches_sequences_and_names(monkeypatch):
    rng, base = np.random.default_rng(1), texts(40, seed=4)
    more = [reverse_complement(base[0]), base[1][:31] + texts(1, 40, 9)[0], base[2][:30] + "A" + texts(1, 40, 8)[0]]
    more += ["ACGTTGCA", "TGCAACGT", "ACGTTGCC", base[3][:30] + "N" + base[3][31:], base[4][-40:] + base[5][:40]]
    more += ["N" * 60, "N" * 40]
    sequences = [(base + more)[i] for i in rng.permutation(50)]
    families = [f"f{i}" for i in range(48)] + ["f0", "f1"]
    halves = {"train": slice(0, 30), "test": slice(30, None)}
    given = pd.DataFrame({"sequence": sequences, "family": families})
    for batch in (1 << 17, 100):
        monkeypatch.setattr("megadna.downstream.datasets._BATCH", batch)
        tables = grouped({name: given.iloc[rows] for name, rows in halves.items()})
        numbers = np.concatenate([table.group for table in tables.values()])
        found = {frozenset(np.flatnonzero(numbers == number)) for number in np.unique(numbers)}
        assert found == {frozenset(part) for part in joined_by_hand(sequences, families)}
    assert 38 <= len(found) <= 44


@pytest.fixture
def families(tmp_path: Path) -> Path:
    """20 families of 5: a promoter, its reverse complement, variants, and a stranger of the same name."""
    rng, rows = np.random.default_rng(2), []
    for number, text in enumerate(texts(20, 80, 5)):
        changed = [text[:10] + "ACGT"[rng.integers(4)] + text[11:], text[:70] + "TT" + text[72:]]
        for kin in (text, reverse_complement(text), *changed, texts(1, 80, 100 + number)[0]):
            rows.append({"sequence": kin, "label": float(rng.normal()), "locus": f"l{number}"})
    table = pd.DataFrame(rows).sample(frac=1, random_state=1)
    table.to_csv(tmp_path / "families.csv", index=False)
    return tmp_path / "families.csv"


@pytest.mark.parametrize("folds", [0, 4])
def test_relatives_stay_in_one_part(folds, families):
    options = FinetuneOptions(data=families, task="regression", folds=folds, groups="locus", test_fraction=0.2)
    tables, target = read_data(options)
    assert len(tables["test"]) == 20 and tables["test"].group.nunique() == 4
    devs = []
    for fold in range(max(1, folds)):
        parts = _with_dev(tables, options, target, 1, fold)
        groups = [set(parts[name].group) for name in ("train", "dev", "test")]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
        assert sum(map(len, groups)) == 20
        devs.append(groups[1])
    assert len(set().union(*devs)) == sum(map(len, devs)) == (16 if folds else len(devs[0]))
    again, _ = read_data(options)
    assert again["test"].equals(tables["test"])
    without_names, _ = read_data(FinetuneOptions(data=families, task="regression"))
    assert without_names["train"].group.nunique() == 40  # the strangers are alone


def test_relatives_in_other_parts_are_refused_left_out_or_told(model, tmp_path, caplog, capsys):
    train, dev, test = labelled(60, 1), labelled(20, 2), labelled(20, 3)
    test.loc[3, "sequence"] = reverse_complement(train.sequence[7])
    test.loc[5, "sequence"] = dev.sequence[2][20:] + "ACGTACGTACGTACGTACGT"
    data = folder_of(tmp_path / "d", train=train, dev=dev, test=test)
    given = {"data": data, "task": "regression", "label_columns": ["gc"]}
    with pytest.raises(UserError, match=r"test: 1 of 20 rows are of a group .* as its row 6 and row 3 of dev; leave"):
        read_data(FinetuneOptions(**given))
    tables, _ = read_data(FinetuneOptions(**given, leakage="drop_from_train"))
    assert [len(tables[name]) for name in ("train", "dev", "test")] == [59, 19, 20]
    assert 7 not in tables["train"].index and 2 not in tables["dev"].index
    found = finetune(model, data, tmp_path / "run", label_columns=["gc"], leakage="report", **SHORT)
    said = set(found[found.split == "test"].remark)
    assert said == {"1 of 20 rows are of a group that train has too"}
    copies = folder_of(tmp_path / "e", train=train, test=train)
    with pytest.raises(UserError, match="every row of train is of a group that is held out"):
        read_data(FinetuneOptions(**given | {"data": copies}, leakage="drop_from_train"))


def test_scores_are_those_of_scipy_and_scikit_learn():
    rng = np.random.default_rng(3)
    truth = rng.normal(50, 3, (70, 2)).round(1)
    guess = (truth + rng.normal(0, 2, (70, 2))).round(1)
    found = scores(truth, guess, Target("regression", ["a", "b"]))
    for column, name in enumerate("ab"):
        pair = truth[:, column], guess[:, column]
        assert found[f"{name}.pearson"] == pytest.approx(stats.pearsonr(*pair)[0])
        assert found[f"{name}.spearman"] == pytest.approx(stats.spearmanr(*pair)[0])
        assert found[f"{name}.r2"] == pytest.approx(sk.r2_score(*pair))
        assert found[f"{name}.mse"] == pytest.approx(sk.mean_squared_error(*pair))
    for score in ("pearson", "spearman", "r2", "mse"):
        assert found[score] == pytest.approx((found[f"a.{score}"] + found[f"b.{score}"]) / 2)
    single = scores(truth[:1], guess[:1], Target("regression", ["a", "b"]))
    assert np.isnan(single["pearson"]) and np.isnan(single["r2"]) and np.isfinite(single["mse"])


def test_copies_in_a_group_do_not_narrow_its_interval(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 100)
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(30, 1, 1))
    guess = truth + rng.normal(size=(30, 1, 1))
    alone = scored(list(truth), list(guess), ONE, seed=1)["pearson"]
    copied = [list(np.repeat(array, 20, axis=0)) for array in (truth, guess)]
    together = scored(*copied, ONE, seed=1, groups=np.repeat(np.arange(30), 20))["pearson"]
    assert together == pytest.approx(alone)
    rows = scored(*copied, ONE, seed=1)["pearson"]
    assert rows["high"] - rows["low"] < 0.5 * (alone["high"] - alone["low"])
    said = scored(*copied, ONE, seed=1, groups=np.zeros(600, int))["pearson"]["remark"]
    assert said == "one group of rows only: its intervals are empty"


def test_baselines_find_what_is_planted_on_any_scale():
    def table(count: int, seed: int) -> pd.DataFrame:
        found = texts(count, seed=seed)
        both = [[text.count("TATA"), (text.count("G") + text.count("C")) / 60] for text in found]
        rows = [np.array([100 * a + 7, 1e-3 * b], np.float32) for a, b in both]
        return pd.DataFrame({"sequence": found, "target": rows, "group": range(count)})

    train, test = table(500, 1), table(200, 2)
    target = with_scale(Target("regression", ["tata", "gc"]), train, "t.csv")
    truth = np.vstack(test.target.to_list())
    used = {}
    for name, baseline in BASELINES.items():
        predicted = baseline(train, test, target, 1)
        if predicted is not None:
            used[name] = scores(truth, predicted, target)
    assert list(used) == ["GC and 5-mer ridge", "small CNN from scratch"]
    assert used["GC and 5-mer ridge"]["gc.r2"] > 0.9 and used["GC and 5-mer ridge"]["tata.r2"] > 0.5, used
    assert used["small CNN from scratch"]["gc.r2"] > 0.3, used
    kept = Target("classification", ["0", "1"])
    assert BASELINES["GC and 5-mer ridge"](train, test, kept, 1) is None
    one = table(300, 3).assign(target=lambda t: [row[1:] for row in t.target])  # one number: no other shape
    found = BASELINES["GC and 5-mer ridge"](one, test, with_scale(ONE, one, "t.csv"), 1)
    assert found.shape == (200, 1) and stats.pearsonr(found[:, 0], truth[:, 1])[0] > 0.9


def test_the_expression_suite_compares_by_groups(model, families, tmp_path):
    home = tmp_path / "task"
    home.mkdir()
    (home / "train.csv").write_text(families.read_text())
    found = benchmark("expression", model, home, tmp_path / "out", seeds=[1], max_steps=2, baseline=["ridge", "random"])
    methods = ["model", "random weights", "GC and 5-mer ridge", "model minus random weights"]
    assert found.method.drop_duplicates().tolist() == methods
    assert set(found[found.method == methods[2]].score) == {"pearson", "spearman", "r2", "mse"}
    assert found[found.method != methods[3]].low.notna().all()
    assert (home / "train.csv").read_text() == families.read_text()


@pytest.mark.parametrize("version", ["unscaled", "predicting"])  # before z-scores; before --task generation
def test_a_folder_of_an_earlier_version_gives_its_numbers(version, model, tmp_path):
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    built = build_model(FinetuneOptions(model=model, task="regression"), ONE, tokenizer, None)
    save_model(built, built, tokenizer, tmp_path / "new")
    (tmp_path / "a.csv").write_text(f"sequence\n{texts(1)[0]}\n")
    now = predict(tmp_path / "new", tmp_path / "a.csv")["value_value"]
    assert abs(now[0]) < 5
    lines = (tmp_path / "new" / "modeling_dna_task.py").read_text().splitlines(keepends=True)
    imports = "".join(line for line in lines if line.startswith("from .") and " as Encoder" in line)
    marker = "# A saved copy imports the encoder's class and configuration here.\n"
    text = gzip.decompress((EARLIER / version / "modeling_dna_task.py.gz").read_bytes()).decode()
    (tmp_path / "new" / "modeling_dna_task.py").write_text(text.replace(marker, marker + imports))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    del config["label_means"], config["label_scales"]
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    (tmp_path / "new").rename(tmp_path / "old")  # transformers keeps code by folder
    assert check_folder(tmp_path / "old")
    np.testing.assert_allclose(predict(tmp_path / "old", tmp_path / "a.csv")["value_value"], now, rtol=1e-6)


def test_a_test_table_of_one_row_is_scored_as_far_as_it_goes(model, tmp_path):
    data = folder_of(tmp_path / "d", train=labelled(40, 1), dev=labelled(10, 2), test=labelled(1, 3))
    found = finetune(model, data, tmp_path / "run", label_columns=["gc"], **SHORT)
    test = found[found.split == "test"].set_index("score")
    assert np.isfinite(test.value["mse"]) and test.value[["pearson", "spearman", "r2"]].isna().all()
    assert "one row only" in test.remark["mse"]


ROWS = [f"{text},{number / 7:.3f},g{number % 2}" for number, text in enumerate(texts(20))]


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (ROWS[:1], [], "value is 0 in every row of train; there is nothing to learn"),
        ([row.rsplit(",", 2)[0] + ",4.25,g" for row in ROWS], [], "value is 4.25 in every row of train"),
        ([*ROWS, "ACGT,,g"], [], "row 21: column 'label' is empty"),
        ([*ROWS, "ACGT,nan,g"], [], "row 21: 'nan' of value is not a number; leave out rows without one"),
        ([*ROWS, "ACGT,inf,g"], [], "row 21: 'inf' of value is not a number"),
        ([ROWS[0], "ACGT,high,g", *ROWS], [], "row 2: 'high' of value is not a number"),
        ([*ROWS, 'ACGT,"1,5",g'], [], "row 21: '1,5' of value is not a number"),
        (ROWS, ["--groups", "locus"], "no column 'locus'; it has sequence, label, family"),
        (ROWS, ["--groups", "family", "--folds", "3"], "--folds 3 needs 3 groups of rows, and the 20 rows of train"),
        (ROWS, ["--groups", "family", "--test_fraction", "0.4"], "a dev part needs 2 groups of rows"),
        ([f"{texts(1)[0]},{n},g" for n in range(9)], ["--test_fraction", "0.2"], "--test_fraction needs 2 groups"),
        (ROWS, ["--dev_fraction", "0"], "--dev_fraction 0 of 20 rows leaves train or dev empty"),
        (ROWS, ["--test_fraction", "1.5"], "--test_fraction must lie in [0, 1], got 1.5"),
        (
            ROWS,
            ["--task", "classification", "--leakage", "report"],
            "--leakage does not apply to --task classification",
        ),
        (ROWS, ["--class_weights"], "--class_weights: task regression has no classes"),
    ],
)
def test_mistakes_end_in_one_line(rows, more, message, model, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("\n".join(["sequence,label,family", *rows]) + "\n")
    given = ["--model", model, "--data", str(tmp_path / "t.csv"), "--output", str(tmp_path / "run")]
    task = [] if "--task" in more else ["--task", "regression"]
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", *given, *task, *more])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
    assert stopped.value.code == 2 and len(error) == 1 and message in error[0], error
    assert not (tmp_path / "run").exists()
