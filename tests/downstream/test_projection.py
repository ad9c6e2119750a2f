"""Pictures of embeddings: coordinates by hand, classes and numbers with their counts, what cannot be drawn."""

import sys
from pathlib import Path
from xml.dom.minidom import parse

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna import embed
from megadna.cli import main
from megadna.downstream.outputs import fixed_vectors, vectors_of
from megadna.downstream.projection import MAX_CLASSES, Groups, Numbers, grouped, project, rows_at


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(megadna_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 sequences: 12 of class a, 15 of class b, 3 without; each with a number."""
    rng = np.random.default_rng(3)
    rows = [
        ("".join(rng.choice(list("ACGT"), 40)), kind, f"{number / 7:.3f}")
        for number, kind in enumerate(["a"] * 12 + ["b"] * 15 + ["NA", "", "nan"])
    ]
    path = tmp_path_factory.mktemp("table") / "t.csv"
    pd.DataFrame(rows, columns=["dna", "kind", "level"]).to_csv(path, index=False)
    return path


def texts_of(picture: Path) -> list[str]:
    return [node.firstChild.data.strip() for node in parse(str(picture)).getElementsByTagName("text")]


def test_principal_components_are_those_of_the_singular_values():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    panel = project(vectors, "pca", 1)
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(panel.points), np.abs(left * values)[:, :2], atol=1e-9)
    shares = values**2 / (values**2).sum()
    assert panel.axes == [f"principal component {i + 1} ({shares[i]:.1%} of the variance)" for i in range(2)]


def test_classes_are_counted_the_rarest_together_and_missing_ones_grey():
    few = grouped("kind", ["b", "a10", "a9", "NA", "a9", ""])
    assert isinstance(few, Groups) and few.number_n.tolist() == [2, 1, 0, 3, 0, 3]
    assert list(few.labels) == ["a9 (2)", "a10 (1)", "b (1)", "no value (2)"]
    names = [f"c{number}" for number in range(20) for _ in range(number + 1)]
    many = grouped("kind", [*names, "."])
    assert isinstance(many, Groups) and len(many.labels) == MAX_CLASSES + 1
    assert many.labels[0] == "c7 (8)" and list(many.labels[-2:]) == ["7 others (28)", "no value (1)"]
    assert len(set(zip(many.colours, many.marks, strict=True))) == len(many.labels)
    assert np.bincount(many.number_n).tolist() == [*range(8, 21), 28, 1]


def test_numbers_are_a_scale_unless_they_are_few():
    texts = [f"{value}" for value in range(20)]
    found = grouped("level", [*texts, "NA"])
    assert isinstance(found, Numbers) and found.value_n[:-1].tolist() == list(range(20)) and np.isnan(found.value_n[-1])
    assert isinstance(grouped("label", ["0", "1", "1"]), Groups)
    assert isinstance(grouped("level", [*texts, "inf"]), Groups)  # no colour shows it


def test_rows_are_found_in_the_tables_that_hold_them():
    parts = [pa.table({"contig": [str(i)], "embedding": fixed_vectors(np.full((1, 2), i))}) for i in range(5)]
    found = rows_at(lambda: iter(parts), np.array([0, 3, 4]))
    assert found["contig"].to_pylist() == ["0", "3", "4"] and vectors_of(found)[:, 1].tolist() == [0, 3, 4]


def test_the_command_draws_classes_of_the_table(model, table, tmp_path):
    run = ["embed", "--model", model, "--input", str(table), "--column", "dna", "--output", str(tmp_path / "e.npy")]
    main([*run, "--plot", str(tmp_path / "e.svg"), "--colour", "kind"])
    found = texts_of(tmp_path / "e.svg")
    assert {"Embeddings of t.csv", "kind", "a (12)", "b (15)", "no value (3)"} <= set(found)
    assert any(text.startswith("30 sequences; embedded by ") for text in found)
    vectors = np.load(tmp_path / "e.npy")
    panel = project((vectors - vectors.mean(0)) / vectors.std(0), "pca", 1)
    assert set(panel.axes) <= set(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "e.npy.index.tsv", "e.svg"]


def test_regions_are_coloured_by_their_names_and_numbers_by_a_scale(model, table, tmp_path):
    (tmp_path / "g.fa").write_text(">c\n" + "ACGTTGCA" * 50 + "\n")
    names = ["x", "y", ".", "x", "x"]
    (tmp_path / "r.bed").write_text("".join(f"c\t{9 * i}\t{9 * i + 30 + i}\t{n}\n" for i, n in enumerate(names)))
    embed(model, tmp_path / "g.fa", bed=tmp_path / "r.bed", plot=tmp_path / "r.svg")
    assert {"name", "x (3)", "y (1)", "no value (1)"} <= set(texts_of(tmp_path / "r.svg"))
    embed(model, table, column="dna", plot=tmp_path / "l.svg", colour="level")
    assert "level" in texts_of(tmp_path / "l.svg")


def test_mistakes_end_before_the_model_is_read(model, table, tmp_path, capsys, caplog):
    given = {"--model": model, "--input": str(table), "--column": "dna", "--output": str(tmp_path / "e.npy")}
    (tmp_path / "g.fa").write_text(">c\nACGTTGCA\n>d\nACGTAA\n")
    (tmp_path / "old.png").touch()
    cases = [
        ({"--plot": str(tmp_path / "e.pdf")}, "the ending of --plot must be .png or .svg"),
        ({"--plot": str(tmp_path / "a" / "e.png")}, "must be in the folder of --output"),
        ({"--plot": str(tmp_path / "old.png")}, "old.png: is a file that exists"),
        ({"--colour": "kind"}, "say where to write it with --plot"),
        ({"--plot": str(tmp_path / "e.png"), "--colour": "knd"}, "has no such column; choose from dna, kind, level"),
        (
            {"--plot": str(tmp_path / "e.png"), "--colour": "x", "--input": str(tmp_path / "g.fa"), "--column": ""},
            "is no table",
        ),
    ]
    for changed, message in cases:
        words = [word for pair in {**given, **changed}.items() for word in pair if pair[1]]
        with pytest.raises(SystemExit) as stopped:
            main(["embed", *words])
        error = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2 and error.startswith("megadna: error: ") and message in error
    main(["embed", "--model", model, "--input", str(tmp_path / "g.fa"), "--output", str(tmp_path / "e.npy"), "--plot",
          str(tmp_path / "e.png")])  # fmt: skip
    assert (tmp_path / "e.npy").exists() and not (tmp_path / "e.png").exists()
    assert "not drawn, as a picture needs 5 rows with a vector (2)" in capsys.readouterr().err + caplog.text
