"""A benchmark's table: the model, random weights, baselines that find what is planted, and published rows marked so."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna import benchmark
from megadna.cli import main
from megadna.downstream import metrics
from megadna.downstream.benchmark import BASELINES
from megadna.downstream.tasks import Target
from megadna.errors import UserError

DATA = Path(__file__).parents[1] / "data"
TARGET = Target("classification", ["donor", "acceptor", "negative"])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 20)


def splice_table(count: int, seed: int) -> pd.DataFrame:
    """Windows of 40: GT after the middle and a purine before it; AG before the middle; anything."""
    rng = np.random.default_rng(seed)
    texts, labels = [], rng.integers(0, 3, count)
    for label in labels:
        text = rng.choice(list("ACGT"), 40)
        if label == 0:
            text[19:22] = rng.choice(["A", "G"]), "G", "T"
        elif label == 1:
            text[18:20] = "A", "G"
        texts.append("".join(text))
    return pd.DataFrame({"sequence": texts, "label": labels, "target": labels})


def test_baselines_find_what_is_planted():
    train, test = splice_table(600, 1), splice_table(300, 2)
    accuracy = {}
    for name, baseline in BASELINES.items():
        predicted = baseline(train, test, TARGET, 1)
        if name == "GC and 5-mer ridge":  # for numbers: test_regression.py
            assert predicted is None
            continue
        assert predicted.shape == (300, 3) and np.allclose(predicted.sum(axis=1), 1, atol=1e-5)
        accuracy[name] = (predicted.argmax(axis=1) == test.target).mean()
    assert accuracy["two-letter rule"] > 0.9 and accuracy["position-weight matrix"] > 0.85, accuracy
    assert accuracy["5-mer logistic regression"] > 0.35 and accuracy["small CNN from scratch"] > 0.4, accuracy
    truth = test.sequence.map(lambda t: 0 if t[20:22] == "GT" else 1 if t[18:20] == "AG" else 2)
    assert (BASELINES["two-letter rule"](train, test, TARGET, 1).argmax(axis=1) == truth).all()
    plain = Target("classification", ["0", "1", "2"])
    assert BASELINES["two-letter rule"](train, test, plain, 1) is None
    longer = pd.concat([test, test.assign(sequence=test.sequence + "A")])
    assert BASELINES["position-weight matrix"](train, longer, TARGET, 1) is None


def test_the_splice_suite_is_compared_with_baselines_and_the_card(tmp_path, capsys):
    model = megadna_folder(tmp_path / "model")
    sites = tmp_path / "sites"
    sites.mkdir()
    for split, count, seed in (("train", 120, 1), ("dev", 40, 2), ("test", 60, 3)):
        splice_table(count, seed)[["sequence", "label"]].to_csv(sites / f"{split}.csv", index=False)
    (sites / "manifest.json").write_text('{"options": {"split": "random"}}')
    run = [
        "benchmark",
        "--suite",
        "splice",
        "--model",
        str(model),
        "--data",
        str(sites),
        "--output",
        str(tmp_path / "out"),
    ]
    short = ["--max_steps", "2", "--seeds", "1", "2", "--baseline", "two-letter", "weight", "random"]
    main([*run, *short])
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    measured = table[table.source == "measured"]
    methods = {"model", "random weights", "model minus random weights", "two-letter rule", "position-weight matrix"}
    assert set(measured.method) == methods
    both = [pd.read_csv(tmp_path / "out/runs/sites" / name / "metrics.csv") for name in ("model", "random_weights")]
    one, other = (t[(t.split == "test") & (t.score == "mcc")].value.to_numpy() for t in both)
    row = measured[(measured.method == "model minus random weights") & (measured.score == "mcc")].iloc[0]
    half = 12.706 * np.std(one - other, ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    np.testing.assert_allclose(
        [row["mean"], row.high - row["mean"]], [np.mean(one - other), half], rtol=1e-3, atol=1e-9
    )
    assert set(measured.task) == {"sites (comparison only)"}
    assert measured[measured.method == "model"].seeds.eq(2).all()
    card = table[table.method == "DNABERT (BioNeMo)"].set_index("score")["mean"]
    assert card["class_vs_negative.mean.mcc"] == 0.8837 and "comparison only" in table.source.iloc[-1]
    means = {
        s: np.mean([card[f"class_vs_negative.{site}.{s}"] for site in ("donor", "acceptor")])
        for s in ("accuracy", "f1")
    }
    assert means == pytest.approx({"accuracy": 0.9418, "f1": 0.9432}, abs=1e-4)
    rule = measured[(measured.method == "two-letter rule") & (measured.score == "mcc")].iloc[0]
    assert rule["mean"] > 0.85 and rule.low <= rule["mean"] <= rule.high
    assert "| sites (comparison only) | two-letter rule | mcc |" in capsys.readouterr().out
    assert table.loc[table["score"] == "mcc"].query("method == 'two-letter rule'").remark.isna().all()
    for name in ("model", "random_weights"):  # after two steps they may call one class alone; then the table says so
        stated = json.loads((tmp_path / "out/runs/sites" / name / "seed-1/metrics.json").read_text())["test"]["mcc"]
        assert ("so mcc is 0" in stated["remark"]) == (stated["value"] == 0)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("out/runs/**/metrics.json"))
    main([*run, *short])
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("out/runs/**/metrics.json"))
    assert len(before) == 4


def test_leakage_of_the_pretraining_dataset_is_a_column(tmp_path, toy_dataset):
    import gzip

    with gzip.open(DATA / "mgenitalium_G37.fa.gz", "rt") as lines:
        genome = "".join(line.strip() for line in lines if not line.startswith(">")).upper()
    rng = np.random.default_rng(4)
    foreign = ["".join(rng.choice(list("ACGT"), 100)) for _ in range(80)]
    known = [genome[at : at + 100] for at in range(1000, 561_000, 7000)]
    task = tmp_path / "gue" / "mine"
    task.mkdir(parents=True)
    table = pd.DataFrame({"sequence": known + foreign, "label": [1] * len(known) + [0] * len(foreign)})
    for split, rows in (("train", table.sample(60, random_state=1)), ("test", table)):
        rows.to_csv(task / f"{split}.csv", index=False)
    (tmp_path / "recipe.yaml").write_text("adapt: frozen\ncrop: true\n")
    model = megadna_folder(tmp_path / "model")
    main(["benchmark", "--suite", "gue", "--model", str(model), "--data", str(tmp_path / "gue"), "--seeds", "1",
          "--output", str(tmp_path / "out"), "--pretraining_data", str(toy_dataset), "--max_steps", "1",
          "--recipe", str(tmp_path / "recipe.yaml"), "--baseline", "logistic"])  # fmt: skip
    found = pd.read_csv(tmp_path / "out" / "results.csv").set_index("method")
    assert 0.3 < found.leakage["model"] < 0.5  # about 80 % of the genome is train, half of the rows are of it
    assert found["mean"]["5-mer logistic regression"] > 0.5
    assert found.source["DNABERT-2"].startswith("AIDO.DNA paper")


def test_mistakes_end_in_one_line(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("adpat: frozen\n")
    (tmp_path / "rate.yaml").write_text("learning_rate: fast\n")
    task = tmp_path / "tasks" / "a"
    task.mkdir(parents=True)
    (task / "train.csv").write_text("sequence,label\nACGT,1\nACCT,0\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    cases = [
        (tmp_path / "none", [], "no such folder of tasks"),
        (tmp_path / "tasks", ["--baseline", "cnn", "logstic"], "--baseline logstic: is in no baseline's name"),
        (tmp_path / "tasks", [], "no test table"),
        (tmp_path / "tasks", ["--recipe", str(tmp_path / "recipe.yaml")], "unknown key adpat"),
        (tmp_path / "tasks", ["--recipe", str(tmp_path / "rate.yaml")], "learning_rate"),
        (tmp_path / "tasks", ["--recipe", str(tmp_path / "no.yaml")], "no such recipe"),
    ]
    for data, more, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(
                [
                    "benchmark",
                    "--suite",
                    "gue",
                    "--model",
                    str(model),
                    "--data",
                    str(data),
                    "--output",
                    str(tmp_path / "o"),
                    *more,
                ]
            )
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and message in error[-1], (message, error)


def test_results_of_others_stay(tmp_path):
    task, output = tmp_path / "tasks" / "a", tmp_path / "o"
    for folder, name, text in (
        (task, "train.csv", "sequence,label\nACGT,1\nACCT,0\n"),
        (task, "test.csv", "sequence,label\nACGT,1\nACCT,0\n"),
        (output, "results.csv", "mine"),
        (output, "thesis.txt", "mine"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run = {"model": tmp_path / "model", "data": tmp_path / "tasks", "output": output}
    with pytest.raises(UserError, match=r"o: not empty; .* no benchmark of this suite, model and data"):
        benchmark("gue", **run)
    assert (output / "results.csv").read_text() == "mine" and len(list(output.iterdir())) == 2
    with pytest.raises(UserError, match="no such folder"):  # the model
        benchmark("gue", **{**run, "model": tmp_path / "none", "output": tmp_path / "new"})
    assert not (tmp_path / "new").exists()
