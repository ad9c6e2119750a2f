"""The figures of a report, each as PNG bytes; pure functions of the series they are given.

The training loss and masked bits per base are different quantities and never share axes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

# Okabe & Ito's palette, distinct under every common colour blindness; without yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
GREY = "#8a8f98"
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 160,
    "grid.color": "#e4e6ea",
    "legend.fontsize": 9,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 7.2, 4.2  # inches


@dataclass(frozen=True)
class Series:
    """One run's values over optimizer steps."""

    name: str
    run: int
    """Number of the run, which selects its colour in every figure."""
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    errors: NDArray[np.float64] | None = None
    """Standard errors of the values."""
    style: int = 0
    """Number of the line style, if a run has several series."""
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """If a point summarises several steps: their minima and maxima; `values` are then the means."""


@dataclass(frozen=True)
class Bar:
    """Masked bits per base of one model on one set of hidden bases."""

    name: str
    bits: float
    error: float | None
    run: int | None
    """Number of the run, which selects its colour in every figure; None for a baseline."""


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running median over about 1/40 of the steps, smoothed by a running mean; NaN where no value is finite.

    Unlike an exponential mean it neither lags after the initial fall nor spreads a spike.
    """
    half = len(values) // 80
    for average in (np.nanmedian, np.nanmean):
        padded = np.pad(np.where(np.isfinite(values), values, np.nan), half, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
        known = np.isfinite(windows).any(axis=1)
        values = np.full(len(values), np.nan)
        values[known] = average(windows[known], axis=1)
    return values


def curves(
    title: str,
    ylabel: str,
    series: Sequence[Series],
    *,
    noisy: bool = False,
    from_zero: bool = False,
    levels: Mapping[str, float] | None = None,
) -> bytes:
    """Values over steps with a band of one standard error, and named horizontal lines.

    `noisy`: every value pale, their running median as the line; the initial fall and spikes may be cut off.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.subplots()
        axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
        for one in series:
            colour, line = COLOURS[one.run % 7], LINE_STYLES[(one.run // 7 + one.style) % 4]
            marker = "o" if len(one.steps) < 40 else ""
            if one.band is not None:
                axes.fill_between(one.steps, *one.band, color=colour, alpha=0.25, linewidth=0.8)
            elif noisy:
                axes.plot(one.steps, one.values, color=colour, alpha=0.25, linewidth=0.8)
            values = smoothed(one.values) if noisy else one.values
            axes.plot(one.steps, values, line, color=colour, marker=marker, markersize=3.5, label=one.name)
            if one.errors is not None:
                low, high = one.values - one.errors, one.values + one.errors
                axes.fill_between(one.steps, low, high, color=colour, alpha=0.18, linewidth=0)
        for number, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, color=GREY, linestyle=LINE_STYLES[1 + number % 3], label=f"{name} {level:.3f}")
        last = max(float(one.steps[-1]) for one in series)
        bulk = [smoothed(one.values)[one.steps > last / 20] for one in series] if noisy and not from_zero else []
        if len(known := np.concatenate([*bulk, []])) and np.isfinite(known).any():
            low, high = np.nanmin(known), np.nanmax(known)
            room = 0.2 * (high - low) or 0.05 * abs(high) or 1.0
            axes.set_ylim(low - room, high + room)
        axes.set_xlim(0, 1.02 * last)
        axes.set_ylim(bottom=0 if from_zero else None)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        if axes.get_ylim()[1] >= 1000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        names = axes.get_legend_handles_labels()[1]
        if len(names) > 1:
            columns = max(1, min(4, 90 // (8 + max(map(len, names)))))  # 90 characters fit below
            figure.set_figheight(HEIGHT + 0.2 * -(-len(names) // columns))
            figure.legend(loc="outside lower left", ncols=columns)
        return _png(figure)


def bars(title: str, groups: Mapping[str, Sequence[Bar]]) -> bytes:
    """Bits below uniform (2) as bars from zero, with one standard error; a panel for each set of hidden bases."""
    rows = [len(group) for group in groups.values()]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x", "axes.titlesize": 10}):
        figure = Figure(figsize=(WIDTH, 1.2 + sum(0.4 * n + 0.4 for n in rows)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
        panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=[n + 0.8 for n in rows])
        for axes, (name, group) in zip(panels[:, 0], groups.items(), strict=True):
            gains = [2.0 - bar.bits for bar in group]
            colours = [GREY if bar.run is None else COLOURS[bar.run % 7] for bar in group]
            rows_of_group = range(len(group))
            drawn = axes.barh(rows_of_group, gains, color=colours, xerr=[bar.error or 0 for bar in group])
            axes.set_yticks(rows_of_group, [bar.name for bar in group])
            numbers = [f"{bar.bits:.4f}" + (f" ± {bar.error:.4f}" if bar.error else "") for bar in group]
            axes.bar_label(drawn, numbers, padding=6, fontsize=9)
            axes.set_title(name)
            axes.axvline(0, color=GREY, linewidth=0.8)
            axes.invert_yaxis()
        low, high = panels[0, 0].get_xlim()
        room = 0.35 * (high - low)  # for the numbers next to the bars
        panels[0, 0].set_xlim(low - room if low < 0 else low, high + room)
        panels[-1, 0].set_xlabel("bits per base below uniform: 2 - bits (higher is better)")
        return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
