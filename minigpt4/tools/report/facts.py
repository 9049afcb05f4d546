"""The head of the report: what each run was, its key figures, and which checkpoint to take."""

import json
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from statistics import median
from typing import Any, NamedTuple

from minigpt4.tools.report.reading import JsonObject, count, part
from minigpt4.tools.report.runs import Run, finite


class Card(NamedTuple):
    """A run at the head of the report.

    Attributes:
        run: With its name and folder.
        colour: Number of its colour in the charts.
        state: Whether it came to its end, in words.
        tiles: Key figures: name, figure, and a word on it.
        checkpoint: Which one to take.
        facts: Name and text, of what the run was.
        settings: The whole config by dotted keys.
    """

    run: Run
    colour: int
    state: str
    tiles: list[tuple[str, str, str]]
    checkpoint: str
    facts: list[tuple[str, str]]
    settings: list[tuple[str, str]]


def make_card(run: Run, colour: int) -> Card:
    facts = [(name, text) for name, text in _facts(run) if text]
    settings = sorted(_flatten(run.config).items()) if run.config else []
    return Card(run, colour, _state(run), _tiles(run), _checkpoint(run), facts, settings)


def differing_keys(configs: Sequence[JsonObject]) -> list[tuple[str, list[str]]]:
    """Return each dotted key that is not the same in all configs, with its value in each."""
    flat = [_flatten(config) for config in configs]
    keys = sorted({key for one in flat for key in one})
    table = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _flatten(content: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys with their values as texts; a list is one value."""
    if isinstance(content, str):
        return {prefix: content or '""'}
    if not isinstance(content, dict) or (not content and prefix):
        return {prefix: json.dumps(content, ensure_ascii=False, default=str)}
    flat: dict[str, str] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    if not run.last_step:
        return "no steps logged"
    total = f" of {run.total_steps:,}" if run.total_steps else ""
    return f"not finished: step {run.last_step:,}{total}"


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    losses = [value for _, value in finite(run.curves.get("loss", []))]
    if losses:
        tenth = max(1, len(losses) // 10)  # a single reading jumps
        last = sum(losses[-tenth:]) / tenth
        tiles.append(("final loss", f"{last:.3g}", f"{losses[0]:.3g} at first"))
    if run.best:
        name, value = f"best held-out {run.best['metric']}", f"{run.best['value']:.3g}"
        tiles.append((name, value, f"step {run.step_of(run.best) or 0:,}"))
    rates = [value for _, value in finite(run.curves.get("samples_per_second", []))]
    if rates:
        tiles.append(("samples/s", f"{median(rates):,.3g}", "median"))
    seconds = _seconds(run)
    if seconds:
        tiles.append(("duration", _in_hours(seconds), _launches(run)))
    return tiles


def _checkpoint(run: Run) -> str:
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


def _facts(run: Run) -> list[tuple[str, str]]:
    model, settings, here = part(run.config, "model"), part(run.config, "run"), run.environment
    kind = " ".join(str(part(model, key) or "") for key in ("arch", "model_type")).strip()
    command = here.get("command")
    texts = [str(word) for word in command] if isinstance(command, list) else []
    packages = here.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    epochs, batch = part(settings, "max_epoch"), part(settings, "batch_size_train")
    steps = f" × {run.per_epoch:,} steps" if run.per_epoch else ""
    data = part(run.config, "datasets")
    prompted = part(model, "prompt_path") or part(model, "prompt_template")
    processes = count(here.get("processes")) or 1
    return [
        ("model", kind),
        ("stage", ("2: conversation" if prompted else "1: captions") if run.config else ""),
        ("data sets", ", ".join(map(str, data)) if isinstance(data, dict) else ""),
        ("length", f"{epochs} epochs{steps}, {batch} samples per process" if epochs else ""),
        ("started", _date(here.get("started"))),
        ("folder", str(run.path)),
        ("command", shlex.join(texts)),
        ("git", _git(here.get("git"))),
        ("hardware", _hardware(here, processes)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("checkpoints", ", ".join(run.checkpoints)),
    ]


def _date(value: Any) -> str:
    when = _when(value)
    return f"{when:%-d %B %Y, %H:%M} UTC" if when else ""


def _when(value: Any) -> datetime | None:
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def _git(state: Any) -> str:
    commit = part(state, "commit")
    if not isinstance(commit, str):
        return ""
    branch = part(state, "branch")
    where = f" on {branch}" if branch else ""
    return f"{commit[:12]}{where}{', with changes' if part(state, 'dirty') else ''}"


def _hardware(here: JsonObject, processes: int) -> str:
    gpus = here.get("gpus")
    names = [str(name) for name in gpus] if isinstance(gpus, list) else []
    kinds = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    seen = ", ".join(kinds) or "no GPU"
    several = f", {processes} processes" if processes > 1 else ""
    platform, python = here.get("platform"), here.get("python")
    system = "".join(f", {text}" for text in (platform, python and f"Python {python}") if text)
    return f"{seen}{several}{system}" if here else ""


def _seconds(run: Run) -> float:
    """From the start of the last launch to the last line of the log; 0 where it is not known."""
    started = _when(run.environment.get("started"))
    try:
        ended = (run.path / "log.txt").stat().st_mtime
    except OSError:
        return 0.0
    seconds = ended - started.timestamp() if started else 0.0
    return seconds if 0 < seconds < 366 * 86_400 else 0.0


def _launches(run: Run) -> str:
    earlier = run.environment.get("earlier_launches")
    launches = 1 + len(earlier) if isinstance(earlier, list) else 1
    return "" if launches == 1 else f"of the last of {launches} launches"


def _in_hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
