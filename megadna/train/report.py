"""What a report tells of runs: their curves, scores, best checkpoint and data, and how far they have got.

In:  run folders: metrics.jsonl, config.yaml, state.json of the checkpoints, and evaluation-*.json if `megadna evaluate`
     wrote any.
Out: Runs, their evaluations grouped by what may be compared, figures and sentences; train/report_page.py is the page.
A run may still be running, and be long: metrics.jsonl is read line by line (train/metrics.py); unreadable lines are
counted.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megadna.arguments import read_yaml
from megadna.errors import UserError, require
from megadna.log import get_logger
from megadna.reading import read_json
from megadna.train import plots
from megadna.train.metrics import BEST_METRICS, Curve, MetricLines
from megadna.train.plots import Bar, bits_text
from megadna.train.run_folder import GUESSING, SCORES, flat_keys, is_score, read_evaluation, verdict

log = get_logger(__name__)

TRAINING = ("loss", "lr", "tokens_per_second")
"""Keys of a training line that are drawn."""
BITS, EXTRA = "valid_bits_per_base", "valid_extra/"
MOST_SPECIES = 40
SPECIES = "Last validation, by species"
CURVES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    BITS: (
        "Validation: masked bits per base",
        "bits per base (less is better)",
        {"digits": "0.0000"},
        "All chosen bases hidden, p renormalised over A, C, G, T; the band is one standard error over chunks. Black "
        "and grey: 2 bits, a uniform guess, and all baselines once <code>megadna evaluate --split valid</code> has "
        "run, perhaps on more chunks than the curve.",
    ),
    EXTRA: (
        "Further datasets: masked bits per base",
        "bits per base (less is better)",
        {"digits": "0.0000"},
        "The datasets of validation.extra, measured in the same way; a rise means forgetting.",
    ),
    "loss": (
        "Training loss",
        "cross-entropy of chosen tokens (nats)",
        {"digits": "0.0000", "noisy": True},
        "Cross-entropy over the whole vocabulary under the training mask, in which some chosen tokens are kept or "
        "replaced: not comparable with bits per base. Pale: every logged step; line: running median. The initial fall "
        "and spikes may lie outside the figure: drag it with the pan button.",
    ),
    "lr": (
        "Learning rate",
        "learning rate",
        {"digits": "%.2e", "from_zero": True},
        "The learning rate of every logged step.",
    ),
    "tokens_per_second": (
        "Throughput",
        "tokens per second",
        {"digits": "0,0", "noisy": True, "from_zero": True},
        "Sum over all ranks at every logged step; the line is the running median.",
    ),
}
"""(title, unit, options of plots.curves, caption) by the key of metrics.jsonl, in the order of the page."""


@dataclass
class Run:
    """Contents of a run folder; metrics are added line by line."""

    name: str
    number: int
    """Index among the runs of the report, which selects its colour."""
    config: dict[str, Any]
    """config.yaml as flat keys: `train.lr`."""
    config_text: str
    curves: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
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
    training: dict[str, Any] = field(default_factory=dict)
    """The last training line."""
    best: tuple[str, str, float] | None = None
    """Folder of the best checkpoint that is there, the metric that decides, and its value."""

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        if "loss" in line:
            self.training = line
            for key in TRAINING:
                if key in line:
                    self.curves[key].add(line["step"], line[key])
        elif any(key.startswith("valid_") for key in line):
            self._add_validation(line)

    def _add_validation(self, line: dict[str, Any]) -> None:
        self.first, self.last = self.first or line, line
        for key in [key for key in line if key == BITS or _is_extra(key)]:
            self.curves[key].add(line["step"], line[key])
            if f"{key}_se" in line or f"{key}_se" in self.curves:
                self.curves[f"{key}_se"].add(line["step"], line.get(f"{key}_se"))
        for key, value in line.items():
            if value is not None and math.isfinite(value) and value < self.lowest.get(key, (math.inf,))[0]:
                self.lowest[key] = value, line["step"]

    @property
    def last_step(self) -> int:
        """The last step that is logged."""
        return int(max(line.get("step", 0) for line in (self.training, self.last)))

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
        best=_best_checkpoint(folder),
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


def evaluation_groups(runs: Sequence[Run]) -> dict[str, list[Evaluated]]:
    """(run, evaluation) pairs by a title that identifies their hidden bases, the test split first.

    Only scores on the same hidden bases may share a table. Their baselines are equal to the last digit, because other
    bases or masks change them.
    """
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        for name, evaluation in run.evaluations.items():
            keys = ("protocol", "hides", "dataset_id", "samples", "hidden_bases")
            others = {key: [score[part] for part in SCORES] for key, score in evaluation["baselines"].items()}
            identity = json.dumps([name, *(evaluation.get(key) for key in keys), others], sort_keys=True)
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


def draw_figures(runs: Sequence[Run], groups: dict[str, list[Evaluated]]) -> dict[str, Any]:
    """Every figure that the runs have values for, by the key of CURVES or the title of its evaluation."""
    drawn: dict[str, Any] = {
        name: plots.bars(f"Bits per base, {name.split(':')[0]}", _bars(group)) for name, group in groups.items()
    }
    if not groups and (species := _species_of_validation(runs)):
        drawn[SPECIES] = plots.bars(SPECIES, species)
    valid = [group[0][1]["baselines"] for name, group in groups.items() if name.startswith("valid:")]
    level = [Bar("uniform", GUESSING)]
    if len(valid) == 1:
        level = [_bar(baseline_name(key, score), score, None) for key, score in valid[0].items()]
    beside = None
    for key, (title, unit, more, _) in CURVES.items():
        keys = sorted({one for run in runs for one in run.curves if one == key or (key == EXTRA and _is_extra(one))})
        series = [
            one
            for run in runs
            for style, name in enumerate(keys)
            for one in run.series(name, label=f"{run.name}: {_name(name)}" if key == EXTRA else "", style=style)
        ]
        if series:
            lines = level if key == BITS else []
            drawn[key] = beside = plots.curves(title, unit, series, levels=lines, beside=beside, **more)
    return drawn


def _bars(group: list[Evaluated]) -> plots.Rows:
    """All hidden bases, then species from the lowest bits to the highest, with the runs' bars and the baselines."""
    models = [(run.name, run.number, result["model"], species_in(result)) for run, result in group]
    others = [
        (baseline_name(key, one), None, one, species_in(one))
        for key, one in group[0][1]["baselines"].items()
        if key != "uniform"
    ]
    lowest: dict[str, float] = {}
    for *_, species in models:
        for name, score in species.items():
            lowest[name] = min(score["bits_per_base"], lowest.get(name, math.inf))
    names, half = sorted(lowest, key=lambda name: lowest[name]), MOST_SPECIES // 2
    rows = {"all hidden bases": [_bar(name, score, run) for name, run, score, _ in (*models, *others)]}
    for what in names if len(names) <= MOST_SPECIES else names[:half] + names[-half:]:
        rows[what] = [_bar(name, all_[what], run) for name, run, _, all_ in (*models, *others) if what in all_]
    return rows


def _bar(name: str, score: dict[str, Any], run: int | None) -> Bar:
    return Bar(name, score["bits_per_base"], score.get("standard_error"), run)


def _species_of_validation(runs: Sequence[Run]) -> plots.Rows:
    rows: dict[str, list[Bar]] = {}
    for run in runs:
        for key, bits in run.last.items():
            if key.startswith(f"{BITS}/") and bits is not None and math.isfinite(bits):
                rows.setdefault(_name(key), []).append(Bar(run.name, bits, None, run.number))
    return rows


def summary(runs: Sequence[Run], groups: dict[str, list[Evaluated]]) -> list[str]:
    """What a reader needs first, in a few sentences: how good the best run is, whether it still learns."""
    if not groups:
        return [_last_validation(run) for run in runs]
    ranked = sorted(next(iter(groups.values())), key=lambda one: one[1]["model"]["bits_per_base"])
    best, result = ranked[0]
    bits, start = result["model"]["bits_per_base"], f"{best.name}{step_in(result)}"
    if len(ranked) > 1:
        start = f"Best of {len(ranked)} runs: {start}"
    better = [
        f"{other - bits:.4f} fewer than {baseline_name(key, score)}"
        for key, score in reversed(result["baselines"].items())
        if (other := score["bits_per_base"]) > bits and key != "uniform"
    ]
    score = bits_text(bits, result["model"].get("standard_error"))
    text = f"{start} needs {score} bits for a hidden base of {result['split']} ({GUESSING:g} is a guess)"
    said = [f"{text}, {_listed(better)}." if better else f"{text}."]
    if worse := verdict(result["model"], result["baselines"]):
        said.append(f"It is {worse}.")
    said += [f"{run.name} needs {one['model']['bits_per_base'] - bits:.4f} more." for run, one in ranked[1:4]]
    if left := [run.name for run in runs if all(run is not one for one, _ in ranked)]:
        said.append(f"Not measured on these bases: {_listed(left)}.")
    return [*said, f"{best.name} {trend(best)}."]


def trend(run: Run) -> str:
    """Whether a run still learns: its validation over the last quarter of its steps, beside one standard error."""
    curve = run.curves.get(BITS)
    steps, values = curve.points()[:2] if curve else (np.empty(0), np.empty(0))
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    early = values[steps <= 0.75 * steps[-1]] if len(steps) else values
    if not len(early):
        return "has too few validations to tell whether it still learns"
    error = run.last.get(f"{BITS}_se") or 0.0
    first, change = int(steps[len(early) - 1]), values[-1] - early[-1]
    span = f"from step {first:,} to {int(steps[-1]):,}"
    if values[-1] - values.min() > error:
        where, rise = int(steps[values.argmin()]), values[-1] - values.min()
        return f"has got worse since step {where:,}: validation rose by {rise:.4f} bits per base"
    if change < -error:
        return f"is still learning: validation fell by {-change:.4f} bits per base {span}"
    return f"has levelled off: validation changed by {change:+.4f} bits per base {span}, within one standard error"


def _last_validation(run: Run) -> str:
    """One sentence where no evaluation with baselines is there."""
    advice = "megadna evaluate sets baselines beside it"
    if (bits := run.last.get(BITS)) is None:
        return f"{run.name} has no validation yet; {advice}."
    score, side = bits_text(bits, run.last.get(f"{BITS}_se")), "below" if bits < GUESSING else "no better than"
    step = run.last["step"]
    text = f"{run.name}, step {step:,}: {score} bits per base on validation, {side} a guess ({GUESSING:g}); {advice}."
    return f"{text} It {trend(run)}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def baseline_name(key: str, numbers: dict[str, Any]) -> str:
    """Name of a baseline; that of Markov with the k that was chosen."""
    return f"Markov (k = {numbers['k']})" if "k" in numbers else key


def step_in(result: dict[str, Any]) -> str:
    """Step of the evaluated weights; a Hugging Face folder has none."""
    return f", step {result['step']:,}" if "step" in result else ""


def species_in(score: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores by species in an evaluation, or in the score of a baseline; empty if there are none."""
    groups = score.get("groups")
    return {name: one for name, one in groups.items() if is_score(one)} if isinstance(groups, dict) else {}


def _name(key: str) -> str:
    """Species or dataset in a key of metrics.jsonl."""
    return key.split("/", 1)[1].removesuffix("_bits_per_base")


def _is_extra(key: str) -> bool:
    """Whether a key of metrics.jsonl is the bits per base of a dataset of validation.extra."""
    return key.startswith(EXTRA) and key.endswith("_bits_per_base")


def _best_checkpoint(folder: Path) -> tuple[str, str, float] | None:
    """(folder, metric, value) of the whole checkpoint with the lowest metric, as saving.py chooses it; damaged ones
    count as none."""
    states: dict[str, dict[str, Any]] = {}
    for state in sorted(folder.glob("checkpoints/step-*/state.json")):
        with suppress(UserError):
            if (state.parent / "complete").exists():
                states[state.parent.name] = read_json(state)
    for metric in BEST_METRICS:
        known = [(state[metric], name) for name, state in states.items() if type(state.get(metric)) in (int, float)]
        if known:
            value, name = min(known)
            return name, metric, value
    return None


def _read_settings(file: Path) -> tuple[dict[str, Any], str]:
    """Content of config.yaml, and its text."""
    remedy = "take the one of a checkpoint (checkpoints/step-*/config.yaml)"
    try:
        settings = read_yaml(file)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    require(isinstance(settings, dict), f"{file}: not a mapping of keys; {remedy}")
    return settings, file.read_text(encoding="utf-8")
