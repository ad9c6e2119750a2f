"""The figures of a report, drawn by bokeh in the browser; functions of their series. Colours of all pictures.

The training loss and masked bits per base are different quantities and never share axes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe & Ito's palette, distinct under every common colour blindness; without yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
GREY = "#8a8f98"
FONT = "system-ui, sans-serif"
THEME = {
    "Axis": {
        "axis_label_text_font": FONT,
        "axis_label_text_font_style": "normal",
        "axis_line_color": GREY,
        "major_label_text_font": FONT,
        "major_tick_line_color": GREY,
        "minor_tick_line_color": None,
    },
    "Legend": {"label_text_font": FONT},
    "Plot": {"outline_line_color": None},
    "Text": {"text_font": {"value": FONT}},
    "Title": {"text_font": FONT},
}
"""Of bokeh, for reports."""
MARKS = {"markov": ("#000000", "dashed"), "composition": ("#5d636b", "dotted"), "uniform": (GREY, "dashdot")}
"""Colour and line of a baseline, by the first word of its name."""
LONGEST = 36
"""Characters of a name in a legend or on an axis; what is under the pointer has the whole name."""


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
    error: float | None = None
    run: int | None = None
    """Number of the run, which selects its colour in every figure; None for a baseline."""


Rows = Mapping[str, Sequence[Bar]]
"""Bars of runs and baselines by the name of the bases that all are measured on."""


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
    unit: str,
    series: Sequence[Series],
    *,
    digits: str,
    noisy: bool = False,
    from_zero: bool = False,
    levels: Sequence[Bar] = (),
    beside: Any = None,
) -> Any:
    """Values over steps with a band of one standard error, and baselines as horizontal lines: a figure of bokeh.

    `digits`: how a value is written, as numeral.js or, from %, as printf has it. `noisy`: every value pale, the running
    median as the line; the initial fall and spikes may lie outside. `beside`: a figure that shares the steps.
    """
    from bokeh.models import ColumnDataSource

    figure = _figure(title, "optimizer step", unit, **({"x_range": beside.x_range} if beside else {}))
    figure.xaxis.formatter.use_scientific = False
    items, lines = [], []
    for one in series:
        dash = LINE_STYLES[(one.run // len(COLOURS) + one.style) % len(LINE_STYLES)]
        source, look = ColumnDataSource(_columns(one, noisy=noisy)), {"color": COLOURS[one.run % len(COLOURS)]}
        drawn = [figure.line("step", "line", source=source, line_width=2, line_dash=dash, name=one.name, **look)]
        lines += drawn[:1]
        if len(one.steps) < 60:
            drawn.append(figure.scatter("step", "line", source=source, size=5, **look))
        if "low" in source.data:
            drawn.append(figure.varea("step", "low", "high", source=source, fill_alpha=0.2, level="underlay", **look))
        elif noisy:
            drawn.append(figure.line("step", "value", source=source, line_alpha=0.3, level="underlay", **look))
        items.append((_plain(one.name), drawn))
    last = max(float(one.steps[-1]) for one in series)
    for level in levels:
        line = figure.line([0.0, last], [level.bits] * 2, line_width=1.5, **_mark(level.name))
        items.append((f"{level.name} {level.bits:.3f}", [line]))
    shown = f"$name, step @step{{0,0}}: @value{{{digits}}}"
    shown += f" ± @error{{{digits}}}" if any(one.errors is not None for one in series) else ""
    shown += f" (median @line{{{digits}}})" if noisy else ""
    printf = dict.fromkeys(("@value", "@line"), "printf" if digits.startswith("%") else "numeral")
    _hover(figure, lines, shown, formatters=printf, mode="vline", line_policy="nearest")
    _legend(figure, items)
    if from_zero:
        figure.y_range.start = 0
    elif noisy:
        _fit(figure.y_range, [smoothed(one.values)[one.steps > last / 20] for one in series])
    return figure


def bars(title: str, rows: Rows) -> Any:
    """Bits below uniform (2) of runs as bars with one standard error, baselines as marks: a figure of bokeh."""
    from bokeh.models import ColumnDataSource, FixedTicker

    figure = _figure(title, "2 - bits per base (more is better)", "")
    found = [bar for bars in rows.values() for bar in bars]
    runs = sorted({(bar.run, bar.name) for bar in found if bar.run is not None})
    width = 0.8 / len(runs)
    items, hovered = [], []
    for number, (run, name) in enumerate(runs):
        source = ColumnDataSource(_bar_columns(rows, name, run, (number - (len(runs) - 1) / 2) * width))
        look = {"color": COLOURS[run % len(COLOURS)], "fill_alpha": 0.8}
        drawn = [
            figure.hbar("y", right="gain", height=0.9 * width, source=source, name=name, **look),
            figure.segment("low", "y", "high", "y", source=source, color="#22262b", line_width=1.5),
            figure.text("end", "y", "number", source=source, text_baseline="middle", x_offset=8, text_font_size="11px"),
        ]
        hovered += drawn[:1]
        items.append((_plain(name), drawn))
    for name in dict.fromkeys(bar.name for bar in found if bar.run is None):
        source = ColumnDataSource(_bar_columns(rows, name, None, 0.0))
        hovered.append(figure.segment("gain", "top", "gain", "bottom", source=source, line_width=2.5, **_mark(name)))
        items.append((_plain(name), hovered[-1:]))
    _hover(figure, hovered, "$name, @what: @text bits per base (2 - @gain{0.0000})")
    figure.height = 80 + len(rows) * max(28, 20 * len(runs))
    _legend(figure, items, width=34)
    figure.yaxis.ticker = FixedTicker(ticks=list(range(len(rows))))
    figure.yaxis.major_label_overrides = {row: _plain(what) for row, what in enumerate(rows)}
    figure.y_range.start, figure.y_range.end = len(rows) - 0.4, -0.6
    gains = [2.0 - bar.bits for bar in found]
    low, high = min(0.0, *gains), max(0.0, *gains)
    room = high - low or 0.01
    figure.x_range.start, figure.x_range.end = low - 0.05 * room * (low < 0), high + 0.4 * room  # for the numbers
    figure.ygrid.visible, figure.xaxis.ticker.desired_num_ticks = False, 4
    return figure


def embedded(figures: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """bokeh's own script with that of the figures, and the element of each figure by its name."""
    from bokeh.embed import components
    from bokeh.resources import Resources
    from bokeh.themes import Theme

    script, elements = components(dict(figures), theme=Theme(json={"attrs": THEME}))
    return Resources(mode="inline", components=["bokeh"], log_level="warn").render() + script, elements


def _figure(title: str, xlabel: str, ylabel: str, **more: Any) -> Any:
    from bokeh.plotting import figure

    tools = {"tools": "box_zoom,pan,wheel_zoom,reset,save", "active_drag": "box_zoom", "active_scroll": None}
    labels = {"title": title, "x_axis_label": xlabel, "y_axis_label": ylabel}
    made = figure(sizing_mode="stretch_width", height=380, **labels, **tools, **more)
    made.toolbar.logo = None
    made.toolbar.autohide = True
    return made


def _columns(one: Series, *, noisy: bool) -> dict[str, NDArray[np.float64]]:
    columns = {"step": one.steps, "value": one.values, "line": smoothed(one.values) if noisy else one.values}
    if one.errors is not None:
        columns["error"] = one.errors
    if one.band is not None:
        columns["low"], columns["high"] = one.band
    elif one.errors is not None:
        columns["low"], columns["high"] = one.values - one.errors, one.values + one.errors
    return columns


def _bar_columns(rows: Rows, name: str, run: int | None, offset: float) -> dict[str, Any]:
    """Columns of the bars of a run or the marks of a baseline, which lie `offset` below the middle of their rows."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for row, (what, bars) in enumerate(rows.items()):
        end = max(0.0, *(2.0 - bar.bits + (bar.error or 0.0) for bar in bars))
        for bar in (bar for bar in bars if (bar.name, bar.run) == (name, run)):
            gain, error = 2.0 - bar.bits, bar.error or 0.0
            places = {"y": row + offset, "top": row - 0.45, "bottom": row + 0.45, "end": end}
            values = {"gain": gain, "low": gain - error, "high": gain + error}
            texts = {"what": what, "number": bits_text(bar.bits, None), "text": bits_text(bar.bits, bar.error)}
            for key, value in (places | values | texts).items():
                columns[key].append(value)
    return columns


def bits_text(bits: float, error: float | None) -> str:
    """Bits per base with their standard error."""
    return f"{bits:.4f}" + (f" ± {error:.4f}" if error else "")


def _mark(name: str) -> dict[str, Any]:
    colour, dash = MARKS.get(name.split()[0].lower(), (GREY, "dotted"))
    return {"color": colour, "line_dash": dash, "name": name}


def _hover(figure: Any, renderers: list[Any], shown: str, **more: Any) -> None:
    """Show one line of text under the pointer."""
    from bokeh.models import HoverTool

    figure.add_tools(HoverTool(renderers=renderers, tooltips=[("", shown)], **more))


def _legend(figure: Any, items: list[tuple[str, list[Any]]], *, width: int = 52) -> None:
    """A legend of `width` characters below the figure, whose entries hide what they name; none for a single entry."""
    from bokeh.core.properties import value
    from bokeh.models import Legend, LegendItem

    if len(items) > 1:
        columns = max(1, min(len(items), width // (max(len(label) for label, _ in items) + 5)))  # fits a narrow page
        entries = [LegendItem(label=value(label), renderers=drawn) for label, drawn in items]
        look = {"border_line_color": None, "click_policy": "hide", "location": "top_left", "spacing": 6}
        figure.add_layout(Legend(items=entries, ncols=columns, **look), "below")
        figure.height += 30 * -(-len(items) // columns)


def _fit(y_range: Any, lines: list[NDArray[np.float64]]) -> None:
    """Show the values of the lines, with room above and below; all that is drawn if none is finite."""
    known = np.concatenate([*lines, []])
    if np.isfinite(known).any():
        low, high = float(np.nanmin(known)), float(np.nanmax(known))
        room = 0.2 * (high - low) or 0.05 * abs(high) or 1.0
        y_range.start, y_range.end = low - room, high + room


def _plain(text: str) -> str:
    """Text for a figure: of bounded length, and no TeX, for which bokeh would load a library from the network."""
    text = text if len(text) <= LONGEST else "\u2026" + text[1 - LONGEST :]
    return re.sub(r"(?<=[$\\])(?=[$(\[])", "\u200b", text)
