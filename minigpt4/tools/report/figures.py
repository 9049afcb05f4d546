"""What the report shows of runs: charts, key figures, the best checkpoint, differing settings."""

import json
import re
import zlib
from collections.abc import Sequence
from datetime import timezone
from statistics import median
from typing import Any

from minigpt4.tools.report.charts import Chart, Line
from minigpt4.tools.report.reading import JsonObject
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
_MAX_NAME = 100  # characters
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
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", figure)
            if len(name) > _MAX_NAME:  # a file's name has a limit
                name = f"{name[:_MAX_NAME]}_{zlib.crc32(figure.encode()):08x}"
            title = figure.replace("_", " ").capitalize()[:_MAX_NAME]
            charts.append(Chart(f"valid_{name}", title, lines, note + _lost(lines)))
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
    return f" Crosses: {number:,} lines of the log have no finite figure." if number else ""


def differing_keys(configs: Sequence[JsonObject]) -> list[tuple[str, list[str]]]:
    """Return each dotted key that is not the same in all configs, with its value in each."""
    flat = [flatten(config) for config in configs]
    keys = sorted({key for one in flat for key in one})
    table = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def flatten(content: Any, prefix: str = "") -> dict[str, str]:
    """Return dotted keys with their values as texts; a list is one value."""
    if isinstance(content, str):
        return {prefix: content or '""'}
    if not isinstance(content, dict) or (not content and prefix):
        return {prefix: json.dumps(content, ensure_ascii=False, default=str)}
    flat: dict[str, str] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the key figures: name, value, and a remark."""
    found = []
    losses = [value for _, value in finite(run.curves.get("loss", []))]
    if losses:
        tenth = max(1, len(losses) // 10)  # a single reading jumps
        last = sum(losses[-tenth:]) / tenth
        found.append(("final loss", f"{last:.3g}", f"{losses[0]:.3g} at first"))
    if run.best:
        name, value = f"best held-out {run.best['metric']}", f"{run.best['value']:.3g}"
        found.append((name, value, f"step {run.step_of(run.best) or 0:,}"))
    rates = [value for _, value in finite(run.curves.get("samples_per_second", []))]
    if rates:
        found.append(("samples/s", f"{median(rates):,.3g}", "median"))
    if seconds := _seconds(run):
        launches = 1 + len(run.environment.earlier_launches)
        remark = "" if launches == 1 else f"of the last of {launches} launches"
        found.append(("duration", _in_hours(seconds), remark))
    return found


def checkpoint(run: Run) -> str:
    """Say which checkpoint to take, and why."""
    if run.best and "checkpoint_best.pth" in run.checkpoints:
        at = f"epoch {run.best['epoch'] + 1}, step {run.best['step']:,}"
        figure = f"{run.best['metric']} {run.best['value']:.4g}"
        return f"Take checkpoint_best.pth: the best {figure}, at {at}."
    if not run.checkpoints:
        return "There is no checkpoint in the folder."
    why = "without a validation (run.valid_splits) it is not known which is best"
    if run.valid:
        why = "there is no checkpoint_best.pth in the folder"
    return f"Take {run.checkpoints[-1]}, the last one: {why}."


def _seconds(run: Run) -> float:
    """Return the time from the last launch to the last line of the log; 0 if it is not known."""
    started, log = run.environment.started, run.path / "log.txt"
    if started is None or not log.exists():
        return 0.0
    started = started if started.tzinfo else started.replace(tzinfo=timezone.utc)
    seconds = log.stat().st_mtime - started.timestamp()
    return seconds if 0 < seconds < 366 * 86_400 else 0.0


def _in_hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
