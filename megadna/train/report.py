"""Figures and one HTML page of one or several runs, which opens from disk.

In:  run folders: metrics.jsonl, config.yaml, and evaluation-*.json if `megadna evaluate` wrote any.
Out: report.html (figures inlined, nothing loaded from elsewhere) and the figures as PNG next to it.
A run may still be running, and be long: metrics.jsonl is read line by line into curves of bounded size
(train/metrics.py); unreadable lines are counted on the page.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megadna.arguments import read_yaml
from megadna.data.manifest import SPLITS, leakage_line, load_manifest
from megadna.errors import UserError, require
from megadna.files import atomic_file, write_text
from megadna.log import get_logger
from megadna.ownership import refuse_occupied
from megadna.train import plots
from megadna.train.metrics import MOST_POINTS, Curve, MetricLines
from megadna.train.run_folder import beside_guessing, flat_keys, read_evaluation, verdict

log = get_logger(__name__)

FIGURES = {
    "valid_bits.png": "All chosen bases hidden, p renormalised over A, C, G, T; the band is one standard error over "
    "chunks. Grey: 2 bits, a uniform guess, and all baselines once <code>megadna evaluate --split valid</code> has "
    "run, perhaps on more chunks than the curve.",
    "valid_extra.png": "The datasets of validation.extra, measured in the same way; a rise means forgetting.",
    "baselines.png": "Bars are bits below the 2 bits of a uniform guess, with one standard error over chunks; the "
    "numbers are bits per base. Baselines see the same bases as the model.",
    "groups.png": "Species by species at the last validation.",
    "loss.png": "Cross-entropy over the whole vocabulary under the training mask, in which some chosen tokens are kept "
    "or replaced: not comparable with bits per base. Pale: every logged step; line: "
    "running median. The initial fall and spikes may be cut off.",
    "learning_rate.png": "The learning rate of every logged step.",
    "throughput.png": "Sum over all ranks at every logged step; the line is the running median.",
}
THINNED = (
    f"More than {MOST_POINTS:,} steps were logged: each point of a curve is the mean of consecutive steps, the pale "
    "band their minimum and maximum, the last point the last step."
)
TRAINING = ("loss", "lr", "tokens_per_second")
"""Keys of a training line that are drawn."""
BITS, EXTRA = "valid_bits_per_base", "valid_extra/"
GENERATOR = '<meta name="generator" content="megadna report">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; margin: 0 auto; max-width: 1120px; padding: 24px 28px; }
h2 { font-size: 18px; margin: 36px 0 8px; } p, figcaption { color: #555c66; max-width: 82ch; }
.tables, pre { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 18px 5px 0; text-align: left; border-bottom: 1px solid #e4e6ea; white-space: nowrap; }
tr.model td { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 26px; }
figure { margin: 0; } img { width: 100%; height: auto; } figcaption, pre { font-size: 13px; }
"""


@dataclass
class Run:
    """Contents of a run folder; metrics are added line by line."""

    name: str
    number: int
    """Index among the runs of the report, which selects its colour."""
    config: dict[str, Any]
    """config.yaml as flat keys: `train.lr`."""
    config_text: str
    curves: dict[str, Curve] = field(default_factory=dict)
    """By the key of metrics.jsonl, for the keys that are drawn."""
    first: dict[str, Any] = field(default_factory=dict)
    """The first validation line (keys begin with valid_); empty if there is none."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last such line."""
    lowest: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Lowest value of each key of these lines, and its step."""
    notes: list[str] = field(default_factory=list)
    """Lines of metrics.jsonl that could not be read."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """evaluation-NAME.json by name."""

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        if "loss" in line:
            for key in TRAINING:
                if key in line:
                    self._curve(key).add(line["step"], line[key])
        elif any(key.startswith("valid_") for key in line):
            self._add_validation(line)

    def _add_validation(self, line: dict[str, Any]) -> None:
        self.first, self.last = self.first or line, line
        for key in [key for key in line if key == BITS or _is_extra(key)]:
            self._curve(key).add(line["step"], line[key])
            if f"{key}_se" in line or f"{key}_se" in self.curves:
                self._curve(f"{key}_se").add(line["step"], line.get(f"{key}_se"))
        for key, value in line.items():
            if value is not None and math.isfinite(value) and value < self.lowest.get(key, (math.inf,))[0]:
                self.lowest[key] = value, line["step"]

    def _curve(self, key: str) -> Curve:
        return self.curves.setdefault(key, Curve())

    def series(self, key: str, *, label: str = "", style: int = 0) -> list[plots.Series]:
        """The values of `key` over steps, with standard errors if the lines have KEY_se; [] if no line has it."""
        curve, errors = self.curves.get(key), self.curves.get(f"{key}_se")
        if curve is None:
            return []
        steps, values, low, high = curve.points()
        deviations = errors.points()[1] if errors and errors.num_lines == curve.num_lines else None
        band = (low, high) if curve.is_thinned else None
        return [plots.Series(label or self.name, self.number, steps, values, deviations, style, band)]


Evaluated = tuple[Run, dict[str, Any]]


def read_run(folder: Path, name: str = "", number: int = 0) -> Run:
    """Read a run folder; UserError if it is none, or has logged nothing yet."""
    metrics, config = folder / "metrics.jsonl", folder / "config.yaml"
    for file in (metrics, config):
        remedy = "give the --output folder of a `megadna train` that has started"
        require(file.is_file(), f"{file}: no such file; {remedy}")
    settings, config_text = _read_settings(config)
    run = Run(
        name=name or folder.resolve().name,
        number=number,
        config=flat_keys(settings),
        config_text=config_text,
        evaluations={
            file.stem.removeprefix("evaluation-"): read_evaluation(file)
            for file in sorted(folder.glob("evaluation-*.json"))
        },
    )
    lines = MetricLines(metrics)
    for line in lines:
        run.add(line)
    run.notes = lines.notes()
    for note in run.notes:
        log.warning("%s", note)
    require(bool(run.curves), f"{metrics}: no step is logged yet; report again when the run has made one")
    return run


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several run folders, named by their last folder, or by whole paths if these names are not unique."""
    names = [folder.resolve().name for folder in folders]
    shared = len(set(names)) < len(names)
    return [read_run(folder, str(folder) if shared else "", number) for number, folder in enumerate(folders)]


def write_report(runs: Sequence[Run], html_file: Path, *, figures_beside: bool) -> None:
    """Write the page, and with `figures_beside` the PNG files next to it; only an older report is replaced."""
    if html_file.is_dir():
        raise UserError(f"{html_file}: is a folder; name the file to write, such as {html_file / 'report.html'}")
    if html_file.exists() and GENERATOR.encode() not in html_file.read_bytes()[:2000]:
        raise UserError(f"{html_file}: exists and is not a report of megadna; choose another --output or move it away")
    if figures_beside and not html_file.exists():  # without a report, these figures are not ours
        for name in FIGURES:
            refuse_occupied(html_file.with_name(name), is_file=True)
    figures = draw_figures(runs)
    html_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(html_file, render_page(runs, figures))  # first: it marks the figures as ours
    for name in FIGURES if figures_beside else ():
        if name in figures:
            with atomic_file(html_file.with_name(name)) as temporary:
                temporary.write_bytes(figures[name])
        else:  # an older report may have had it
            html_file.with_name(name).unlink(missing_ok=True)


def draw_figures(runs: Sequence[Run]) -> dict[str, bytes]:
    """PNG of every figure that the runs have values for, by file name."""
    valid = [one for run in runs for one in run.series(BITS)]
    keys = sorted({key for run in runs for key in run.curves if _is_extra(key)})
    extra = [
        one
        for run in runs
        for style, key in enumerate(keys)
        for one in run.series(key, label=f"{run.name}: {_name(key)}", style=style)
    ]
    loss, lr, speed = ([one for run in runs for one in run.series(key)] for key in TRAINING)
    rows = {title: _rows(group) for title, group in evaluation_groups(runs).items()}
    panels = {title: [plots.Bar(row[0], *_mean(row[1]), row[2]) for row in group] for title, group in rows.items()}
    levels = [
        {bar.name: bar.bits for bar in group if bar.run is None}
        for title, group in panels.items()
        if title.startswith("valid:")
    ]
    species: dict[str, list[plots.Bar]] = {}
    for run in runs:
        for key, bits in run.last.items():
            if key.startswith(f"{BITS}/") and bits is not None:
                species.setdefault(_name(key), []).append(plots.Bar(run.name, bits, None, run.number))
    bits = "bits per hidden base (lower is better)"
    level = levels[0] if len(levels) == 1 else {"uniform": 2.0}
    drawn = {
        "valid_bits.png": valid and plots.curves("Validation: masked bits per base", bits, valid, levels=level),
        "valid_extra.png": extra and plots.curves("Further datasets: masked bits per base", bits, extra),
        "baselines.png": panels and plots.bars("Evaluations next to baselines", panels),
        "groups.png": species and plots.bars("Species: masked bits per base", species),
        "loss.png": loss and plots.curves("Training loss", "cross-entropy of chosen tokens (nats)", loss, noisy=True),
        "learning_rate.png": lr and plots.curves("Learning rate", "learning rate", lr, from_zero=True),
        "throughput.png": speed and plots.curves("Throughput", "tokens per second", speed, noisy=True, from_zero=True),
    }
    return {name: content for name, content in drawn.items() if isinstance(content, bytes)}


def evaluation_groups(runs: Sequence[Run]) -> dict[str, list[Evaluated]]:
    """(run, evaluation) pairs by a title that identifies their hidden bases, the test split first.

    Only scores on the same hidden bases may share a table. Their baselines are equal to the last digit, because other
    bases or masks change them.
    """
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        for name, evaluation in run.evaluations.items():
            keys = ("protocol", "hides", "dataset_id", "samples", "hidden_bases", "baselines")
            identity = json.dumps([name, *(evaluation.get(key) for key in keys)], sort_keys=True)
            groups.setdefault(identity, []).append((run, evaluation))
    titled: dict[str, list[Evaluated]] = {}
    for identity, group in sorted(groups.items(), key=lambda item: not item[0].startswith('["test"')):
        evaluation = group[0][1]
        counts = f"{evaluation['hidden_bases']:,} hidden bases in {evaluation['samples']:,} chunks"
        title = f"{json.loads(identity)[0]}: {counts}"
        if "hides" in evaluation:
            title += f", protocol {evaluation['protocol']} ({evaluation['hides']})"
        if title in titled:
            title += f" ({', '.join(run.name for run, _ in group)})"
        titled[title] = group
    return titled


def render_page(runs: Sequence[Run], figures: dict[str, bytes]) -> str:
    """The whole HTML page."""
    names = html.escape(", ".join(run.name for run in runs))
    shown = [name for name in FIGURES if name in figures]
    configs = [
        f"<details><summary>config.yaml of {html.escape(run.name)}</summary><pre>{html.escape(run.config_text)}"
        "</pre></details>"
        for run in runs
    ]
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}',
        f"<title>{names} - megadna report</title><style>{STYLE}</style></head><body>",
        f"<h1>{names}</h1><p>megadna training report</p>",
        *(f"<p>{html.escape(note)}</p>" for run in runs for note in run.notes),
        "<h2>Masked bits per base</h2>",
        *_evaluation_tables(runs),
        *_leakage_lines(runs),
        _validation_table(runs),
        "<h2>Curves</h2>",
        f"<p>{THINNED}</p>" * any(curve.is_thinned for run in runs for curve in run.curves.values()),
        '<div class="figures">',
        *(_figure(name, figures[name]) for name in shown),
        "</div><h2>Settings</h2>",
        _config_table(runs),
        *configs,
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _evaluation_tables(runs: Sequence[Run]) -> list[str]:
    tables = []
    for title, group in evaluation_groups(runs).items():
        cells = [
            (
                [name if run is None else name + _step(result), _bits(*_mean(numbers)),
                 f"{numbers['perplexity']:.3f}", f"{100 * numbers['accuracy']:.1f} %"],
                "" if run is None else "model",
            )
            for name, numbers, run, result in _rows(group)
        ]  # fmt: skip
        tables.append(f"<p>{html.escape(title)}</p>")
        tables.append(_table(["model", "bits per base", "perplexity", "accuracy"], cells))
        verdicts = ((run.name, verdict(result["model"], result["baselines"])) for run, result in group)
        tables += [f"<p>{html.escape(f'{name}: {text}')}</p>" for name, text in verdicts if text]
    return tables or ["<p>No evaluation with baselines yet; <code>megadna evaluate</code> makes one.</p>"]


def _leakage_lines(runs: Sequence[Run]) -> list[str]:
    """Leakage into the held-out splits, as recorded in the runs' datasets that are there."""
    paths = [run.config.get("data.path") or [] for run in runs]
    folders = dict.fromkeys(one for path in paths for one in ([path] if isinstance(path, str) else path))
    lines = []
    for folder in folders:
        with suppress(UserError):  # a dataset that is gone or damaged does not prevent a report
            manifest = load_manifest(folder)
            lines += [line for split in SPLITS if (line := leakage_line(manifest, split))]
    return [f"<p>{html.escape(line)}</p>" for line in lines]


def _validation_table(runs: Sequence[Run]) -> str:
    """First and last value of each validation metric, and the step with the lowest bits."""
    rows = []
    for run in runs:
        for key, value in run.last.items():
            if not key.startswith("valid_") or key.endswith("_se") or value is None:
                continue
            low, step = run.lowest.get(key, (math.nan, 0))
            lowest = f"{low:.4f} (step {step:,})" if "bits_per_base" in key else ""
            start = "-" if run.first.get(key) is None else f"{run.first[key]:.4f} (step {run.first['step']:,})"
            shown = _bits(value, run.last.get(f"{key}_se")) + (beside_guessing(value) if key == BITS else "")
            rows.append(([run.name, key, start, shown, lowest], ""))
    return "<p>while training</p>" + _table(["run", "", "first", "last", "lowest"], rows) if rows else ""


def _config_table(runs: Sequence[Run]) -> str:
    """The settings that differ between the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [([key, *(str(run.config.get(key, "-")) for run in runs)], "") for key in keys]
    rows = [(cells, kind) for cells, kind in rows if len(set(cells[1:])) > 1]
    return "<p>where the runs differ</p>" + _table(["key", *(run.name for run in runs)], rows) if rows else ""


def _table(headers: list[str], rows: Iterable[tuple[list[str], str]]) -> str:
    def row(tag: str, cells: list[str], kind: str) -> str:
        return f'<tr class="{kind}">' + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>\n"

    body = "".join(row("td", cells, kind) for cells, kind in rows)
    return f'<div class="tables"><table>{row("th", headers, "")}{body}</table></div>'


def _figure(name: str, content: bytes) -> str:
    alt, data = name.removesuffix(".png").replace("_", " "), base64.b64encode(content).decode()
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{FIGURES[name]}</figcaption></figure>"


def _rows(group: list[Evaluated]) -> list[tuple[str, dict[str, Any], int | None, dict[str, Any]]]:
    """(name, numbers, run, evaluation) of the baselines, whose run is None, and of the models."""
    first = group[0][1]
    rows: list[tuple[str, dict[str, Any], int | None, dict[str, Any]]] = []
    for key, numbers in first["baselines"].items():
        rows.append((f"Markov (k = {numbers['k']})" if "k" in numbers else key, numbers, None, first))
    return rows + [(run.name, result["model"], run.number, result) for run, result in group]


def _step(result: dict[str, Any]) -> str:
    """Step of the evaluated weights; a Hugging Face folder has none."""
    return f", step {result['step']:,}" if "step" in result else ""


def _mean(numbers: dict[str, Any]) -> tuple[float, float | None]:
    return numbers["bits_per_base"], numbers.get("standard_error")


def _is_extra(key: str) -> bool:
    return key.startswith(EXTRA) and key.endswith("_bits_per_base")


def _name(key: str) -> str:
    """Species or dataset in a key of metrics.jsonl."""
    return key.split("/", 1)[1].removesuffix("_bits_per_base")


def _bits(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")


def _read_settings(file: Path) -> tuple[dict[str, Any], str]:
    """Content of config.yaml, and its text."""
    remedy = "take the one of a checkpoint (checkpoints/step-*/config.yaml)"
    try:
        settings = read_yaml(file)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    require(isinstance(settings, dict), f"{file}: not a mapping of keys; {remedy}")
    return settings, file.read_text(encoding="utf-8")
