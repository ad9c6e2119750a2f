"""What one or several runs did, as figures and one HTML page that opens from disk.

In:  run folders: metrics.jsonl, config.yaml, and evaluation-*.json where `megadna evaluate` wrote one.
Out: report.html (figures inlined, nothing loaded from elsewhere) and the figures as PNG beside it.
A run may still be going on: a half-written last line of metrics.jsonl is left out.
"""

import base64
import html
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadna.arguments import read_yaml
from megadna.errors import UserError, require
from megadna.reading import parse_json, read_json
from megadna.train import plots

FIGURES = {
    "valid_bits.png": "Every chosen base hidden, p renormalised over A, C, G, T; the band is one standard error over "
    "chunks. Grey: 2 bits, a uniform guess, and all baselines once <code>megadna evaluate --split valid</code> has "
    "run, perhaps on more chunks than the curve.",
    "valid_extra.png": "The datasets of validation.extra, by the same definition; a rise is forgetting.",
    "baselines.png": "Bars are bits below the 2 bits of a uniform guess, with one standard error over chunks; the "
    "numbers are bits per base. Baselines see what the model sees.",
    "groups.png": "Species by species at the last validation.",
    "loss.png": "Cross-entropy over the whole vocabulary under the training mask, in which some chosen tokens are kept "
    "or replaced: another quantity than bits per base, not to be compared with it. Pale: every logged step; line: "
    "running median. The first fall and spikes may leave the frame.",
    "learning_rate.png": "The schedule as run.",
    "throughput.png": "All ranks together, of every logged step; the line is the running median.",
}
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


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    name: str
    number: int
    """Place among the runs of the report, from 0; it gives the run its colour."""
    config: dict[str, Any]
    """config.yaml as flat keys: `train.lr`."""
    config_text: str
    training: list[dict[str, Any]]
    """Lines with `loss`, in order."""
    validation: list[dict[str, Any]]
    """Lines with keys that begin with valid_, in order."""
    evaluations: dict[str, dict[str, Any]]
    """evaluation-NAME.json by name."""

    def series(self, key: str, *, lines: list[dict[str, Any]], label: str = "", style: int = 0) -> list[plots.Series]:
        """The values of `key` over steps, with standard errors where KEY_se stands beside; [] where no line has it."""
        having = [line for line in lines if key in line]
        if not having:
            return []
        steps, values = _numbers(having, "step"), _numbers(having, key)
        errors = _numbers(having, f"{key}_se") if f"{key}_se" in having[0] else None
        return [plots.Series(label or self.name, self.number, steps, values, errors, style)]


Evaluated = tuple[Run, dict[str, Any]]


def read_run(folder: Path, name: str = "", number: int = 0) -> Run:
    """Read a run folder; UserError where it is none, or has logged nothing yet."""
    metrics, config = folder / "metrics.jsonl", folder / "config.yaml"
    for file in (metrics, config):
        remedy = "give the --output folder of a `megadna train` that has started"
        require(file.is_file(), f"{file}: no such file; {remedy}")
    lines = _read_lines(metrics)
    require(bool(lines), f"{metrics}: no step is logged yet; report again when the run has made one")
    tree = read_yaml(config)
    require(isinstance(tree, dict | None), f"{config}: not a config but {type(tree).__name__}; {remedy}")
    config_text = config.read_text(encoding="utf-8")
    return Run(
        name=name or folder.resolve().name,
        number=number,
        config=_flat(tree or {}),
        config_text=config_text,
        training=[line for line in lines if "loss" in line],
        validation=[line for line in lines if any(key.startswith("valid_") for key in line)],
        evaluations={
            file.stem.removeprefix("evaluation-"): _read_evaluation(file)
            for file in sorted(folder.glob("evaluation-*.json"))
        },
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several run folders; where last folder names are shared, runs go by their whole paths."""
    names = [folder.resolve().name for folder in folders]
    shared = len(set(names)) < len(names)
    return [read_run(folder, str(folder) if shared else "", number) for number, folder in enumerate(folders)]


def write_report(runs: Sequence[Run], html_file: Path, *, figures_beside: bool) -> None:
    """Write the page, and with `figures_beside` the PNG files into its folder; only an older report is replaced."""
    if html_file.is_dir():
        raise UserError(f"{html_file}: is a folder; name the file to write, such as {html_file / 'report.html'}")
    if html_file.exists() and GENERATOR.encode() not in html_file.read_bytes()[:2000]:
        raise UserError(f"{html_file}: exists and is no report of megadna; choose another --output or move it away")
    figures = draw_figures(runs)
    html_file.parent.mkdir(parents=True, exist_ok=True)
    for name in FIGURES if figures_beside else ():
        if name in figures:
            _write(html_file.with_name(name), figures[name])
        else:  # an older report may have had it
            html_file.with_name(name).unlink(missing_ok=True)
    _write(html_file, render_page(runs, figures).encode())


def draw_figures(runs: Sequence[Run]) -> dict[str, bytes]:
    """PNG of every figure that the runs have values for, by file name."""
    valid = [one for run in runs for one in run.series(BITS, lines=run.validation)]
    keys = sorted({key for run in runs for line in run.validation for key in line if _is_extra(key)})
    extra = [
        one
        for run in runs
        for style, key in enumerate(keys)
        for one in run.series(key, lines=run.validation, label=f"{run.name}: {_name(key)}", style=style)
    ]
    loss, lr, speed = (
        [one for run in runs for one in run.series(key, lines=run.training)]
        for key in ("loss", "lr", "tokens_per_second")
    )
    rows = {title: _rows(group) for title, group in evaluation_groups(runs).items()}
    panels = {title: [plots.Bar(row[0], *_mean(row[1]), row[2]) for row in group] for title, group in rows.items()}
    levels = [
        {bar.name: bar.bits for bar in group if bar.run is None}
        for title, group in panels.items()
        if title.startswith("valid:")
    ]
    species: dict[str, list[plots.Bar]] = {}
    for run in runs:
        for key, bits in (run.validation[-1] if run.validation else {}).items():
            if key.startswith(f"{BITS}/") and bits is not None:
                species.setdefault(_name(key), []).append(plots.Bar(run.name, bits, None, run.number))
    bits = "bits per hidden base (lower is better)"
    level = levels[0] if len(levels) == 1 else {"uniform": 2.0}
    drawn = {
        "valid_bits.png": valid and plots.curves("Validation: masked bits per base", bits, valid, levels=level),
        "valid_extra.png": extra and plots.curves("Further datasets: masked bits per base", bits, extra),
        "baselines.png": panels and plots.bars("Evaluations beside baselines", panels),
        "groups.png": species and plots.bars("Species: masked bits per base", species),
        "loss.png": loss and plots.curves("Training loss", "cross-entropy of chosen tokens (nats)", loss, noisy=True),
        "learning_rate.png": lr and plots.curves("Learning rate", "learning rate", lr, from_zero=True),
        "throughput.png": speed and plots.curves("Throughput", "tokens per second", speed, noisy=True, from_zero=True),
    }
    return {name: content for name, content in drawn.items() if isinstance(content, bytes)}


def evaluation_groups(runs: Sequence[Run]) -> dict[str, list[Evaluated]]:
    """(run, evaluation) of evaluations on the same hidden bases, by a title that says which; test comes first.

    Only these may stand in one table. Their baselines are equal to the last digit; other bases or masks change them.
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
        f"<h1>{names}</h1><p>megadna training report</p><h2>Masked bits per base</h2>",
        *_evaluation_tables(runs),
        _validation_table(runs),
        '<h2>Curves</h2><div class="figures">',
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
                [name if run is None else f"{name}, step {result['step']:,}", _bits(*_mean(numbers)),
                 f"{numbers['perplexity']:.3f}", f"{100 * numbers['accuracy']:.1f} %"],
                "" if run is None else "model",
            )
            for name, numbers, run, result in _rows(group)
        ]  # fmt: skip
        tables.append(f"<p>{html.escape(title)}</p>")
        tables.append(_table(["model", "bits per base", "perplexity", "accuracy"], cells))
    return tables or ["<p>No evaluation beside baselines yet; <code>megadna evaluate</code> makes one.</p>"]


def _validation_table(runs: Sequence[Run]) -> str:
    """First and last value of everything that validation measures, and where bits were lowest."""
    rows = []
    for run in (run for run in runs if run.validation):
        first, last = run.validation[0], run.validation[-1]
        for key, value in last.items():
            if not key.startswith("valid_") or key.endswith("_se") or value is None:
                continue
            lines = [line for line in run.validation if line.get(key) is not None]
            low = min(lines, key=lambda line: line[key])
            lowest = f"{low[key]:.4f} (step {low['step']:,})" if "bits_per_base" in key else ""
            start = "-" if first.get(key) is None else f"{first[key]:.4f} (step {first['step']:,})"
            rows.append(([run.name, key, start, _bits(value, last.get(f"{key}_se")), lowest], ""))
    return "<p>while training</p>" + _table(["run", "", "first", "last", "lowest"], rows) if rows else ""


def _config_table(runs: Sequence[Run]) -> str:
    """The settings in which the runs differ."""
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


def _mean(numbers: dict[str, Any]) -> tuple[float, float | None]:
    return numbers["bits_per_base"], numbers.get("standard_error")


def _is_extra(key: str) -> bool:
    return key.startswith(EXTRA) and key.endswith("_bits_per_base")


def _name(key: str) -> str:
    """Species or dataset that a key of metrics.jsonl is of."""
    return key.split("/", 1)[1].removesuffix("_bits_per_base")


def _bits(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")


def _read_lines(file: Path) -> list[dict[str, Any]]:
    texts = file.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            lines.append(parse_json(text, f"{file}:{number}", "remove this line", what="a JSON object"))
        except UserError:
            if number == len(texts):  # no newline ends it: the run is writing it, or was killed doing so
                break
            raise
    return lines


def _read_evaluation(file: Path) -> dict[str, Any]:
    remedy = "delete it and run `megadna evaluate` again"
    evaluation = read_json(file, remedy)
    missing = {"step", "samples", "hidden_bases", "model", "baselines"} - evaluation.keys()
    require(not missing, f"{file}: lacks {', '.join(sorted(missing))}; {remedy}")
    return evaluation


def _numbers(lines: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """Values of `key`, NaN where a line has none or null (a skipped step)."""
    values = (line.get(key) for line in lines)
    return np.array([np.nan if value is None else float(value) for value in values])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(file)
