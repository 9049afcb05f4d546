"""The head of the report: key figures of each run, and which checkpoint to take."""

import json
from collections.abc import Sequence
from datetime import timezone
from statistics import median
from typing import Any

from minigpt4.tools.report.reading import JsonObject
from minigpt4.tools.report.runs import Run, finite


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
