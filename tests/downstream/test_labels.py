"""Names of the user and names of the program never meet: labels, columns, files; and what tables say of odd scores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna.cli import main
from megadna.downstream import metrics, pictures
from megadna.downstream.benchmark import markdown
from megadna.downstream.finetune import read_data
from megadna.downstream.inputs import file_names, in_natural_order, value_columns
from megadna.downstream.metrics import remark, scores, write_confusion, write_plots
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.tasks import Target, find_tasks, read_table
from megadna.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PROGRAM = {"contig", "start", "end", "position", "name", "strand", "label", "sequence", "truth", "embedding"}


def table(folder: Path, *labels: str, name: str = "t.csv", header: str = "sequence,label") -> Path:
    """A sequence of its own for each row of labels."""
    bases = ("ACGT"[number % 4] + "ACGGT" * 4 for number in range(len(labels)))
    rows = (f"{text},{label}\n" for text, label in zip(bases, labels, strict=True))
    (folder / name).write_text(header + "\n" + "".join(rows))
    return folder / name


def read(path: Path, **options: object) -> tuple[list[str], list]:
    """Names of the target, and the targets of train."""
    tables, target = read_data(FinetuneOptions(data=path, **options))
    return target.names, tables["train"]["target"].tolist()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10090", "9606", "9606"], ["9606", "10090"]),
        (["HA", "NA", "NA"], ["HA", "NA"]),
        (["None", "nan", "null", "<NA>", "N/A"], ["<NA>", "N/A", "None", "nan", "null"]),
        (["01", "1", "001"], ["001", "01", "1"]),
        (["2", "1", "1"], ["1", "2"]),
        (["-1", "1", "0"], ["-1", "0", "1"]),
        (["1.0", "1", "True"], ["1", "1.0", "True"]),
        (["exon10", "exon2", "exon2"], ["exon2", "exon10"]),
        (["start", "stop", "start"], ["start", "stop"]),
        (["²", "3", "3"], ["3", "²"]),
    ],
)
def test_a_label_is_a_name(labels, classes, tmp_path):
    names, targets = read(table(tmp_path, *labels))
    assert names == classes and [names[number] for number in targets] == labels
    tabs = tmp_path / "t.tsv"
    tabs.write_text((tmp_path / "t.csv").read_text().replace(",", "\t"))
    records = zip(pd.read_csv(tmp_path / "t.csv").sequence, labels, strict=True)
    (tmp_path / "t.fna").write_text("".join(f">a|{label}\n{text}\n" for text, label in records))
    for other in (tabs, tmp_path / "t.fna"):
        assert read(other) == (names, targets)


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (pa.array([9606, 10090, 9606]), ["9606", "10090"]),
        (pa.array([1.0, 2.0, 0.5]), ["0.5", "1", "2"]),  # integers that a missing value made floats elsewhere
        (pa.array([True, False, True]), ["False", "True"]),
        (pa.array(["NA", "b", "NA"]).dictionary_encode(), ["NA", "b"]),
        (pa.array([2, 10, 2]).dictionary_encode(), ["2", "10"]),
    ],
)
def test_labels_of_parquet_are_their_text(column, classes, tmp_path):
    parquet.write_table(pa.table({"sequence": ["ACGT", "ACCT", "AGGT"], "label": column}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[0] == classes


def test_label_names_name_labels_by_number_by_order_or_by_themselves(tmp_path):
    splice = {"label_names": ["donor", "acceptor", "negative"]}
    assert read(table(tmp_path, "2", "0", "2"), **splice) == (splice["label_names"], [2, 0, 2])  # no acceptor in train
    assert read(table(tmp_path, "acceptor", "donor"), **splice) == (splice["label_names"], [1, 0])
    taxa = {"label_names": ["human", "mouse"]}
    assert read(table(tmp_path, "10090", "9606"), **taxa) == (["human", "mouse"], [1, 0])
    assert read(table(tmp_path, "1", "2", "1"), **taxa) == (["human", "mouse"], [0, 1, 0])
    for labels, message in ((["mouse", "rat"], "lacks rat"), (["1", "2", "3"], "has 2 names for 3 classes: 1, 2, 3")):
        with pytest.raises(UserError, match=message):
            read(table(tmp_path, *labels), **taxa)


def test_several_labels_of_a_header_are_several_labels(tmp_path):
    (tmp_path / "t.fna").write_text(">a|0|1|1\nACGT\n>b|1|0|0\nACCT\n")
    names, targets = read(tmp_path / "t.fna", task="multilabel")
    assert names == ["label_1", "label_2", "label_3"]
    assert np.array(targets).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert read(tmp_path / "t.fna", label_columns=["label_2"]) == (["0", "1"], [1, 0])
    with pytest.raises(UserError, match="3 labels per row, and task classification has one"):
        read(tmp_path / "t.fna")
    (tmp_path / "t.fna").write_text(">a|0|1\nACGT\n>b|1\nACCT\n")
    with pytest.raises(UserError, match=r"record 2: its header >b\|1 has 1 labels"):
        read(tmp_path / "t.fna", task="multilabel")


def test_other_columns_are_text_too_and_empty_cells_have_a_row(tmp_path):
    header = "sequence,label,split,task"
    rows = ["NA,train,NA", "x,train,NA", "x,test,NA", "1,train,None", "2,train,None"]
    path = table(tmp_path, *rows, header=header)
    assert read(path, subset="NA") == (["NA", "x"], [0, 1]) and read(path, subset="None")[0] == ["1", "2"]
    tables, _ = read_data(FinetuneOptions(data=path, subset="NA"))
    assert tables["test"].label_0.tolist() == ["x"]
    numbers = table(tmp_path, "1,True", "0,False", header="sequence,a,b", name="two.csv")
    both = {"task": "multilabel", "label_columns": ["a", "b"]}
    assert np.array(read(numbers, **both)[1]).tolist() == [[1, 1], [0, 0]]
    mistakes = [
        (table(tmp_path, "1", " ", "2"), {}, "row 2: column 'label' is empty"),
        (table(tmp_path, "1,train", "2,", header="sequence,label,split", name="s.csv"), {}, "row 2: column 'split' is"),
        (table(tmp_path, "1,train", "2,NA", header="sequence,label,split", name="n.csv"), {}, "row 2: split 'NA'"),
        (table(tmp_path, "1,x", "2,", header="sequence,label,task", name="k.csv"), {}, "row 2: column 'task' is empty"),
        (table(tmp_path, "1,2", "2,2", header="sequence,label,label", name="d.csv"), {}, "two columns are called"),
        (table(tmp_path, '"a\tb"', "c", name="tab.csv"), {}, r"the name 'a\\tb' has|holds '\\t'"),
        (numbers, {"label_columns": ["a", "b"]}, "2 labels per row, and task classification has one"),
        (numbers, {"label_columns": ["a", "a"], "task": "multilabel"}, "'a' is there 2 times"),
        (table(tmp_path, "1", "2", "7", name="e.csv"), {"label_names": ["a", "a", "b"]}, "'a' is there 2 times"),
    ]  # fmt: skip
    for path, options, message in mistakes:
        with pytest.raises(UserError, match=message):
            read(path, **options)
    parquet.write_table(pa.table({"sequence": ["ACGT"] * 2, "label": pa.array([1, None])}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 2: column 'label' is empty"):
        read(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"sequence": ["ACGT"] * 2, "label": pa.array([[1], [0]])}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 1: the label is a list"):
        read(tmp_path / "t.parquet")


def test_two_tables_of_one_split_or_two_tasks_of_one_name_are_refused(tmp_path):
    folder = tmp_path / "a"
    (folder / "a").mkdir(parents=True)
    for at in (folder, folder / "a"):
        table(at, "1", "2", name="train.csv")
    with pytest.raises(UserError, match="it and the folder a in it are both a task"):
        find_tasks(folder)
    for name in ("dev.csv", "valid.csv"):
        table(folder, "1", "2", name=name)
    with pytest.raises(UserError, match=r"dev.csv and valid.csv are both its dev table"):
        read(folder)
    good = table(tmp_path, "1", "2")
    for entry, message in ((f"dev={good}", "none of them train or dev"), (f"x={folder / 'a'}", "")):
        (folder / "a" / "dev.csv").write_text(good.read_text())
        with pytest.raises(UserError, match=message or "has dev, train, and no test table"):
            read(good, test=[entry])


def test_columns_and_files_never_meet():
    names = [
        "start",
        "stop",
        "a/b",
        "a%2Fb",
        "Stop",
        "STOP",
        "é",
        "É",
        "..",
        "con:",
        "%",
        "p_start",
        "label",
        "ß",
        "ss",
    ]
    assert not PROGRAM & {*value_columns(names, is_regression=False), *value_columns(names, is_regression=True)}
    files = file_names(names, "out.{}.plus.bw")
    assert files["start"] == "start" and files["a/b"] == "a%2Fb" and files["a%2Fb"] == "a%252Fb"
    assert len({part.casefold() for part in files.values()}) == len(names)
    assert [unquote(files[name]) for name in names] == names
    assert not any(set(part) & set('/\\:*?"<>|\0') for part in files.values())
    with pytest.raises(UserError, match="a file named after it would need 312 bytes"):
        file_names(["a" * 300], "out.{}.plus.bw")
    assert in_natural_order(["b", "a10", "a9", "a09", "1" * 5000, "2"]) == ["2", "1" * 5000, "a09", "a9", "a10", "b"]


BEFORE_TORCH = """
import builtins
real = builtins.__import__
def guarded(name, *rest, **more):
    if name.partition(".")[0] in ("torch", "transformers", "scipy", "sklearn"):
        raise ImportError(f"imports {{name}}")
    return real(name, *rest, **more)
builtins.__import__ = guarded
import sys
from megadna.cli import main
for arguments, message in {cases!r}:
    try:
        main(arguments)
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
"""


def test_data_are_checked_before_torch_is_imported(tmp_path):
    gap = table(tmp_path, "1", "0", "")
    (tmp_path / "task").mkdir()
    for split in ("train", "test"):
        table(tmp_path / "task", "1", "0", "", name=f"{split}.csv")
    (tmp_path / "g.fa").write_text(">1\nACGT\n>1\nACCT\n")
    (tmp_path / "r.bed").write_text("1\t0\t3\n")
    (tmp_path / "two.fa").write_text(">1\nACGTACGT\n")
    (tmp_path / "over.bed").write_text("1\t0\t4\n1\t3\t8\n")
    model = str(tmp_path / "m")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    out = ["--output", str(tmp_path / "o.parquet")]
    genome = ["--model", model, "--input", str(tmp_path / "g.fa"), *out]
    two = ["--model", model, "--input", str(tmp_path / "two.fa"), "--bed", str(tmp_path / "over.bed")]
    cases = [
        (["finetune", "--model", model, "--data", str(gap), *out], "row 3: column 'label' is empty"),
        (["benchmark", "--suite", "gue", "--model", model, "--data", str(tmp_path / "task"), *out], "row 3: column"),
        (["embed", *genome, "--bed", str(tmp_path / "r.bed")], "two records are called 1"),
        (["predict", *genome, "--bed", str(tmp_path / "r.bed")], "two records are called 1"),
        (["predict", *genome, "--window", "2"], "two records are called 1"),
        (["predict", *genome[:-1], str(tmp_path / "o.bw")], "two records are called 1"),
        (["predict", *genome[:-1], str(tmp_path / "o.bed")], "two records are called 1"),
        (["embed", *genome, "--circular", "1"], "two records are called 1"),
        (["embed", *genome, "--layers", "0", "0"], "name each layer once"),
        (["predict", *two, "--output", str(tmp_path / "o.bw")], "regions that are sorted and do not overlap"),
    ]  # fmt: skip
    command = [sys.executable, "-c", BEFORE_TORCH.format(cases=cases)]
    found = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    ).stderr.splitlines()
    found = [line for line in found if not re.match(r"\d\d:\d\d:\d\d ", line)]  # what is begun
    assert len(found) == 2 * len(cases), found
    for (_, message), line, status in zip(cases, found[::2], found[1::2], strict=True):
        assert message in line and status == "2", (message, line)


def test_odd_scores_are_explained():
    three, one = Target("classification", ["0", "1", "2"]), np.eye(3)
    assert remark(np.array([0, 1, 2]), one, three) == ""
    said = remark(np.array([0, 1, 1]), one[[0, 0, 0]], three)
    assert said == "no row of class 2: auroc and auprc leave it out; every row is predicted as 0, so mcc is 0"
    assert scores(np.array([0, 1, 1]), one[[0, 0, 0]], three)["mcc"] == 0
    said = remark(np.array([1]), one[[1]], three)
    assert "one row only" in said and "every row is of class 1: auroc and auprc are undefined, mcc is 0" in said
    assert np.isnan(scores(np.array([1]), one[[1]], three)["auroc"])
    numbers = Target("regression", ["gc", "tm"])
    truth, predicted = np.array([[1.0, 2], [2, 2]]), np.array([[3.0, 1], [3, 2]])
    assert remark(truth, predicted, numbers) == (
        "gc is predicted 3 in every row: pearson and spearman are undefined; "
        "tm is 2 in every row: pearson, spearman and r2 are undefined"
    )
    for rows in (2, 1):  # one row: no traceback
        found = scores(truth[:rows], predicted[:rows], numbers)
        assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and np.isfinite(found["mse"])
    several = Target("multilabel", ["a", "b"])
    said = remark(np.array([[0, 1.0], [1, 1]]), np.array([[0.9, 0.2], [0.8, 0.7]]), several)
    assert said == "a is predicted as 1 in every row; b is 1 in every row: auroc and auprc leave it out"
    bases = Target("base_classification", ["0", "1"])
    assert remark(np.zeros(4), np.tile([0.9, 0.1], (4, 1)), bases).startswith("every base is of class 0")
    row = {"task": "a|b", "method": "model", "score": "auroc", "mean": np.nan, "source": "measured", "remark": "odd"}
    text = markdown(pd.DataFrame([row | dict.fromkeys(["sd", "low", "high", "leakage"], np.nan)]))
    assert r"| a\|b | model | auroc | nan |" in text and text.endswith("\n\n- a|b, model: odd\n")


def test_a_run_says_what_is_odd_and_its_tables_what_they_hold(tmp_path, capsys, monkeypatch):
    """Classes called start, NA and a formula; a test set of one class, with a name that no file can have."""
    monkeypatch.setattr(metrics, "RESAMPLES", 5)
    model = megadna_folder(tmp_path / "model")
    labels = ["start", "NA", "$\\x$", "_a"] * 10
    odd = table(tmp_path, "start", "start", name="odd.csv")
    run = ["finetune", "--model", str(model), "--data", str(table(tmp_path, *labels)), "--max_steps", "2"]
    run += ["--eval_steps", "1", "--learning_rate", "1e-9", "--output", str(tmp_path / "o")]
    main([*run, "--test", f"a/b [x]={odd}"])
    printed = capsys.readouterr().out
    assert "a/b [x]: every row is of class start: auroc and auprc are undefined, mcc is 0" in printed
    assert "so the first model is kept" in printed and "a/b [x]" in printed.partition("every row")[0]
    written = tmp_path / "o" / "seed-1"
    assert {"predictions-a%2Fb [x].parquet", "roc-a%2Fb [x].png"} <= {path.name for path in written.iterdir()}
    found = pd.read_parquet(written / "predictions-a%2Fb [x].parquet")
    classes = ["$\\x$", "NA", "_a", "start"]
    assert found.columns.tolist() == ["sequence", "truth", "label", *(f"p_{name}" for name in classes)]
    assert found.truth.tolist() == ["start", "start"]
    values = found[[f"p_{name}" for name in classes]].to_numpy()
    assert found.label.tolist() == [classes[number] for number in values.argmax(axis=1)]
    csv = pd.read_csv(tmp_path / "o" / "metrics.csv").set_index(["split", "score"])
    assert np.isnan(csv.loc[("a/b [x]", "auroc"), "value"]) and "undefined" in csv.loc[("a/b [x]", "auroc"), "remark"]
    stated = json.loads((written / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert stated["a/b [x]"]["auroc"]["value"] is None
    assert json.loads((written / "model" / "config.json").read_text())["id2label"]["1"] == "NA"


def test_plots_draw_any_name(tmp_path):
    truth, predicted = np.array([0, 1, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    write_plots(truth, predicted, Target("classification", ["$\\frac$", "_b"]), tmp_path, "$\\alpha", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion-x.png", "roc-x.png", "pr-x.png"}


def test_a_table_in_utf_16_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"a.csv: UTF-16 text; convert it \(iconv -f UTF-16 -t UTF-8\)"):
        read_table(tmp_path / "a.csv")


def test_a_confusion_matrix_has_names_shares_and_counts(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "png", lambda figure, dpi: drawn.append(figure) or b"")
    target = Target("classification", ["donor", "_$acceptor", "absent"])
    truth, called = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1])
    write_confusion(truth, called, target, "test", tmp_path / "c.png")
    axes = drawn[0].axes[0]
    cells = [text.get_text() for text in axes.texts]
    assert cells == ["66.7 %\n2", "33.3 %\n1", "0.0 %\n0", "0.0 %\n0", "100.0 %\n1", "0.0 %\n0", "0", "0", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["donor (3)", "_$acceptor (1)", "absent (0)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == target.names
    assert drawn[0].get_suptitle() == "test: confusion matrix" and axes.get_title("left").endswith("number; 4 rows")
