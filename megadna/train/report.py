"""What one or several runs did, as figures and one HTML page that opens from disk.

In:  run folders: metrics.jsonl, config.yaml, and evaluation-SPLIT.json where `megadna evaluate` or the run wrote one.
Out: report.html (figures inlined, nothing loaded from elsewhere) and the figures as PNG beside it.
A run may still be going on: a half-written last line of metrics.jsonl is left out.
"""

import base64
import html
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from megadna.errors import UserError
from megadna.train import plots

FIGURES = {
    "valid_bits.png": "Every chosen base hidden, p renormalised over A, C, G, T; the band is one standard error over "
    "chunks, dashed lines are the baselines of evaluation-valid.json, which may hold more "
    "chunks than the curve.",
    "baselines.png": "Bars are bits below the 2 bits of a uniform guess, with one standard error over chunks; the "
    "numbers are bits per base. Baselines see what the model sees.",
    "loss.png": "Cross-entropy over the whole vocabulary under the training mask, in which some chosen tokens are kept "
    "or replaced: another quantity than bits per base, not to be compared with it. Pale: every logged step; line: "
    "running median. The first fall and spikes may leave the frame.",
    "learning_rate.png": "The schedule as run.",
    "throughput.png": "All ranks together, of every logged step.",
}
ESSENTIALS = (
    "seed",
    "tokenizer.kind",
    "data.path",
    "data.sequence_length",
    "data.reverse_complement",
    "data.masking.fraction",
    "model.num_layers",
    "model.hidden_size",
    "model.num_attention_heads",
    "model.ffn_hidden_size",
    "parallel.tensor",
    "parallel.pipeline",
    "engine.device",
    "engine.num_processes",
    "engine.precision",
    "train.steps",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.lr",
    "train.schedule",
    "train.warmup_steps",
    "train.weight_decay",
)
BASELINE_NAMES = {"uniform": "uniform", "composition": "composition", "markov": "Markov"}
GENERATOR = '<meta name="generator" content="megadna report">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; background: #fff; margin: 0 auto; max-width: 1120px;
       padding: 24px 28px 60px; }
h1 { font-size: 25px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 36px 0 8px; }
p, figcaption { color: #555c66; margin: 4px 0 10px; max-width: 82ch; } figcaption { font-size: 13px; }
.tables { overflow-x: auto; margin-bottom: 22px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 18px 5px 0; text-align: left; border-bottom: 1px solid #e4e6ea; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right; }
td { white-space: nowrap; } tr.model td { font-weight: 600; } tr.differs td { background: #fdf3e3; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 26px; }
figure { margin: 0; } img { width: 100%; height: auto; }
pre { background: #f6f7f9; padding: 12px 14px; overflow-x: auto; font-size: 13px; } summary { cursor: pointer; }
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
    """evaluation-SPLIT.json by split."""

    def series(self, key: str, *, lines: list[dict[str, Any]], error_key: str = "") -> plots.Series | None:
        """The values of `key` over steps; None where no line has it."""
        having = [line for line in lines if key in line]
        if not having:
            return None
        errors = _numbers(having, error_key) if error_key in having[0] else None
        return plots.Series(self.name, self.number, _numbers(having, "step"), _numbers(having, key), errors)


def read_run(folder: Path, name: str = "", number: int = 0) -> Run:
    """Read a run folder; UserError where it is none, or has logged nothing yet."""
    metrics, config = folder / "metrics.jsonl", folder / "config.yaml"
    for file in (metrics, config):
        if not file.is_file():
            raise UserError(f"{file}: no such file; give the --output folder of a `megadna train` that has started")
    lines = _read_lines(metrics)
    if not lines:
        raise UserError(f"{metrics}: no step is logged yet; report again when the run has made one")
    config_text = config.read_text(encoding="utf-8")
    return Run(
        name=name or folder.resolve().name,
        number=number,
        config=_flat(yaml.safe_load(config_text) or {}),
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
    training: dict[str, tuple[str, Callable[[Sequence[plots.Series]], bytes]]] = {
        "loss.png": ("loss", plots.loss_plot),
        "learning_rate.png": ("lr", plots.learning_rate_plot),
        "throughput.png": ("tokens_per_second", plots.throughput_plot),
    }
    figures = {}
    for file, (key, draw) in training.items():
        series = [run.series(key, lines=run.training) for run in runs]
        if any(series):
            figures[file] = draw([one for one in series if one])
    key = "valid_bits_per_base"
    series = [run.series(key, lines=run.validation, error_key=f"{key}_se") for run in runs]
    groups = evaluation_groups(runs)
    if any(series):
        levels = [_baseline_levels(group[0][1]) for name, group in groups.items() if name.startswith("valid")]
        figures["valid_bits.png"] = plots.valid_bits_plot(
            [one for one in series if one], levels[0] if len(levels) == 1 else {"uniform": 2.0}
        )
    if groups:
        figures["baselines.png"] = plots.baselines_plot({name: _bars(group) for name, group in groups.items()})
    return figures


def evaluation_groups(runs: Sequence[Run]) -> dict[str, list[tuple[Run, dict[str, Any]]]]:
    """(run, evaluation) of evaluations on the same hidden bases, by a title that says which; test comes first.

    Only these may stand in one table. Their baselines are equal to the last digit; other bases or masks change them.
    """
    groups: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for split, evaluation in run.evaluations.items():
            counts = [evaluation.get(key) for key in ("protocol", "dataset_id", "samples", "hidden_bases")]
            identity = json.dumps([split, *counts, evaluation["baselines"]], sort_keys=True)
            groups.setdefault(identity, []).append((run, evaluation))
    titled: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for identity, group in sorted(groups.items(), key=lambda item: not item[0].startswith('["test"')):
        split, evaluation = json.loads(identity)[0], group[0][1]
        title = f"{split}: {evaluation['hidden_bases']:,} hidden bases in {evaluation['samples']:,} chunks"
        if evaluation.get("protocol", "base") != "base":
            title += f", protocol {evaluation['protocol']}"
        if title in titled:
            title += f" ({', '.join(run.name for run, _ in group)})"
        titled[title] = group
    return titled


def render_page(runs: Sequence[Run], figures: dict[str, bytes]) -> str:
    """The whole HTML page."""
    names = ", ".join(run.name for run in runs)
    parts = [
        f"<h1>{html.escape(names)}</h1><p>megadna training report</p>",
        "<h2>Masked bits per base</h2>",
        *_evaluation_tables(runs),
        _validation_table(runs),
        '<h2>Curves</h2><div class="figures">',
        *(_figure(name, figures[name], FIGURES[name]) for name in FIGURES if name in figures),
        "</div><h2>Training</h2>",
        _training_table(runs),
        "<h2>Settings</h2>",
        _config_table(runs),
        *(
            f"<details><summary>config.yaml of {html.escape(run.name)}</summary>"
            f"<pre>{html.escape(run.config_text)}</pre></details>"
            for run in runs
        ),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(names)} - megadna report</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _evaluation_tables(runs: Sequence[Run]) -> list[str]:
    groups = evaluation_groups(runs)
    if not groups:
        return ["<p>No evaluation beside baselines yet; <code>megadna evaluate</code> makes one.</p>"]
    tables = []
    for title, group in groups.items():
        rows = [(_baseline_label(key, numbers), numbers, "") for key, numbers in group[0][1]["baselines"].items()]
        rows += [(f"{run.name}, step {result['step']:,}", result["model"], "model") for run, result in group]
        cells = [
            (
                [
                    label,
                    _bits(numbers),
                    f"{2 - numbers['bits_per_base']:.4f}",
                    f"{numbers['perplexity']:.3f}",
                    f"{100 * numbers['accuracy']:.1f} %",
                ],
                kind,
            )
            for label, numbers, kind in rows
        ]
        headers = ["model", "bits per base", "below uniform", "perplexity", "accuracy"]
        tables.append(f"<p>{html.escape(title)}</p>" + _table(headers, cells, numeric_from=1))
    return tables


def _validation_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        lines = [line for line in run.validation if line.get("valid_bits_per_base") is not None]
        if not lines:
            continue
        last, best = lines[-1], min(lines, key=lambda line: line["valid_bits_per_base"])
        cells = [f"{line['valid_bits_per_base']:.4f} (step {line['step']:,})" for line in (last, best)]
        rows.append(([run.name, *cells], ""))
    if not rows:
        return ""
    return "<p>valid, while training</p>" + _table(["run", "last", "lowest"], rows, numeric_from=1)


def _training_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        if not run.training:
            continue
        last = run.training[-1]
        loss = plots.smoothed(_numbers(run.training, "loss"))[-1]
        speed = _numbers(run.training, "tokens_per_second")
        median = f"{np.nanmedian(speed):,.0f}" if np.isfinite(speed).any() else "-"
        samples = f"{last['consumed_samples']:,}" if "consumed_samples" in last else "-"
        rows.append(([run.name, f"{last['step']:,}", samples, f"{loss:.4f}", median], ""))
    headers = ["run", "steps", "samples seen", "training loss, last steps (nats)", "tokens/s, median"]
    return _table(headers, rows, numeric_from=1)


def _config_table(runs: Sequence[Run]) -> str:
    configs = [run.config for run in runs]
    rows = []
    for key in ESSENTIALS:
        values = [str(config[key]) if key in config else "-" for config in configs]
        if set(values) != {"-"}:
            rows.append(([key, *values], "differs" if len(set(values)) > 1 else ""))
    note = "<p>Shaded: the runs differ.</p>" if any(kind for _, kind in rows) else ""
    return note + _table(["key", *(run.name for run in runs)], rows)


def _table(headers: list[str], rows: Sequence[tuple[list[str], str]], *, numeric_from: int | None = None) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if numeric_from is not None and column >= numeric_from else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(headers))
    body = [
        f'<tr class="{kind}">' + "".join(cell("td", column, text) for column, text in enumerate(cells)) + "</tr>"
        for cells, kind in rows
    ]
    return f'<div class="tables"><table><tr>{head}</tr>\n' + "\n".join(body) + "</table></div>"


def _figure(name: str, content: bytes, caption: str) -> str:
    data = base64.b64encode(content).decode()
    alt = name.removesuffix(".png").replace("_", " ")
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _bars(group: list[tuple[Run, dict[str, Any]]]) -> list[plots.Bar]:
    rows: list[tuple[str, dict[str, Any], int | None]] = [
        (_baseline_label(key, numbers), numbers, None) for key, numbers in group[0][1]["baselines"].items()
    ]
    rows += [(run.name, result["model"], run.number) for run, result in group]
    return [
        plots.Bar(name, numbers["bits_per_base"], numbers.get("standard_error"), run) for name, numbers, run in rows
    ]


def _baseline_levels(evaluation: dict[str, Any]) -> dict[str, float]:
    return {_baseline_label(key, numbers): numbers["bits_per_base"] for key, numbers in evaluation["baselines"].items()}


def _baseline_label(key: str, numbers: dict[str, Any]) -> str:
    name = BASELINE_NAMES.get(key, key)
    return f"{name} (k = {numbers['k']})" if "k" in numbers else name


def _bits(numbers: dict[str, Any]) -> str:
    error = numbers.get("standard_error")
    return f"{numbers['bits_per_base']:.4f}" + (f" ± {error:.4f}" if error else "")


def _read_lines(file: Path) -> list[dict[str, Any]]:
    texts = file.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number == len(texts):  # no newline ends it: the run is writing it, or was killed doing so
                break
            raise UserError(f"{file}:{number}: not a JSON object ({error}); remove this line") from error
    return lines


def _read_evaluation(file: Path) -> dict[str, Any]:
    remedy = "delete it and run `megadna evaluate` again"
    try:
        evaluation: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); {remedy}") from error
    missing = {"step", "samples", "hidden_bases", "model", "baselines"} - evaluation.keys()
    if missing:
        raise UserError(f"{file}: lacks {', '.join(sorted(missing))}; {remedy}")
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
