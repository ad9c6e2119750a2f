"""The figures of a report, each as PNG bytes; pure functions of the series they are given.

The training loss and masked bits per base are different quantities and never share axes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

# Okabe & Ito's palette, told apart under every common colour blindness; yellow left out, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
GREY, INK = "#8a8f98", "#22262b"
SIZE = (7.2, 4.2)  # inches
DPI = 160


@dataclass(frozen=True)
class Series:
    """One run's values over optimizer steps."""

    name: str
    run: int
    """Number of the run, which gives its colour in every figure."""
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    errors: NDArray[np.float64] | None = None
    """Standard errors of the values."""


@dataclass(frozen=True)
class Bar:
    """Masked bits per base of one model on one set of hidden bases."""

    name: str
    bits: float
    error: float | None
    run: int | None
    """Number of the run, which gives its colour in every figure; None for a baseline."""


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running median over about 1/40 of the steps, its stairs evened out by a running mean; NaN where none is finite.

    Unlike an exponential mean it neither lags behind the first fall nor carries a spike along.
    """
    half = len(values) // 80
    for average in (np.nanmedian, np.nanmean):
        padded = np.pad(np.where(np.isfinite(values), values, np.nan), half, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
        known = np.isfinite(windows).any(axis=1)
        values = np.full(len(values), np.nan)
        values[known] = average(windows[known], axis=1)
    return values


def loss_plot(series: Sequence[Series]) -> bytes:
    """Training loss of every step (pale) and its running median; the first fall and spikes may leave the frame."""
    figure, axes = _new_figure("Training loss", "cross-entropy of chosen tokens (nats)")
    for one in series:
        colour, style = _look(one.run)
        axes.plot(one.steps, one.values, color=colour, alpha=0.25, linewidth=0.8, marker=_marker(one))
        axes.plot(one.steps, smoothed(one.values), color=colour, linestyle=style, linewidth=1.8, label=one.name)
    _frame_the_bulk(axes, series)
    return _finish(figure, axes, series, legend=len(series) > 1)


def valid_bits_plot(series: Sequence[Series], baselines: Mapping[str, float]) -> bytes:
    """Masked bits per base on valid with a band of one standard error, and the level of each baseline on valid."""
    figure, axes = _new_figure("Validation: masked bits per base", "bits per hidden base (lower is better)")
    for one in series:
        colour, style = _look(one.run)
        axes.plot(
            one.steps, one.values, color=colour, linestyle=style, marker="o", markersize=3.5, label=one.name, zorder=3
        )
        if one.errors is not None:
            axes.fill_between(
                one.steps, one.values - one.errors, one.values + one.errors, color=colour, alpha=0.18, linewidth=0
            )
    for level in baselines.values():
        axes.axhline(level, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.margins(y=0.08)
    _label_levels(axes, baselines)
    return _finish(figure, axes, series, legend=len(series) > 1)


def learning_rate_plot(series: Sequence[Series]) -> bytes:
    """The schedule as it was run."""
    figure, axes = _new_figure("Learning rate", "learning rate")
    for one in series:
        colour, style = _look(one.run)
        axes.plot(
            one.steps, one.values, color=colour, linestyle=style, linewidth=1.8, marker=_marker(one), label=one.name
        )
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    return _finish(figure, axes, series, legend=len(series) > 1)


def throughput_plot(series: Sequence[Series]) -> bytes:
    """Tokens per second of every step, with the median."""
    figure, axes = _new_figure("Throughput", "tokens per second")
    for one in series:
        colour, style = _look(one.run)
        median = float(np.nanmedian(one.values))
        axes.plot(one.steps, one.values, color=colour, alpha=0.45, linewidth=0.9, marker=_marker(one))
        label = f"{one.name}: median {median:,.0f} tokens/s"
        axes.plot(one.steps[[0, -1]], [median] * 2, color=colour, linestyle=style, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    return _finish(figure, axes, series, legend=True)  # it holds the medians, of a lone run too


def baselines_plot(groups: Mapping[str, Sequence[Bar]]) -> bytes:
    """Bits below uniform (2) as bars from zero, with one standard error; a panel for each set of hidden bases."""
    rows = [len(bars) for bars in groups.values()]
    figure = Figure(figsize=(SIZE[0], 0.9 + sum(0.45 * n + 0.55 for n in rows)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=[n + 0.8 for n in rows])[:, 0]
    for axes, (title, bars) in zip(panels, groups.items(), strict=True):
        _draw_bars(axes, bars)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high + 0.42 * (high - low))  # room for the numbers beside the bars
    panels[-1].set_xlabel("bits per base below uniform: 2 - bits (higher is better)")
    return _png(figure)


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    gains = np.array([2.0 - bar.bits for bar in bars])
    errors = np.array([bar.error or 0.0 for bar in bars])
    colours = [GREY if bar.run is None else _look(bar.run)[0] for bar in bars]
    rows = np.arange(len(bars))
    axes.barh(rows, gains, height=0.62, color=colours, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1.1})
    for row, (bar, gain, error) in enumerate(zip(bars, gains, errors, strict=True)):
        text = f"{bar.bits:.4f}" + (f" ± {error:.4f}" if error else "") + " bits"
        axes.annotate(
            text,
            (max(gain + error, 0.0), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(rows, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _quiet(axes, grid_axis="x")


def _new_figure(title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _quiet(axes, grid_axis="both")
    return figure, axes


def _quiet(axes: Axes, *, grid_axis: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=grid_axis, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _marker(one: Series) -> str:
    return "o" if len(one.steps) == 1 else ""  # a line of one point would not show


def _look(run: int) -> tuple[str, str]:
    return COLOURS[run % len(COLOURS)], LINE_STYLES[run // len(COLOURS) % len(LINE_STYLES)]


def _frame_the_bulk(axes: Axes, series: Sequence[Series]) -> None:
    """Keep the first fall and a few spikes from flattening the rest: frame what comes after the first 1/20 of steps."""
    start = max(float(one.steps[-1]) for one in series) / 20
    values = np.concatenate([one.values[one.steps > start] for one in series])
    medians = np.concatenate([smoothed(one.values)[one.steps > start] for one in series])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    low = min(float(np.quantile(values, 0.005)), float(np.nanmin(medians)))
    high = max(float(np.quantile(values, 0.99)), float(np.nanmax(medians)))
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _label_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Name each horizontal line in the right margin; names of close lines are pushed apart."""
    low, high = axes.get_ylim()
    gap, previous = 0.05 * (high - low), -np.inf
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        height = max(level, previous + gap)
        axes.text(
            1.01,
            height,
            f"{name} {level:.3f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=INK,
        )
        previous = height


def _finish(figure: Figure, axes: Axes, series: Sequence[Series], *, legend: bool) -> bytes:
    axes.set_xlim(0, 1.02 * max(float(one.steps[-1]) for one in series))
    if legend:
        labels = axes.get_legend_handles_labels()[1]
        columns = max(1, min(4, 90 // (8 + max(len(str(label)) for label in labels))))  # 90 characters fit below
        figure.set_figheight(SIZE[1] + 0.2 * -(-len(labels) // columns))
        figure.legend(frameon=False, fontsize=9, loc="outside lower left", ncols=columns)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
