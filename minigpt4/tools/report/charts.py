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
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

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
_MAX_POINTS = 600  # of one line; more cannot be told apart on a page
_FEW = 30  # points that need no smoothing
_SPANS = 25  # a smoothed curve looks back over one part in so many of the run
_WIDE, _NARROW = (10.0, 3.5), (4.7, 2.65)  # inches; letters grow and shrink with the page's width
# In the SVG each role is an own colour that nothing else has, put in as the page's variable after.
_MARKED = {role: f"#0a0b{number:02x}" for number, role in enumerate(PAPER)}
_SETTINGS: dict[str, Any] = {
    "font.family": [_FONT],
    "font.size": 9,
    "text.parse_math": False,  # a name with dollars is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "axes.formatter.useoffset": False,
}
_DRAWING = threading.Lock()  # matplotlib's settings are global


@dataclass
class Line:
    """One curve.

    Attributes:
        name: In the legend; of any script.
        readings: By rising step.
        colour: Number of the colour, from 0; after the last one they come again, dashed.
        dashed: Whether it is a control.
        smoothed: Whether it is drawn faint as it is and strong as it runs, given many points.
        best: A point to be marked.
    """

    name: str
    readings: Points
    colour: int = 0
    dashed: bool = False
    smoothed: bool = True
    best: tuple[float, float] | None = None

    @cached_property
    def points(self) -> Points:
        """The finite readings."""
        return finite(self.readings)

    @cached_property
    def lost(self) -> list[float]:
        """Steps at which the log has no finite value."""
        return [step for step, value in self.readings if math.isnan(value)]

    @cached_property
    def course(self) -> Points:
        """The points as they are drawn strong."""
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
    """A chart and its texts.

    Attributes:
        stem: Of the PNG's file name.
        title: Above it.
        lines: At least one with a reading.
        note: Below it.
        wide: Whether it takes the page's whole width.
        svg: For the page; filled in by :func:`draw`.
    """

    stem: str
    title: str
    lines: list[Line]
    note: str = ""
    wide: bool = False
    svg: str = ""

    @property
    def alt(self) -> str:
        """The chart in words, for those who cannot see it."""
        told = []
        for line in self.lines:
            if line.points:
                ends = [f"{y:.4g} at step {x:.0f}" for x, y in (line.points[0], line.points[-1])]
                told.append(f"{line.name}: {', '.join(ends)}")
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


def thin(points: Points) -> Points:
    """Return few points: the lowest and the highest of each stretch, the first and the last."""
    if len(points) <= _MAX_POINTS:
        return points
    stretches = _MAX_POINTS // 2 - 1
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        begin = stretch * len(points) // stretches
        members = range(begin, (stretch + 1) * len(points) // stretches)
        kept.add(min(members, key=lambda i: points[i][1]))
        kept.add(max(members, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def draw(charts: Iterable[Chart], folder: Path) -> None:
    """Fill in each chart's ``svg`` and write ``<folder>/<stem>.png``.

    Raises:
        OSError: when the folder cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with _DRAWING, matplotlib.rc_context(_SETTINGS):
        for chart in charts:
            chart.svg = _draw_svg(chart, _WIDE if chart.wide else _NARROW)
            if chart.wide:  # on a phone the same chart would have letters that nobody can read
                narrow = _draw_svg(chart, _NARROW)
                chart.svg = f'<div class="wide">{chart.svg}</div><div class="narrow">{narrow}</div>'
            _draw_png(chart, folder / f"{chart.stem}.png")


def _draw_svg(chart: Chart, size: tuple[float, float]) -> str:
    """Return an SVG as a part of the page, whose colours and fonts it takes."""
    figure = Figure(figsize=size, layout="constrained")
    _draw_axes(figure, chart, _MARKED)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
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
        handles = [
            Line2D([], [], color=PAPER[line.role], linestyle=line.style, lw=2)
            for line in chart.lines
        ]
        # A name with "_" first would be hidden; hence the space.
        names = [f" {_drawable(line.name)}" for line in chart.lines]
        figure.legend(
            handles, names, loc="outside lower left", ncols=2, frameon=False,
            labelcolor=PAPER["ink"], fontsize=8,
        )  # fmt: skip
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
    axes.xaxis.set_major_formatter(FuncFormatter(_step_text))
    axes.set_xlabel("step", color=colours["muted"], loc="right", labelpad=2, fontsize=8.5)
    return axes


def _draw_line(axes: Any, line: Line, colours: dict[str, str]) -> None:
    colour = colours[line.role]
    points = thin(line.course)
    if points != line.points:
        axes.plot(*_columns(thin(line.points)), color=colour, lw=0.9, alpha=0.28, zorder=2)
    few = len(points) <= 12
    axes.plot(
        *_columns(points), color=colour, lw=1.9, linestyle=line.style, zorder=4,
        marker="o" if few else None, ms=3.6, solid_capstyle="round", solid_joinstyle="round",
    )  # fmt: skip
    if line.best is not None:
        axes.plot(
            *_columns([line.best]), "o", ms=10, mfc="none", mec=colours["ink"], mew=1.4, zorder=7,
            clip_on=False,
        )  # fmt: skip


def _scale(axes: Any, chart: Chart) -> None:
    """A logarithmic axis where a linear one would press most of a curve onto its ground."""
    drawn = [value for line in chart.lines for _, value in line.course]
    every = [value for line in chart.lines for _, value in line.points]
    axes.margins(x=0.015, y=0.08)
    if drawn and min(every) > 0 and max(drawn) > 40 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if drawn and max(every) > 3 * max(drawn) > 0:  # a few spikes must not flatten the curve
            axes.set_ylim(top=1.6 * max(drawn))
    axes.yaxis.set_major_formatter(FuncFormatter(_value_text))


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _step_text(step: float, _place: object = None) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:,.0f}"


def _value_text(value: float, _place: object = None) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.2g}")
    return f"{value:,.6g}"


def _drawable(text: str) -> str:
    """A text with a box for each letter that the drawing's font does not have."""
    known = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    return "".join(letter if ord(letter) in known else "□" for letter in text)
