"""Which charts a report has: of the training, of the validations, and beside references."""

import math
import re
from collections.abc import Sequence

from minigpt4.tools.report.charts import Chart, Line
from minigpt4.tools.report.normal import reference_charts
from minigpt4.tools.report.runs import Run, Series

# Figure of the log → title and what one sees; the others have no chart.
_TRAINING = {
    "loss": ("Loss", "Mean over the steps since the line before."),
    "lr": ("Learning rate", "As the schedule set it."),
    "grad_norm": ("Gradient norm", "Before clipping; lasting spikes ask for a lower rate."),
    "samples_per_second": ("Samples per second", "Of all processes together."),
    "data_wait": ("Waiting for data", "Share of the time; near 0 is good."),
    "memory_gb": ("Memory", "GB, the highest so far in the main process."),
}
_SHUFFLED = "shuffled_"
_COUNTS = ("samples", "unreadable")
_VALIDATION = {
    "loss": "Mean over the tokens to be learnt.",
    "token_accuracy": "Share of the tokens that the model, given those before, would say itself.",
    "perplexity": "e to the power of the loss.",
}


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each figure that any of the runs has logged, all runs in it."""
    charts = []
    for figure, (title, note) in _TRAINING.items():
        lines = [
            _line(run.name, run.curves[figure], colour)
            for colour, run in enumerate(runs)
            if figure in run.curves
        ]
        lines = [line for line in lines if line.points or line.lost]
        for line in lines:
            line.smoothed = figure != "lr"
        if lines:
            lost = sum(len(line.lost) for line in lines)
            faint = " Faint: each line of the log; strong: smoothed." if figure == "loss" else ""
            told = f" {_lost(lost)}" if lost else ""
            charts.append(
                Chart(figure, title, lines, f"{note}{faint}{told}", wide=figure == "loss")
            )
    return charts


def validation_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each validation figure, a line for each run and data set, dashed with control."""
    names = {name for run in runs for figures in run.valid.values() for name in figures}
    names = {name.removeprefix(_SHUFFLED) for name in names} - {*_COUNTS, *_VALIDATION}
    charts = []
    for figure in [*_VALIDATION, *sorted(names)]:
        lines: list[Line] = []
        for colour, (run, data_set) in enumerate(validated(runs)):
            figures = run.valid[data_set]
            label = validated_name(run, data_set, runs)
            if figure in figures:
                line = _line(label, figures[figure], colour)
                line.best = _best(run, data_set, figure)
                lines.append(line)
            if _SHUFFLED + figure in figures:
                control = _line(
                    f"{label}, another sample's picture", figures[_SHUFFLED + figure], colour
                )
                control.dashed = True
                lines.append(control)
        lines = [line for line in lines if line.points or line.lost]
        if lines:
            what = _VALIDATION.get(figure, "Mean over the generated texts.")
            note = f"{what} {_validation_note(lines)}"
            stem = f"valid_{re.sub(r'[^A-Za-z0-9_.-]', '_', figure)}"
            charts.append(Chart(stem, _titled(figure), lines, note))
    return charts


def validated(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Each run with each of its data sets, in the order of their colours."""
    return [(run, data_set) for run in runs for data_set in run.valid]


def validated_name(run: Run, data_set: str, runs: Sequence[Run]) -> str:
    """What the legend calls a data set of a run."""
    return data_set if sum(bool(other.valid) for other in runs) == 1 else f"{run.name}: {data_set}"


def normal_charts(runs: Sequence[Run]) -> list[Chart]:
    """The runs beside what is known of their like."""
    return [
        chart
        for colour, run in enumerate(runs)
        for chart in reference_charts(run, colour, f"normal_{colour + 1}")
    ]


def _line(name: str, series: Series, colour: int) -> Line:
    pairs = zip(series.steps, series.values, strict=True)
    lost = [step for step, value in pairs if math.isnan(value)]
    return Line(name, [(float(step), value) for step, value in series.finite], colour, lost=lost)


def _best(run: Run, data_set: str, figure: str) -> tuple[float, float] | None:
    """The point of a curve that ``best.json`` chose."""
    if run.best is None or run.best.metric not in (figure, f"{data_set}/{figure}"):
        return None
    at = run.step_of(vars(run.best))
    values = dict(run.valid[data_set][figure].finite)
    return (float(at), values[at]) if at is not None and at in values else None


def _validation_note(lines: Sequence[Line]) -> str:
    parts = []
    if any(line.best for line in lines):
        parts.append("Ringed: the best, which is checkpoint_best.pth.")
    if any(line.dashed for line in lines):
        parts.append("Dashed: with another sample's picture, a control.")
    lost = sum(len(line.lost) for line in lines)
    return " ".join(parts + ([_lost(lost)] if lost else []))


def _lost(number: int) -> str:
    places = "1 line of the log has" if number == 1 else f"{number:,} lines of the log have"
    return f"Crosses: {places} no finite figure."


def _titled(figure: str) -> str:
    return figure.replace("_", " ").capitalize()
