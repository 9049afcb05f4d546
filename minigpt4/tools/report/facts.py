"""The head of the report: what each run was, its key figures, and which checkpoint to take."""

import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from minigpt4.tools.report.curves import first_and_last, median
from minigpt4.tools.report.difference import flatten
from minigpt4.tools.report.normal import Verdict, judge
from minigpt4.tools.report.reading import count, part
from minigpt4.tools.report.runs import Run, Series


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, the figure, and a word on it."""

    label: str
    value: str
    hint: str


@dataclass(frozen=True)
class Card:
    """A run at the head of the report.

    Attributes:
        run: With its name and folder.
        colour: Number of its colour in the charts.
        finished: Whether it came to its end.
        state: The same in words.
        tiles: Key figures.
        advice: Which checkpoint to take.
        facts: Name and text, of what the run was.
        settings: The whole config by dotted keys.
        verdicts: What the figures say.
    """

    run: Run
    colour: int
    finished: bool
    state: str
    tiles: list[Tile]
    advice: str
    facts: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    verdicts: list[Verdict]


def make_card(run: Run, colour: int) -> Card:
    return Card(
        run,
        colour,
        run.finished,
        _state(run),
        _tiles(run),
        _advice(run),
        [(name, text) for name, text in _facts(run) if text],
        sorted(flatten(run.config).items()) if run.config else [],
        judge(run),
    )


def data_sets(run: Run) -> list[str]:
    found = part(run.config, "datasets")
    return [str(name) for name in found] if isinstance(found, dict) else []


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    if not run.last_step:
        return "no steps logged"
    total = f" of {run.total_steps:,}" if run.total_steps else ""
    return f"not finished: step {run.last_step:,}{total}"


def _tiles(run: Run) -> list[Tile]:
    tiles = []
    loss = run.curves.get("loss", Series()).finite
    if loss:
        first, last = first_and_last(loss)
        tiles.append(Tile("final loss", f"{last:.3g}", f"{first:.3g} at first"))
    if run.best:
        where = f"step {run.step_of(vars(run.best)) or 0:,}"
        tiles.append(Tile(f"best held-out {run.best.metric}", f"{run.best.value:.3g}", where))
    rates = [value for _, value in run.curves.get("samples_per_second", Series()).finite]
    if rates:
        tiles.append(Tile("samples/s", f"{median(rates):,.3g}", "median"))
    seconds = _seconds(run)
    if seconds:
        tiles.append(Tile("duration", _in_hours(seconds), _launches(run)))
    return tiles


def _advice(run: Run) -> str:
    if run.best and "checkpoint_best.pth" in run.checkpoints:
        at = f"epoch {run.best.epoch + 1}, step {run.best.step:,}"
        figure = f"{run.best.metric} {run.best.value:.4g}"
        return f"Take checkpoint_best.pth: the best {figure}, at {at}."
    if run.checkpoints:
        name = run.checkpoints[-1]
        why = "without a validation (run.valid_splits) nobody knows which is best"
        if run.valid:
            why = "no checkpoint_best.pth lies in the folder"
        return f"Take {name}, the last one: {why}."
    return "No checkpoint lies in the folder."


def _facts(run: Run) -> list[tuple[str, str]]:
    model, settings, here = part(run.config, "model"), part(run.config, "run"), run.environment
    kind = " ".join(str(part(model, key) or "") for key in ("arch", "model_type")).strip()
    command = here.get("command")
    texts = [str(word) for word in command] if isinstance(command, list) else []
    packages = here.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    epochs, batch = part(settings, "max_epoch"), part(settings, "batch_size_train")
    steps = f" × {run.per_epoch:,} steps" if run.per_epoch else ""
    processes = count(here.get("processes")) or 1
    return [
        ("model", kind),
        ("stage", {1: "1: captions", 2: "2: conversation"}[run.stage] if run.config else ""),
        ("data sets", ", ".join(data_sets(run))),
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


def _hardware(here: dict[str, Any], processes: int) -> str:
    gpus = here.get("gpus")
    names = [str(name) for name in gpus] if isinstance(gpus, list) else []
    kinds = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    seen = ", ".join(kinds) or "no GPU"
    several = f", {processes} processes" if processes > 1 else ""
    platform, python = here.get("platform"), here.get("python")
    system = "".join(f", {text}" for text in (platform, python and f"Python {python}") if text)
    return f"{seen}{several}{system}" if here else ""


def _seconds(run: Run) -> float:
    """From the start of the last launch to the last line of the log; 0 where nobody knows."""
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
    minutes = round(timedelta(seconds=seconds).total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
