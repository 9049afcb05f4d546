"""Which charts a report has: of the training and of the validations."""

import re
from collections.abc import Sequence

from minigpt4.tools.report.charts import Chart, Line
from minigpt4.tools.report.runs import Run, finite

# Figure of the log → title and note; the others have no chart.
_TRAINING = {
    "loss": ("Loss", "Mean over the steps since the line before."),
    "lr": ("Learning rate", "As the schedule set it."),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "samples_per_second": ("Samples per second", "Of all processes together."),
    "data_wait": ("Waiting for data", "Share of the time."),
    "memory_gb": ("Memory", "GB, the highest so far in the main process."),
}
_SHUFFLED = "shuffled_"
_COUNTS = ("samples", "unreadable")
_VALIDATION = {
    "loss": "Mean over the target tokens.",
    "token_accuracy": "Share of the target tokens that are predicted correctly.",
    "perplexity": "e to the power of the loss.",
}


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """Make a chart for each figure that any of the runs has logged, with all runs in it."""
    charts = []
    for figure, (title, note) in _TRAINING.items():
        lines = [
            Line(run.name, run.curves[figure], colour, smoothed=figure != "lr")
            for colour, run in enumerate(runs)
            if figure in run.curves
        ]
        if lines:
            is_loss = figure == "loss"
            faint = " Faint: each line of the log; strong: smoothed." if is_loss else ""
            charts.append(Chart(figure, title, lines, f"{note}{faint}{_lost(lines)}", is_loss))
    return charts


def validation_charts(runs: Sequence[Run]) -> list[Chart]:
    """Make a chart for each validation figure, with a line for each run and data set.

    Dashed lines are controls.
    """
    names = {name for run in runs for figures in run.valid.values() for name in figures}
    names = {name.removeprefix(_SHUFFLED) for name in names} - {*_COUNTS, *_VALIDATION}
    charts = []
    for figure in [*_VALIDATION, *sorted(names)]:
        lines: list[Line] = []
        for colour, (run, data_set, label) in enumerate(validated(runs)):
            figures = run.valid[data_set]
            if figure in figures:
                best = _best(run, data_set, figure)
                lines.append(Line(label, figures[figure], colour, best=best))
            if control := figures.get(_SHUFFLED + figure):
                other = f"{label}, another sample's picture"
                lines.append(Line(other, control, colour, dashed=True))
        if lines:
            note = _VALIDATION.get(figure, "Mean over the generated texts.")
            if any(line.best for line in lines):
                note += " Ringed: the best, which is checkpoint_best.pth."
            if any(line.dashed for line in lines):
                note += " Dashed: with another sample's picture, a control."
            stem = f"valid_{re.sub(r'[^A-Za-z0-9_.-]', '_', figure)}"
            title = figure.replace("_", " ").capitalize()
            charts.append(Chart(stem, title, lines, note + _lost(lines)))
    return charts


def validated(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """Return each run with each of its data sets and its name in the legend, in colour order."""
    pairs = [(run, data_set) for run in runs for data_set in run.valid]
    alone = len({id(run) for run, _ in pairs}) == 1
    return [(run, name, name if alone else f"{run.name}: {name}") for run, name in pairs]


def _best(run: Run, data_set: str, figure: str) -> tuple[float, float] | None:
    """The point of a curve that ``best.json`` chose."""
    if run.best.get("metric") not in (figure, f"{data_set}/{figure}"):
        return None
    at = run.step_of(run.best)
    return next((point for point in finite(run.valid[data_set][figure]) if point[0] == at), None)


def _lost(lines: Sequence[Line]) -> str:
    number = sum(len(line.lost) for line in lines)
    places = "1 line of the log has" if number == 1 else f"{number:,} lines of the log have"
    return f" Crosses: {places} no finite figure." if number else ""
