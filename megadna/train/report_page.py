"""One HTML page of one or several runs, which opens from disk and loads nothing.

In:  Runs (train/report.py), and the manifests of their datasets that are there.
Out: report.html: what a reader needs first, tables of measures by runs, figures that answer to the pointer (bokeh,
     whose script is in the page), leakage, data, and the settings that differ.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from megadna.data.manifest import SPLITS, Manifest, leakage_line, load_manifest
from megadna.errors import UserError
from megadna.files import write_text
from megadna.train import plots
from megadna.train.metrics import MOST_POINTS
from megadna.train.plots import COLOURS, bits_text
from megadna.train.report import (
    BITS,
    CURVES,
    MOST_SPECIES,
    SPECIES,
    Evaluated,
    Run,
    baseline_name,
    draw_figures,
    evaluation_groups,
    species_in,
    step_in,
    summary,
    trend,
)
from megadna.train.run_folder import beside_guessing, verdict

THINNED = (
    f"More than {MOST_POINTS:,} steps were logged: each point of a curve is the mean of consecutive steps, the pale "
    "band their minimum and maximum, the last point the last step."
)
MEASURES = {
    "bits_per_base": "bits per base",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "loss": "loss of masked tokens (nats)",
    "bits_per_base_unique": "bits per base, upper-case (unique) bases",
    "bits_per_base_repeat": "bits per base, lower-case (repeat) bases",
    "bits_per_base_macro": "bits per base, mean over species",
    "bits_per_base_macro_unique": "bits per base, mean over species, unique bases",
    "bits_per_base_macro_repeat": "bits per base, mean over species, repeats",
    "reverse_complement_divergence": "divergence of the two strands (bits)",
}
"""Keys of scores in words; of all but accuracy, less is better."""
_KEY = re.compile(rf"valid_(?:extra/(.+?)_)?({'|'.join(sorted(MEASURES, key=len, reverse=True))})(?:/(.+))?", re.DOTALL)
DECIDES = ("seed", "tokenizer.", "data.path", "data.sequence_length", "validation.samples", "validation.extra")
"""Keys that decide on which bases a run validates."""
MOST_GENOMES = 50
GENERATOR = '<meta name="generator" content="megadna report">'
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data: blob:; '
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'\">"
)
"""The browser itself refuses whatever would load something."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; margin: 0 auto; max-width: 1200px; padding: 24px 28px; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 22px 0 4px; } p, figcaption { color: #555c66; max-width: 88ch; }
.first { color: #22262b; font-size: 17px; overflow-wrap: anywhere; }
.tables, pre { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e6ea; }
td > span { white-space: nowrap; } td small { min-width: 24ch; max-width: 40ch; }
thead th { border-bottom: 2px solid #8a8f98; min-width: 9ch; max-width: 34ch; overflow-wrap: anywhere; }
tbody th { font-weight: 400; min-width: min(22ch, 28vw); } small { display: block; color: #555c66; }
.best { font-weight: 700; } .best::after { content: " best"; color: #00664d; font-size: 12px; }
.best small { font-weight: 400; } i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(470px, 100%), 1fr)); gap: 26px; }
figure { margin: 0; min-width: 0; } figcaption, pre { font-size: 13px; }
"""


def write_report(runs: Sequence[Run], html_file: Path) -> None:
    """Write the page; only an older report is replaced."""
    if html_file.is_dir():
        raise UserError(f"{html_file}: is a folder; name the file to write, such as {html_file / 'report.html'}")
    if html_file.exists() and GENERATOR.encode() not in html_file.read_bytes()[:2000]:
        raise UserError(f"{html_file}: exists and is not a report of megadna; choose another --output or move it away")
    html_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(html_file, render_page(runs))


def render_page(runs: Sequence[Run]) -> str:
    """The whole HTML page."""
    groups, datasets = evaluation_groups(runs), _datasets(runs)
    names = html.escape(", ".join(run.name for run in runs))
    figures = draw_figures(runs, groups)
    script, elements = plots.embedded(figures)
    curves = [_figure(elements[key], CURVES[key][-1]) for key in CURVES if key in elements]
    configs = [
        f"<details><summary>config.yaml of {html.escape(run.name)}</summary><pre>{html.escape(run.config_text)}"
        "</pre></details>"
        for run in runs
    ]
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}{POLICY}',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{names} - megadna report</title><style>{STYLE}</style></head><body>",
        f'<h1>{names}</h1><p>megadna training report</p><p class="first">{html.escape(" ".join(summary(runs, groups)))}'
        "</p>",
        *_paragraphs(note for run in runs for note in run.notes),
        "<h2>Against baselines</h2>",
        *_evaluations(groups, elements),
        "<h2>Run by run</h2>",
        _by_run(runs, list(map(_facts, runs))),
        _validation_table(runs),
        "<h2>Curves</h2><p>Point at a curve to read it, drag to zoom in, click a name below a figure to hide it; the "
        "buttons beside a figure reset it and save it as PNG.</p>",
        f"<p>{THINNED}</p>" * any(curve.is_thinned for run in runs for curve in run.curves.values()),
        f'<div class="figures">{"".join(curves)}</div>',
        *_data(datasets),
        "<h2>Settings</h2>",
        _config_table(runs),
        *configs,
        script,
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _evaluations(groups: dict[str, list[Evaluated]], elements: dict[str, str]) -> list[str]:
    """A table and a figure of each evaluation."""
    parts = []
    for title, group in groups.items():
        parts += [f"<h3>{html.escape(title)}</h3>", _evaluation_table(group)]
        verdicts = ((run.name, verdict(result["model"], result["baselines"])) for run, result in group)
        parts += _paragraphs(f"{name}: {text}" for name, text in verdicts if text)
        caption = "Bars: runs, with one standard error over chunks; black and grey marks: baselines on the same bases. "
        caption += "The numbers are bits per base."
        count = max(len(species_in(result)) for _, result in group)
        if count > MOST_SPECIES:
            caption += f" Of {count:,} species, {MOST_SPECIES // 2} with the lowest bits and as many with the highest."
        parts.append(_figure(elements[title], caption))
    if SPECIES in elements:
        parts.append(_figure(elements[SPECIES], "One bar a run; the numbers are bits per base."))
    none = "<p>No evaluation with baselines yet; <code>megadna evaluate</code> makes one.</p>"
    return parts if groups else [none, *parts]


def _evaluation_table(group: list[Evaluated]) -> str:
    """Measures by baselines and runs."""
    baselines = group[0][1]["baselines"]
    headers = [html.escape(baseline_name(key, score)) for key, score in baselines.items()]
    headers += [_heading(run, step_in(result)) for run, result in group]
    scores = [*baselines.values(), *(result["model"] for _, result in group)]
    rows = []
    for key, words in MEASURES.items():
        values = [_number(score.get(key)) for score in scores]
        if key == "loss" or all(value is None for value in values[len(baselines) :]):
            continue
        best = _best(values[len(baselines) :], more=key == "accuracy")
        errors = [score.get("standard_error" if key == "bits_per_base" else f"{key}_se") for score in scores]
        cells = [
            _cell(_shown(key, value, error), best=column - len(baselines) in best)
            for column, (value, error) in enumerate(zip(values, errors, strict=True))
        ]
        rows.append((words, cells))
        if key == "bits_per_base" and "markov" in baselines:
            markov = baselines["markov"]["bits_per_base"]
            gains = [f"{markov - result['model']['bits_per_base']:.4f}" for _, result in group]
            rows.append(("fewer than Markov by", [_cell(text) for text in ["-"] * len(baselines) + gains]))
    return _table(headers, rows)


def _facts(run: Run) -> dict[str, str]:
    """What a run has done: cells by the words of their rows."""
    found = {
        "steps": _cell(f"{run.last_step:,} of {_whole(run.config.get('train.steps'))}"),
        "validation": _cell(*trend(run).split(": ")),
        "best checkpoint that is there": _cell("-"),
    }
    if run.best:
        folder, metric, value = run.best
        found["best checkpoint that is there"] = _cell(folder, f"{value:.4f} {_in_words(metric)}")
    curves = {key: run.curves[key].points()[1] for key in ("loss", "tokens_per_second") if key in run.curves}
    if "loss" in curves and math.isfinite(loss := plots.smoothed(curves["loss"])[-1]):
        found["training loss, running median at the end (nats)"] = _cell(f"{loss:.4f}")
    if "tokens_per_second" in curves and np.isfinite(curves["tokens_per_second"]).any():
        found["tokens per second, median"] = _cell(f"{np.nanmedian(curves['tokens_per_second']):,.0f}")
    for words, key, shown in (
        ("bases read", "consumed_bases", "{:,.0f}"),
        ("passes over the data", "epoch", "{:.2f}"),
        ("memory of a rank (MiB)", "memory_mib", "{:,.0f}"),
    ):
        if (number := _number(run.training.get(key))) is not None:
            found[words] = _cell(shown.format(number))
    return found


def _validation_table(runs: Sequence[Run]) -> str:
    """The last validation; the best is marked where the runs validate on the same bases."""
    settings = [{key: value for key, value in run.config.items() if key.startswith(DECIDES)} for run in runs]
    alike = all(one == settings[0] for one in settings)
    rows: list[tuple[str, list[str]]] = []
    for key in dict.fromkeys(key for run in runs for key in run.last):
        if key.startswith("valid_") and not key.endswith("_se"):
            values = [_number(run.last.get(key)) for run in runs]
            best = _best(values, more=key.endswith("accuracy")) if alike else set()
            cells = [_validation_cell(run, key, best=column in best) for column, run in enumerate(runs)]
            rows.append((_in_words(key), cells))
    note = "" if alike else "<p>No best is marked: the runs validate on different bases (see the settings below).</p>"
    head = [_heading(run) for run in runs]
    return f"<h3>Last validation while training</h3>{note}{_table(head, rows)}" if rows else ""


def _validation_cell(run: Run, key: str, *, best: bool) -> str:
    """The last value, and below it the first and, of bits per base, the lowest."""
    value = _number(run.last.get(key))
    if value is None:
        return _cell("-")
    start, notes = _number(run.first.get(key)), []
    if start is not None:
        notes.append(f"first {_shown(key, start)} (step {run.first['step']:,})")
    if "bits_per_base" in key and key in run.lowest:
        notes.append("lowest {:.4f} (step {:,})".format(*run.lowest[key]))
    shown = _shown(key, value, run.last.get(f"{key}_se")) + (beside_guessing(value) if key == BITS else "")
    return _cell(shown, ", ".join(notes), best=best)


def _datasets(runs: Sequence[Run]) -> dict[str, Manifest]:
    """The manifests of the runs' datasets that are there, by folder."""
    paths = [run.config.get("data.path") for run in runs]
    folders = [one for path in paths for one in (path if isinstance(path, list) else [path])]
    found = {}
    for folder in (one for one in folders if isinstance(one, str)):
        with suppress(UserError):  # a dataset that is gone or damaged does not prevent a report
            found[folder] = load_manifest(folder)
    return found


def _data(datasets: dict[str, Manifest]) -> list[str]:
    """Leakage, and what is in each dataset."""
    leakage = [line for one in datasets.values() for split in SPLITS if (line := leakage_line(one, split))]
    parts = ["<h2>Leakage</h2>", *_paragraphs(leakage or ["not measured: megadna preprocess --leakage report"])]
    for folder, manifest in datasets.items():
        parts += [f"<h2>Data: {html.escape(folder)}</h2>", *_paragraphs(manifest.notes)]
        splits = manifest.splits
        totals = [f"{manifest.chunks[split]:,} chunks ({manifest.bases[split]:,} bases) in {split}" for split in splits]
        parts += _paragraphs([f"{len(manifest.sources):,} genomes; {', '.join(totals)}"])
        largest = sorted(manifest.sources, key=lambda source: -source.bases)[:MOST_GENOMES]
        rows = []
        for source in largest:
            shares = [f"{100 * share:.1f} %" for share in (source.gc_fraction, source.soft_masked_fraction)]
            counts = [f"{source.chunks.get(split, 0):,}" for split in splits]
            cells = [source.species or "-", f"{source.bases:,}", *shares, *counts]
            rows.append((source.name, [_cell(cell) for cell in cells]))
        parts.append(_table(["species", "bases", "GC", "soft-masked", *(f"{one} chunks" for one in splits)], rows))
        if len(manifest.sources) > MOST_GENOMES:
            parts += _paragraphs([f"The {MOST_GENOMES} largest; the others are in manifest.json."])
    return parts if datasets else []


def _config_table(runs: Sequence[Run]) -> str:
    """The settings that differ between the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    different = [key for key in keys if len({str(run.config.get(key, "-")) for run in runs}) > 1]
    if different:
        cells = [{key: _cell(str(run.config.get(key, "-"))) for key in different} for run in runs]
        return "<p>Where the runs differ:</p>" + _by_run(runs, cells)
    return "<p>The runs have the same settings.</p>" * (len(runs) > 1)


def _by_run(runs: Sequence[Run], cells: Sequence[dict[str, str]]) -> str:
    """A table with a column a run, from its cells by the words of their rows."""
    names = dict.fromkeys(words for one in cells for words in one)
    rows = [(words, [one.get(words, _cell("-")) for one in cells]) for words in names]
    return _table([_heading(run) for run in runs], rows)


def _table(headers: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    """headers and cells are HTML; what begins a row is text."""
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = "".join(f"<tr><th>{html.escape(words)}</th>{''.join(cells)}</tr>\n" for words, cells in rows)
    return f'<div class="tables"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, note: str = "", *, best: bool = False) -> str:
    more = f"<small>{html.escape(note)}</small>" if note else ""
    return f"<td><span{' class=best' * best}>{html.escape(text)}</span>{more}</td>"


def _heading(run: Run, more: str = "") -> str:
    return f'<i style="background:{COLOURS[run.number % len(COLOURS)]}"></i>{html.escape(run.name + more)}'


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [f"<p>{html.escape(text)}</p>" for text in texts]


def _figure(element: str, caption: str) -> str:
    return f"<figure>{element}<figcaption>{caption}</figcaption></figure>"


def _best(values: Sequence[float | None], *, more: bool) -> set[int]:
    """Indices of the best values; none where all are equal."""
    known = [value for value in values if value is not None]
    best = (max if more else min)(known) if len(set(known)) > 1 else None
    return {index for index, value in enumerate(values) if value is not None and value == best}


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _shown(key: str, value: float | None, error: Any = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if key.endswith("accuracy") else bits_text(value, _number(error))


def _in_words(key: str) -> str:
    """A key of a validation line in words."""
    found = _KEY.fullmatch(key)
    if found is None:
        return key
    dataset, measure, species = found.groups()
    return ", ".join(filter(None, (MEASURES[measure], species, dataset and f"dataset {dataset}")))


def _whole(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "?"
