"""Reports of made-up runs: what is read, which figures come out, that the page loads nothing, and clear mistakes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megadna.commands.report import main
from megadna.data.manifest import dump_manifest, load_manifest
from megadna.errors import UserError
from megadna.train import plots
from megadna.train.metrics import MOST_POINTS, Curve
from megadna.train.report import FIGURES, draw_figures, evaluation_groups, read_run, read_runs, render_page
from megadna.train.run_folder import verdict

PNG = b"\x89PNG\r\n\x1a\n"


def scored(bits: float, error: float = 0.004, **more: float) -> dict[str, float]:
    return {"bits_per_base": bits, "standard_error": error, "perplexity": 2**bits, "accuracy": 0.33, **more}


def make_run(folder: Path, *, steps: int = 40, lr: float = 4e-4, splits: tuple[str, ...] = ("valid", "test")) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: 1\ntrain:\n  steps: {steps}\n  lr: {lr}\ndata:\n  path: <genomes>\n")
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 1.3 + 1 / step, "lr": lr / step, "grad_norm": 1.0}
        lines.append({**line, "tokens_per_second": 1000.0 + step, "consumed_samples": 8 * step})
        if step % 10 == 0:
            bits = 1.9 + 0.1 / step
            valid = {"valid_bits_per_base": bits, "valid_bits_per_base_se": 0.003, "valid_accuracy": 0.3}
            species = {f"valid_bits_per_base/{name}": bits + 0.01 * place for place, name in enumerate(("ant", "bee"))}
            lines.append({"step": step, **valid, **species, "valid_extra/old_bits_per_base": 1.9 + step / 1000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in splits:
        evaluation = {"split": split, "step": steps, "samples": 16, "hidden_bases": 9600, "model": scored(1.93)}
        markov = scored(1.91, k=4, smoothing=30.0)
        evaluation["baselines"] = {"uniform": scored(2.0, 0.0), "composition": scored(1.96), "markov": markov}
        (folder / f"evaluation-{split}.json").write_text(json.dumps(evaluation))
    return folder


def test_one_run_gives_page_and_figures_in_its_folder(tmp_path, capsys):
    run = make_run(tmp_path / "demo")
    main([str(run)])
    report = run / "report"
    assert capsys.readouterr().out == f"{report / 'report.html'}\n"
    assert {file.name for file in report.iterdir()} == {*FIGURES, "report.html"}
    assert all((report / name).read_bytes().startswith(PNG) for name in FIGURES)
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES) == 7
    for text in ("1.9300 ± 0.0040", "Markov (k = 4)", "demo, step 40", "9,600 hidden bases in 16 chunks"):
        assert text in page
    old = "<td>valid_extra/old_bits_per_base</td><td>1.9100 (step 10)</td><td>1.9400</td><td>1.9100 (step 10)</td>"
    for text in (old, "<td>valid_accuracy</td><td>0.3000 (step 10)</td><td>0.3000</td><td></td>"):
        assert text in page
    main([str(run)])  # again, over its own report


def test_page_loads_nothing_and_escapes_what_it_shows(tmp_path):
    run = read_run(make_run(tmp_path / "a&b"))
    page = render_page([run], draw_figures([run]))
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page and "<script" not in page
    assert "&lt;genomes&gt;" in page and "<genomes>" not in page and "a&amp;b" in page


def test_leakage_of_the_dataset_is_on_the_page(tmp_path, toy_dataset):
    run = make_run(tmp_path / "run")
    split = {"chunks": 9, "without_sketch": 1, "flagged": 4, "mean": 0.3, "highest": 1.0}
    leakage = {"max_containment": 0.2, "flagged": 4, "splits": {"valid": split}}
    (tmp_path / "data").mkdir()
    manifest = replace(load_manifest(toy_dataset), leakage=leakage)
    (tmp_path / "data" / "manifest.json").write_text(dump_manifest(manifest))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("<genomes>", str(tmp_path / "data")))
    page = render_page([read_run(run)], {})
    assert "<p>leakage: 4 of 9 valid chunks share more than 0.2 of their sketch with train" in page
    (tmp_path / "data" / "manifest.json").write_text("{")
    assert "leakage:" not in render_page([read_run(run)], {})


def test_several_runs_stand_side_by_side_with_differences_marked(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", lr=8e-4, steps=30)]
    output = tmp_path / "out" / "both.html"
    main([*map(str, folders), "--output", str(output)])
    assert [file.name for file in output.parent.iterdir()] == ["both.html"]
    page = output.read_text()
    assert '<tr class=""><td>train.lr</td><td>0.0004</td><td>0.0008</td></tr>' in page
    assert "<td>seed</td>" not in page
    assert len(evaluation_groups(read_runs(folders))) == 2  # test and valid, both runs in each


def test_several_runs_without_output_report_into_the_current_folder(tmp_path, monkeypatch):
    folders = [make_run(tmp_path / name / "run", splits=()) for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    main([str(folder) for folder in folders])
    assert (tmp_path / "report" / "report.html").is_file() and (tmp_path / "report" / "loss.png").is_file()
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_other_hidden_bases_never_share_a_table(tmp_path):
    one, two = make_run(tmp_path / "one", splits=("test",)), make_run(tmp_path / "two", splits=("test",))
    evaluation = json.loads((two / "evaluation-test.json").read_text())
    evaluation["baselines"]["markov"]["bits_per_base"] = 1.8
    (two / "evaluation-test.json").write_text(json.dumps(evaluation))
    three = make_run(tmp_path / "three", splits=("test",))
    evaluation = json.loads((three / "evaluation-test.json").read_text())
    evaluation |= {"protocol": "block6", "hides": "15% of the tokens"}
    (three / "evaluation-test.json").write_text(json.dumps(evaluation))
    groups = evaluation_groups(read_runs([one, two, three]))
    assert [[run.name for run, _ in group] for group in groups.values()] == [["one"], ["two"], ["three"]]
    counts = "test: 9,600 hidden bases in 16 chunks"
    assert list(groups) == [counts, f"{counts} (two)", f"{counts}, protocol block6 (15% of the tokens)"]


def test_a_run_that_is_going_on_is_reported(tmp_path):
    run = make_run(tmp_path / "run", steps=5, splits=())
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "lo')
    read = read_run(run)
    assert read.curves["loss"].num_lines == 5 and read.notes == [
        f"{run}/metrics.jsonl: the last line is cut off and was left out"
    ]
    main([str(run)])
    (run / "report" / "baselines.png").write_bytes(PNG)  # of an older report
    main([str(run)])
    names = {file.name for file in (run / "report").iterdir()}
    assert names == {"report.html", "loss.png", "learning_rate.png", "throughput.png"}  # the old figure is gone


def test_skipped_steps_and_missing_values_leave_gaps(tmp_path):
    run = make_run(tmp_path / "run", splits=())
    text = (run / "metrics.jsonl").read_text().replace('"loss": 1.4', '"loss": null, "was": 1.4')
    (run / "metrics.jsonl").write_text(text.replace('"loss": 1.8', '"loss": NaN, "was": 1.8'))
    read = read_run(run)
    (series,) = read.series("loss")
    values = series.values
    assert 2 <= np.isnan(values).sum() < 40
    assert {"loss.png", "throughput.png"} <= draw_figures([read]).keys()


def test_training_loss_and_bits_come_from_different_lines(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.curves["loss"].num_lines == 40 and run.curves["valid_bits_per_base"].num_lines == 4
    (bits,) = run.series("valid_bits_per_base")
    np.testing.assert_array_equal(bits.steps, [10, 20, 30, 40])
    np.testing.assert_array_equal(bits.errors, [0.003] * 4)
    assert run.last["step"] == 40 and "loss" not in run.last


def test_smoothing_follows_a_fall_and_drops_a_spike():
    steps = np.arange(800.0)
    values = np.exp(-steps / 100)
    spiked = values.copy()
    spiked[[300, 301, 500]] = [9.0, np.nan, np.inf]
    np.testing.assert_allclose(plots.smoothed(spiked)[15:-15], values[15:-15], atol=0.02)
    np.testing.assert_array_equal(plots.smoothed(np.array([2.0])), [2.0])
    assert np.isnan(plots.smoothed(np.full(5, np.nan))).all()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", None, r"metrics\.jsonl: no such file; give the --output folder"),
        ("config.yaml", None, r"config\.yaml: no such file"),
        ("metrics.jsonl", "", "no step is logged yet"),
        ("metrics.jsonl", '{"step": 1}\n{"step"\n{"step": 3}\n', "no step is logged yet"),
        ("config.yaml", "a: [\n", r"config\.yaml: not YAML .*; take the one of a checkpoint"),
        ("config.yaml", "[1]", r"config\.yaml: not a mapping of keys"),
        ("evaluation-test.json", "[]", r"evaluation-test\.json: not JSON .not an object"),
        ("evaluation-test.json", "{", r"evaluation-test\.json: not JSON .*megadna evaluate"),
        ("evaluation-test.json", '{"step": 1}', "lacks baselines, hidden_bases, model, samples"),
    ],
)
def test_mistakes_name_the_file_and_the_remedy(tmp_path, file, content, message):
    run = make_run(tmp_path / "run")
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    with pytest.raises(UserError, match=message):
        main([str(run)])
    assert not (run / "report").exists()


GARBAGE = b"\x00\xff\xfe garbage \x80\n"


@pytest.mark.parametrize(
    ("damage", "broken", "first"),
    [
        (lambda lines: [*lines[:3], GARBAGE, *lines[3:]], 1, 4),
        (lambda lines: [b"5\n", b"[]\n", b"{}\n", *lines], 3, 1),
        (lambda lines: [*lines, b'{"step": "6", "loss": 1.0}\n', b'{"step": 6, "loss": "low"}\n'], 2, 45),
        (lambda lines: [*lines[:-1], b"x" * 3_000_000 + b"\n", b"\n", lines[-1]], 1, 44),
        (lambda lines: [*lines, b"[" * 100_000 + b"\n"], 1, 45),
    ],
)
def test_lines_that_cannot_be_read_are_counted(tmp_path, caplog, damage, broken, first):
    """Every whole line is reported; the others are counted, on the page and in the log."""
    run = make_run(tmp_path / "run", splits=())
    whole = read_run(run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(damage(lines)))
    read = read_run(run)
    assert read.curves["loss"].num_lines == 40 and read.last == whole.last and read.lowest == whole.lowest
    counted = f"lines left out: {broken}, "
    assert counted in read.notes[0] and f"the first is line {first})" in read.notes[0] and counted in caplog.text
    assert counted in render_page([read], {})


@pytest.mark.parametrize("num_lines", [1, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_a_curve_is_bounded_and_keeps_extremes_means_and_the_last(num_lines):
    values = np.random.default_rng(num_lines).normal(size=num_lines)
    values[num_lines // 3] = 99.0
    values[num_lines // 2] = -99.0 if num_lines > 3 else values[0]
    curve = Curve()
    for step, value in enumerate(values.tolist(), start=1):
        curve.add(step, value)
    steps, means, low, high = curve.points()
    assert (
        len(steps) <= MOST_POINTS + 1 and (np.diff(steps) > 0).all() and curve.is_thinned == (num_lines > MOST_POINTS)
    )
    assert (steps[-1], means[-1]) == (num_lines, values[-1])
    assert (low.min(), high.max()) == (values.min(), values.max()) and (low <= means).all() and (means <= high).all()
    if not curve.is_thinned:
        np.testing.assert_array_equal(means, values)
    else:
        width = int(steps[0])
        np.testing.assert_allclose(means[0], values[:width].mean())
        np.testing.assert_array_equal(high[1], values[width : 2 * width].max())


def test_a_long_run_is_drawn_thinned_and_says_so(tmp_path):
    run = make_run(tmp_path / "run", splits=())
    assert "each point of a curve" not in render_page([read_run(run)], {})
    with (run / "metrics.jsonl").open("a") as metrics:
        for step in range(41, 2 * MOST_POINTS):
            metrics.write(json.dumps({"step": step, "loss": None if step % 3 else 1.0, "lr": 0.1}) + "\n")
    read = read_run(run)
    assert "each point of a curve is the mean" in render_page([read], draw_figures([read]))
    (loss,) = read.series("loss")
    assert loss.band is not None and len(loss.steps) <= MOST_POINTS + 1


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1.90, ""),
        (1.91, "no better than markov (1.9100): the model needs 1.9100 bits per base; train longer"),
        (1.97, "no better than composition (1.9600) and markov (1.9100): the model needs 1.9700"),
        (2.04, "no better than guessing (2.0000), composition (1.9600) and markov (1.9100): the model needs 2.0400"),
    ],
)
def test_a_model_no_better_than_a_baseline_is_called_so(tmp_path, bits, expected):
    run = make_run(tmp_path / "run", splits=("test",))
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    found = verdict(scored(bits), evaluation["baselines"])
    assert found.startswith(expected) and bool(found) == bool(expected)
    (run / "evaluation-test.json").write_text(json.dumps(evaluation | {"model": scored(bits)}))
    page = render_page([read_run(run)], {})
    assert f"<p>run: {expected}" in page if expected else "no better" not in page


def test_guessing_is_called_so_without_baselines(tmp_path):
    assert verdict(scored(2.0), {}).startswith("no better than guessing (2.0000)") and not verdict(scored(1.999), {})
    run = make_run(tmp_path / "run", splits=())
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 50, "valid_bits_per_base": 2.04, "valid_bits_per_base_se": 0.01}) + "\n")
    assert "2.0400 ± 0.0100 (no better than guessing, 2)" in render_page([read_run(run)], {})


def test_only_reports_are_overwritten(tmp_path):
    run, notes = make_run(tmp_path / "run"), tmp_path / "notes.html"
    notes.write_text("mine")
    with pytest.raises(UserError, match="is not a report of megadna"):
        main([str(run), "--output", str(notes)])
    with pytest.raises(UserError, match="is a folder"):
        main([str(run), "--output", str(tmp_path)])
    assert notes.read_text() == "mine"
