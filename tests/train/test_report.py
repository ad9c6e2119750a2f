"""Reports of made-up runs: what is read and said, the page in a browser, which loads nothing, and clear mistakes."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megadna.commands.report import main
from megadna.data.manifest import dump_manifest, load_manifest
from megadna.errors import UserError
from megadna.train import plots
from megadna.train.metrics import MOST_POINTS, Curve
from megadna.train.report import (
    CURVES,
    MOST_SPECIES,
    draw_figures,
    evaluation_groups,
    read_run,
    read_runs,
    summary,
    trend,
)
from megadna.train.report_page import render_page
from megadna.train.run_folder import verdict

SPECIES = ("ant", "bee")


def scored(bits: float, error: float = 0.004, **more: float) -> dict[str, float]:
    return {"bits_per_base": bits, "standard_error": error, "perplexity": 2**bits, "accuracy": 0.33, **more}


def text_of(page: str) -> str:
    """The page without bokeh's script and data."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def row_of(page: str, words: str) -> list[str]:
    """Cells of the rows of a table that begin with `words`, notes after |."""
    rows = re.findall(rf"<tr><th>{re.escape(words)}</th>(.*?)</tr>", page)
    return [re.sub("<.*?>", "", cell.replace("<small>", "|")) for row in rows for cell in row.split("</td>")[:-1]]


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
            species = {f"valid_bits_per_base/{name}": bits + 0.01 * place for place, name in enumerate(SPECIES)}
            lines.append({"step": step, **valid, **species, "valid_extra/old_bits_per_base": 1.9 + step / 1000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in splits:
        evaluation = {"split": split, "step": steps, "samples": 16, "hidden_bases": 9600, "model": scored(1.93)}
        markov = scored(1.91, k=4, smoothing=30.0)
        evaluation["baselines"] = {"uniform": scored(2.0, 0.0), "composition": scored(1.96), "markov": markov}
        (folder / f"evaluation-{split}.json").write_text(json.dumps(evaluation))
    return folder


def test_one_run_gives_one_page_in_its_folder(tmp_path, capsys):
    run = make_run(tmp_path / "demo")
    (run / "checkpoints/step-00000040").mkdir(parents=True)
    (run / "checkpoints/step-00000040/state.json").write_text('{"valid_bits_per_base": 1.9025}')
    assert read_run(run).best is None  # without its marker a checkpoint is not whole
    (run / "checkpoints/step-00000040/complete").touch()
    main([str(run)])
    assert capsys.readouterr().out == f"{run / 'report' / 'report.html'}\n"
    assert [file.name for file in (run / "report").iterdir()] == ["report.html"]
    page = (run / "report" / "report.html").read_text()
    assert len(page) < 2_000_000
    for text in ("1.9300 ± 0.0040", "Markov (k = 4)", "demo, step 40", "9,600 hidden bases in 16 chunks"):
        assert text in page
    assert row_of(page, "bits per base, dataset old") == ["1.9400|first 1.9100 (step 10), lowest 1.9100 (step 10)"]
    assert row_of(page, "accuracy")[-1] == "30.0 %|first 30.0 % (step 10)"
    assert row_of(page, "steps") == ["40 of 40"]
    assert row_of(page, "best checkpoint that is there") == ["step-00000040|1.9025 bits per base"]
    assert row_of(page, "tokens per second, median") == ["1,020"]
    main([str(run)])  # again, over its own report


POINT = """(() => {
  const documents = typeof Bokeh === "undefined" ? [] : Bokeh.documents;
  if (!documents.length || !documents.every(one => one.is_idle)) return null;
  const views = [...Bokeh.index.roots].filter(view => view.canvas_view);
  const inside = node => [...node.childNodes].map(child => child.nodeType === 3 ? child.textContent
    : child.tagName === "STYLE" ? "" : inside(child) + (child.shadowRoot ? inside(child.shadowRoot) : "")).join(" ");
  if (!window.pointed) {
    for (const view of views) {
      const target = view.canvas_view.events_el, box = target.getBoundingClientRect(), frame = view.frame;
      const isBars = view.model.title.text.startsWith("Bits");  // the upper of two bars in the first row; or step 11
      const x = box.left + frame.x_scale.compute(isBars ? 0.01 : 11);
      const y = box.top + (isBars ? frame.y_scale.compute(-0.2) : frame.bbox.top + 20);
      const at = { clientX: x, clientY: y, isPrimary: true, pointerType: "mouse", bubbles: true };
      target.dispatchEvent(new PointerEvent("pointermove", at));
    }
    window.pointed = true;
    return null;
  }
  const colours = view => {
    const canvas = view.canvas_view.primary.canvas;
    return new Set(new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, 300).data.buffer)).size;
  };
  return [document.title, window.hit, inside(document.body), views.map(view => [view.model.title.text, colours(view),
    view.model.renderers.filter(one => { const at = one.data_source.inspected;
      return at.indices.length + at.line_indices.length; }).map(one => one.name)])];
})()"""


def test_the_page_of_hostile_runs_opens_in_a_browser(tmp_path):
    """Chromium runs the page without an error, loads nothing else, draws, answers to the pointer, and runs no name."""
    pytest.importorskip("PyQt6.QtWebEngineCore", reason="needs PyQt6-WebEngine and libEGL", exc_type=ImportError)
    hostile = "<img src=x onerror='hit=1'>$$x$$"
    species = "</script><script>hit=2</script>"
    runs = [make_run(tmp_path / hostile), make_run(tmp_path / "two @{step} $name \\(y\\)", lr=8e-4)]
    for run in runs:
        for name in ("metrics.jsonl", "evaluation-test.json"):
            text = (
                (run / name).read_text().replace("base/ant", f"base/{species}").replace("old_bits", f"{hostile}_bits")
            )
            (run / name).write_text(text)
        evaluation = json.loads((run / "evaluation-test.json").read_text())
        evaluation["groups"] = {species: scored(1.92), "$$bee$$": scored(1.95)}
        (run / "evaluation-test.json").write_text(json.dumps(evaluation))
    page = tmp_path / "page.html"
    main([*map(str, runs), "--output", str(page)])
    browser = Path(__file__).parents[1] / "downstream" / "browser.py"
    command = [sys.executable, str(browser), str(page), POINT, str(tmp_path / "found.json")]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [text for text in found["console"] if "setting log level" not in text] == []
    assert found["requests"] == [page.as_uri()]
    title, hit, text, figures = found["result"]
    names = [read.name for read in read_runs(runs)]
    assert title == f"{', '.join(names)} - megadna report" and hit is None
    expected = ["Bits per base, test", "Bits per base, valid", *(CURVES[key][0] for key in CURVES)]
    assert [figure for figure, *_ in figures] == expected
    assert all(colours > 20 for _, colours, _ in figures)
    hovered = {figure: pointed for figure, _, pointed in figures}
    assert all(any(str(one).startswith(tuple(names)) for one in pointed) for pointed in hovered.values())
    assert set(names) <= set(hovered["Training loss"])
    text = " ".join(text.split())
    for name in names:
        assert f"{name}, step 11: {1.3 + 1 / 11:.4f} (median 1.3" in text
        assert f"{name}, step 10: 1.9100 ± 0.0030" in text
    assert f"{names[0]}, all hidden bases: 1.9300 ± 0.0040 bits per base (2 - 0.0700)" in text


def test_page_loads_nothing_and_escapes_what_it_shows(tmp_path):
    page = render_page([read_run(make_run(tmp_path / "a&b"))])
    assert not re.search(r'(src|href)="(?!data:)', text_of(page)) and "http://" not in text_of(page)
    assert "default-src 'none'" in page
    page = text_of(page)
    assert "&lt;genomes&gt;" in page and "<genomes>" not in page and "a&amp;b" in page


def validated(folder: Path, bits: list[float], error: float = 0.003) -> str:
    """What is said of a run with these validations at steps 10, 20, ..."""
    run = make_run(folder, steps=2, splits=())
    with (run / "metrics.jsonl").open("a") as metrics:
        for number, value in enumerate(bits, start=1):
            line = {"step": 10 * number, "valid_bits_per_base": value, "valid_bits_per_base_se": error}
            metrics.write(json.dumps(line) + "\n")
    return trend(read_run(run))


def test_whether_a_run_still_learns(tmp_path):
    falling = "is still learning: validation fell by 0.0300 bits per base from step 30 to 40"
    assert validated(tmp_path / "a", [1.99, 1.97, 1.95, 1.92]) == falling
    level = (
        "has levelled off: validation changed by -0.0010 bits per base from step 30 to 40, within one standard error"
    )
    assert validated(tmp_path / "b", [1.99, 1.95, 1.921, 1.92]) == level
    worse = "has got worse since step 20: validation rose by 0.0200 bits per base"
    assert validated(tmp_path / "c", [1.95, 1.91, 1.92, 1.93]) == worse
    few = "has too few validations to tell whether it still learns"
    assert validated(tmp_path / "d", [1.95]) == validated(tmp_path / "e", []) == few


def test_first_comes_what_a_reader_needs(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    evaluation = json.loads((two / "evaluation-test.json").read_text())
    (two / "evaluation-test.json").write_text(json.dumps(evaluation | {"model": scored(1.9)}))
    runs = read_runs([one, two])
    assert summary(runs, evaluation_groups(runs)) == [
        "Best of 2 runs: two, step 40 needs 1.9000 ± 0.0040 bits for a hidden base of test (2 is a guess), "
        "0.0100 fewer than Markov (k = 4) and 0.0600 fewer than composition.",
        "one needs 0.0300 more.",
        "two has levelled off: validation changed by -0.0008 bits per base from step 30 to 40, "
        "within one standard error.",
    ]
    (alone,) = read_runs([make_run(tmp_path / "three", splits=())])
    (said,) = summary([alone], {})
    assert said.startswith(
        "three, step 40: 1.9025 ± 0.0030 bits per base on validation, below a guess (2); megadna evaluate"
    )
    page = render_page(runs)
    assert row_of(page, "bits per base")[3:5] == ["1.9300 ± 0.0040", "1.9000 ± 0.0040"]
    assert "<td><span class=best>1.9000 ± 0.0040</span></td>" in page and "No best is marked" not in page
    assert row_of(page, "fewer than Markov by")[3:5] == ["-0.0200", "0.0100"]
    (two / "config.yaml").write_text("seed: 2\n")  # other masks, perhaps another split
    assert "No best is marked: the runs validate on different bases" in render_page(read_runs([one, two]))


def test_species_have_bars_beside_their_baselines_and_are_bounded(tmp_path):
    run = make_run(tmp_path / "run", splits=("test",))
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    evaluation["groups"] = {f"s{number}": scored(1.8 + number / 1000) for number in range(MOST_SPECIES + 5)}
    evaluation["groups"]["broken"] = {"bits_per_base": "low"}
    evaluation["baselines"]["markov"]["groups"] = {"s0": scored(1.85)}
    (run / "evaluation-test.json").write_text(json.dumps(evaluation))
    runs = [read_run(run)]
    ((title, (group,)),) = ((title, [one]) for title, one in evaluation_groups(runs).items())
    figure = draw_figures(runs, {title: group})[title]
    bars, markov = (next(one for one in figure.renderers if one.name == name) for name in ("run", "Markov (k = 4)"))
    bars, markov = bars.data_source.data, markov.data_source.data
    half = MOST_SPECIES // 2
    shown = ["all hidden bases", *(f"s{number}" for number in (*range(half), *range(half + 5, MOST_SPECIES + 5)))]
    assert bars["what"] == shown and markov["what"] == shown[:2]
    np.testing.assert_allclose(bars["gain"][:2], [0.07, 0.2])
    np.testing.assert_allclose([bars["low"][1], bars["high"][1], *markov["gain"]], [0.196, 0.204, 0.09, 0.15])
    page = render_page(runs)
    assert f"Of {MOST_SPECIES + 5} species, {half} with the lowest bits" in page


def test_leakage_of_the_dataset_is_on_the_page(tmp_path, toy_dataset):
    run = make_run(tmp_path / "run")
    split = {"chunks": 9, "without_sketch": 1, "flagged": 4, "mean": 0.3, "highest": 1.0}
    leakage = {"max_containment": 0.2, "flagged": 4, "splits": {"valid": split}}
    (tmp_path / "data").mkdir()
    manifest = replace(load_manifest(toy_dataset), leakage=leakage)
    (tmp_path / "data" / "manifest.json").write_text(dump_manifest(manifest))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("<genomes>", str(tmp_path / "data")))
    page = render_page([read_run(run)])
    assert "<p>leakage: 4 of 9 valid chunks share more than 0.2 of their sketch with train" in page
    (tmp_path / "data" / "manifest.json").write_text("{")
    assert "leakage:" not in render_page([read_run(run)])


def test_several_runs_stand_side_by_side_with_differences_marked(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", lr=8e-4, steps=30)]
    output = tmp_path / "out" / "both.html"
    main([*map(str, folders), "--output", str(output)])
    assert [file.name for file in output.parent.iterdir()] == ["both.html"]
    page = output.read_text()
    assert row_of(page, "train.lr") == ["0.0004", "0.0008"] and row_of(page, "seed") == []
    assert len(evaluation_groups(read_runs(folders))) == 2  # test and valid, both runs in each


def test_several_runs_without_output_report_into_the_current_folder(tmp_path, monkeypatch):
    folders = [make_run(tmp_path / name / "run", splits=()) for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    main([str(folder) for folder in folders])
    assert (tmp_path / "report" / "report.html").is_file()
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
    assert draw_figures([read], {}).keys() == {"loss", "lr", "tokens_per_second"}


def test_skipped_steps_and_missing_values_leave_gaps(tmp_path):
    run = make_run(tmp_path / "run", splits=())
    text = (run / "metrics.jsonl").read_text().replace('"loss": 1.4', '"loss": null, "was": 1.4')
    (run / "metrics.jsonl").write_text(text.replace('"loss": 1.8', '"loss": NaN, "was": 1.8'))
    read = read_run(run)
    (series,) = read.series("loss")
    values = series.values
    assert 2 <= np.isnan(values).sum() < 40
    assert {"loss", "tokens_per_second"} <= draw_figures([read], {}).keys() and render_page([read])


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
    assert counted in render_page([read])


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
    assert "each point of a curve" not in render_page([read_run(run)])
    with (run / "metrics.jsonl").open("a") as metrics:
        for step in range(41, 2 * MOST_POINTS):
            metrics.write(json.dumps({"step": step, "loss": None if step % 3 else 1.0, "lr": 0.1}) + "\n")
    read = read_run(run)
    assert "each point of a curve is the mean" in render_page([read])
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
    page = render_page([read_run(run)])
    assert f"<p>run: {expected}" in page if expected else "no better" not in text_of(page)


def test_guessing_is_called_so_without_baselines(tmp_path):
    assert verdict(scored(2.0), {}).startswith("no better than guessing (2.0000)") and not verdict(scored(1.999), {})
    run = make_run(tmp_path / "run", splits=())
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 50, "valid_bits_per_base": 2.04, "valid_bits_per_base_se": 0.01}) + "\n")
    assert "2.0400 ± 0.0100 (no better than guessing, 2)" in render_page([read_run(run)])


def test_only_reports_are_overwritten(tmp_path):
    run, notes = make_run(tmp_path / "run"), tmp_path / "notes.html"
    notes.write_text("mine")
    with pytest.raises(UserError, match="is not a report of megadna"):
        main([str(run), "--output", str(notes)])
    with pytest.raises(UserError, match="is a folder"):
        main([str(run), "--output", str(tmp_path)])
    assert notes.read_text() == "mine"
