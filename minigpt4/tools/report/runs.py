"""Run folders: their curves, validations, record and best checkpoint, as the report shows them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.tools.report.reading import (
    Notes,
    count,
    number,
    part,
    read_config,
    read_object,
    read_rows,
)

_STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")
_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.pth")
_ASIDE = ("epoch", "step", "valid")


@dataclass
class Series:
    """A figure over the steps of a run.

    Attributes:
        steps: Of the run, rising.
        values: NaN where the log has none.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def finite(self) -> list[tuple[int, float]]:
        pairs = zip(self.steps, self.values, strict=True)
        return [(step, value) for step, value in pairs if math.isfinite(value)]


@dataclass(frozen=True)
class Best:
    """What ``best.json`` says."""

    metric: str
    value: float
    epoch: int
    step: int


@dataclass
class Run:
    """A run folder.

    Attributes:
        path: Of the folder.
        name: Short, and its own among the runs of a report.
        config: Of ``config.yaml``.
        environment: Of ``environment.json``.
        per_epoch: Steps of an epoch; None while nobody knows.
        total_steps: That the config asks for.
        last_step: The last that the log has.
        curves: By figure.
        epoch_losses: Mean loss of each epoch that came to its end.
        valid: By data set and figure.
        best: Of the validations.
        checkpoints: Names of the files for users, the oldest first.
    """

    path: Path
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    per_epoch: int | None = None
    total_steps: int | None = None
    last_step: int = 0
    curves: dict[str, Series] = field(default_factory=dict)
    epoch_losses: dict[int, float] = field(default_factory=dict)
    valid: dict[str, dict[str, Series]] = field(default_factory=dict)
    best: Best | None = None
    checkpoints: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        epochs = count(part(self.config, "run", "max_epoch"))
        if self.total_steps:
            return self.last_step >= self.total_steps
        return epochs is not None and epochs - 1 in self.epoch_losses

    @property
    def has_figures(self) -> bool:
        """Whether there is anything of it to show besides its config."""
        files = ("validation.jsonl", "bad_samples.jsonl", "nonfinite.jsonl", "looks/looks.json")
        logged = self.curves or self.epoch_losses or self.valid
        return bool(logged) or any((self.path / name).exists() for name in files)

    @property
    def stage(self) -> int:
        """2 where the answers of a conversation are learnt, 1 for bare captions."""
        model = part(self.config, "model")
        return 2 if part(model, "prompt_path") or part(model, "prompt_template") else 1

    def step_of(self, row: dict[str, Any]) -> int | None:
        """The step of the run at which a row was written; None where it does not say."""
        epoch, step = count(row.get("epoch")), count(row.get("step"))
        if epoch is None or step is None:
            return None
        return epoch * (self.per_epoch or 0) + step


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("log.txt", "config.yaml", "environment.json"))


def read_run(path: Path, notes: Notes) -> Run:
    """What a run folder holds; what cannot be read is noted."""
    run = Run(path)
    run.config = read_config(path / "config.yaml", notes)
    run.environment = read_object(path / "environment.json", notes)
    rows = list(read_rows(path / "log.txt", notes))
    if not (path / "log.txt").exists():
        notes.add(f"{path}: has no log.txt, so no curves")
    elif not rows:
        notes.add(f"{path / 'log.txt'}: holds no line that can be read, so no curves")
    run.per_epoch = count(part(run.config, "run", "iters_per_epoch")) or _largest_step(rows)
    epochs = count(part(run.config, "run", "max_epoch"))
    if epochs and count(part(run.config, "run", "iters_per_epoch")):
        run.total_steps = epochs * (run.per_epoch or 0)
    _read_log(run, rows, notes)
    run.best = _read_best(path / "best.json", notes)
    run.checkpoints = _checkpoints(path)
    return run


def name_runs(runs: Sequence[Run]) -> None:
    """Give each run the shortest name that is its own: its folder, or what that lies in."""
    short = [_short_name(run.path.resolve()) for run in runs]
    for run, name in zip(runs, short, strict=True):
        run.name = name if short.count(name) == 1 else f"{name}/{run.path.resolve().name}"
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)


def _short_name(path: Path) -> str:
    stamped = _STAMP.fullmatch(path.name) and path.parent.name
    return path.parent.name if stamped else path.name


def _largest_step(rows: Sequence[dict[str, Any]]) -> int | None:
    return max((count(row.get("step")) or 0 for row in rows), default=0) or None


def _read_log(run: Run, rows: Sequence[dict[str, Any]], notes: Notes) -> None:
    """Sort the lines of a log; of a step that was logged twice the later line counts."""
    steps: dict[int, dict[str, Any]] = {}
    valid: dict[int, dict[str, Any]] = {}
    odd = 0
    for row in rows:
        at, epoch = run.step_of(row), count(row.get("epoch"))
        if isinstance(row.get("valid"), dict) and at is not None:
            valid[at] = row["valid"]
        elif at is not None:
            steps[at] = row
        elif epoch is not None and "train_loss" in row:
            run.epoch_losses[epoch] = number(row["train_loss"])
        else:
            odd += 1
    if odd:
        lines = "1 line is" if odd == 1 else f"{odd:,} lines are"
        notes.add(f"{run.path / 'log.txt'}: {lines} neither a step, an epoch nor a validation")
    for at in sorted(steps):
        for name, value in steps[at].items():
            if name not in _ASIDE and _is_figure(value):
                _append(run.curves.setdefault(name, Series()), at, value)
    for at in sorted(valid):
        for data_set, figures in valid[at].items():
            for name, value in figures.items() if isinstance(figures, dict) else ():
                if _is_figure(value):
                    series = run.valid.setdefault(data_set, {}).setdefault(name, Series())
                    _append(series, at, value)
    run.last_step = max(steps, default=0)


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _append(series: Series, step: int, value: Any) -> None:
    series.steps.append(step)
    series.values.append(number(value))


def _read_best(path: Path, notes: Notes) -> Best | None:
    content = read_object(path, notes)
    if not content:
        return None
    epoch, step = count(content.get("epoch")), count(content.get("step"))
    value, metric = number(content.get("value")), content.get("metric")
    if not isinstance(metric, str) or epoch is None or step is None or math.isnan(value):
        notes.add(f"{path}: does not name metric, value, epoch and step, and is left out")
        return None
    return Best(metric, value, epoch, step)


def _checkpoints(path: Path) -> list[str]:
    found = [match for file in path.glob("checkpoint_*.pth")
             if (match := _CHECKPOINT.fullmatch(file.name))]  # fmt: skip
    names = [match.group() for match in sorted(found, key=lambda m: int(m.group(1)))]
    best = "checkpoint_best.pth"
    return [*names, *([best] if (path / best).exists() else [])]
