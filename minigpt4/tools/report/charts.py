"""Charts, drawn as SVG whose colours are the page's own, and as PNG files next to the page."""

import html
import io
import logging
import math
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import LogLocator, MaxNLocator

from minigpt4.tools.report.runs import Points, finite

# Colours by their role on paper; style.css has them again, for light and dark.
PAPER = {
    "ink": "#1d1c1a", "muted": "#6f6b64", "grid": "#e8e5df", "surface": "#ffffff",
    "bad": "#c8322f",
    "line-1": "#2a6fc9", "line-2": "#c2571a", "line-3": "#0f8f6b", "line-4": "#7a4fc0",
    "line-5": "#b8860b", "line-6": "#c23a7a", "line-7": "#3f7f1f", "line-8": "#56708a",
}  # fmt: skip
LINES = 8
_FONT = "DejaVu Sans"  # comes with matplotlib, so that it is the same everywhere
_DOTS_PER_INCH = 160
_MAX_CROSSES = 80
_FEW = 30  # points that need no smoothing
_SPANS = 25  # a smoothed curve averages over 1/25 of the run
_WIDE, _NARROW = (10.0, 3.5), (4.7, 2.65)  # inches; letters scale with the page's width
# Unique colours in the SVG, which are then replaced by the page's variables.
_MARKED = {role: f"#0a0b{number:02x}" for number, role in enumerate(PAPER)}
_SETTINGS: dict[str, Any] = {
    "font.family": [_FONT],
    "font.size": 9,
    "text.parse_math": False,  # a name with dollars is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "path.simplify_threshold": 0.5,  # a long log makes a small page
    "axes.formatter.useoffset": False,
}
_DRAWING = threading.Lock()  # matplotlib's settings are global


@dataclass
class Line:
    """One curve, by rising step."""

    name: str
    readings: Points
    colour: int = 0  # after the last colour the first one is used again, dashed
    dashed: bool = False  # a control
    smoothed: bool = True  # drawn faint, and strong as a moving average
    best: tuple[float, float] | None = None  # point to mark

    @cached_property
    def points(self) -> Points:
        return finite(self.readings)

    @cached_property
    def lost(self) -> list[float]:
        """Steps at which the log has no finite value."""
        return [step for step, value in self.readings if math.isnan(value)]

    @cached_property
    def course(self) -> Points:
        """Points of the strong line."""
        return smooth(self.points) if self.smoothed and len(self.points) > _FEW else self.points

    @property
    def role(self) -> str:
        return f"line-{self.colour % LINES + 1}"

    @property
    def style(self) -> str:
        if self.dashed:
            return "dashed"
        return "solid" if self.colour < LINES else "dashdot"


@dataclass
class Chart:
    """A chart and its texts."""

    stem: str  # of the PNG's file name
    title: str
    lines: list[Line]
    note: str = ""
    wide: bool = False  # as wide as the page
    svg: str = ""  # filled in by draw()

    @property
    def alt(self) -> str:
        """Describe the chart for those who cannot see it."""
        ends = [(line.name, line.points[0], line.points[-1]) for line in self.lines if line.points]
        told = [
            f"{name}: {y0:.4g} at step {x0:.0f}, {y1:.4g} at step {x1:.0f}"
            for name, (x0, y0), (x1, y1) in ends
        ]
        return f"Chart of {self.title}. {'; '.join(told)}"


def smooth(points: Points) -> Points:
    """Return the exponential moving average at each point, unbiased from the first one on."""
    keep = 1 - 2 / (max(1.0, len(points) / _SPANS) + 1)
    total, weight = 0.0, 0.0
    smoothed = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def draw(charts: Iterable[Chart], folder: Path) -> None:
    """Fill in each chart's ``svg`` and write ``<folder>/<stem>.png``.

    Raises:
        OSError: when the folder cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with _DRAWING, matplotlib.rc_context(_SETTINGS):
        for chart in charts:
            chart.svg = _draw_svg(chart, _WIDE if chart.wide else _NARROW)
            if chart.wide:  # unreadable on a phone
                narrow = _draw_svg(chart, _NARROW)
                chart.svg = f'<div class="wide">{chart.svg}</div><div class="narrow">{narrow}</div>'
            _draw_png(chart, folder / f"{chart.stem}.png")


def _draw_svg(chart: Chart, size: tuple[float, float]) -> str:
    """Return an SVG in the page's colours and fonts."""
    figure = Figure(figsize=size, layout="constrained")
    _draw_axes(figure, chart, _MARKED)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # every chart has the same names
    svg = re.sub(r' (xmlns|xmlns:xlink|version)="[^"]*"', "", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = f'<svg role="img" aria-label="{html.escape(chart.alt, quote=True)}" {view[0]}>'
    svg = head + svg[svg.index(">") + 1 :]
    for role, colour in _MARKED.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg


def _draw_png(chart: Chart, path: Path) -> None:
    figure = Figure(figsize=(10, 4.4) if chart.wide else (7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(PAPER["surface"])
    axes = _draw_axes(figure, chart, PAPER)
    axes.set_title(_drawable(chart.title), loc="left", color=PAPER["ink"], fontsize=11, pad=12)
    if len(chart.lines) > 1:
        for line in chart.lines:
            label = f" {_drawable(line.name)}"  # matplotlib hides a label that begins with "_"
            axes.plot([], [], color=PAPER[line.role], linestyle=line.style, lw=2, label=label)
        style = {"ncols": 2, "frameon": False, "labelcolor": PAPER["ink"], "fontsize": 8}
        figure.legend(loc="outside lower left", **style)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _draw_axes(figure: Figure, chart: Chart, colours: dict[str, str]) -> Any:
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for line in chart.lines:
        _draw_line(axes, line, colours)
    _scale(axes, chart)
    lost = sorted({step for line in chart.lines for step in line.lost})
    axes.plot(  # at the bottom, whatever the scale
        *_columns([(step, 0.03) for step in lost[:: len(lost) // _MAX_CROSSES + 1]]),
        "x", color=colours["bad"], ms=6, mew=1.6, transform=axes.get_xaxis_transform(), zorder=6,
    )  # fmt: skip
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])
    axes.grid(axis="y", color=colours["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["muted"], length=0, labelsize=8.5, pad=5, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(_step_text)
    axes.set_xlabel("step", color=colours["muted"], loc="right", labelpad=2, fontsize=8.5)
    return axes


def _draw_line(axes: Any, line: Line, colours: dict[str, str]) -> None:
    colour = colours[line.role]
    if line.course is not line.points:
        axes.plot(*_columns(line.points), color=colour, lw=0.9, alpha=0.28, zorder=2)
    axes.plot(
        *_columns(line.course), color=colour, lw=1.9, linestyle=line.style, zorder=4, ms=3.6,
        marker="o" if len(line.course) <= 12 else None, solid_capstyle="round",
    )  # fmt: skip
    if line.best is not None:
        ring = {"ms": 10, "mfc": "none", "mec": colours["ink"], "mew": 1.4}
        axes.plot(*_columns([line.best]), "o", zorder=7, clip_on=False, **ring)


def _scale(axes: Any, chart: Chart) -> None:
    """Choose a logarithmic axis where a linear one would flatten most of a curve."""
    drawn = [value for line in chart.lines for _, value in line.course]
    every = [value for line in chart.lines for _, value in line.points]
    axes.margins(x=0.015, y=0.08)
    if drawn and min(every) > 0 and max(drawn) > 40 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0), numticks=8))
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if drawn and max(every) > 3 * max(drawn) > 0:  # a few spikes must not flatten the curve
            axes.set_ylim(top=1.6 * max(drawn))
    axes.yaxis.set_major_formatter(_value_text)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _step_text(step: float, _place: object = None) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:,.0f}"


def _value_text(value: float, _place: object = None) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.2g}")
    return f"{value:,.6g}"


def _drawable(text: str) -> str:
    """Return the text with a box for each letter that the font lacks."""
    known = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    return "".join(letter if ord(letter) in known else "□" for letter in text)
