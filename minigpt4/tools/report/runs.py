"""Run folders: curves, validations, record, checkpoints, generated texts and what went wrong."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

from minigpt4.tools.report.reading import (
    JsonObject,
    Notes,
    count,
    number,
    part,
    read_file,
    read_rows,
)

_STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")
_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.pth")
_NO_FIGURES = ("epoch", "step", "valid")
_MAX_EXAMPLES, _MAX_LOST = 3, 20
_MAX_GROUPS, _MAX_TEXT = 50, 300  # causes of bad samples; characters

Points = list[tuple[float, float]]  # step, value; NaN where the log has no finite value


class Environment(BaseModel):
    """Content of ``environment.json``; a value of another kind counts as absent."""

    started: datetime | None = None
    command: list[str] = []
    git: dict[str, Any] = {}
    gpus: list[str] = []
    processes: int = 1
    platform: str = ""
    python: str = ""
    packages: dict[str, str] = {}
    earlier_launches: list[Any] = []

    @field_validator("*", mode="wrap")
    @classmethod
    def _leave_out(cls, value: Any, check: Callable[[Any], Any], info: ValidationInfo) -> Any:
        try:
            return check(value)
        except ValidationError:
            return cls.model_fields[str(info.field_name)].get_default()


@dataclass
class Run:
    """A run folder."""

    path: Path
    name: str = ""  # short, and unique in a report
    config: JsonObject = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    per_epoch: int | None = None  # steps of an epoch
    total_steps: int | None = None  # of the config
    last_step: int = 0
    epochs: set[int] = field(default_factory=set)  # finished ones
    curves: dict[str, Points] = field(default_factory=dict)  # of the training, by figure
    valid: dict[str, dict[str, Points]] = field(default_factory=dict)  # by data set and figure
    best: JsonObject = field(default_factory=dict)  # content of best.json
    checkpoints: list[str] = field(default_factory=list)  # file names, the oldest first
    outputs: dict[str, dict[int, JsonObject]] = field(default_factory=dict)  # by image and step

    @property
    def finished(self) -> bool:
        epochs = count(part(self.config, "run", "max_epoch"))
        if self.total_steps:
            return self.last_step >= self.total_steps
        return epochs is not None and epochs - 1 in self.epochs

    @property
    def has_figures(self) -> bool:
        """Whether there is anything to show besides the config."""
        files = ("validation.jsonl", "bad_samples.jsonl", "nonfinite.jsonl", "looks/looks.json")
        logged = self.curves or self.epochs or self.valid
        return bool(logged) or any((self.path / name).exists() for name in files)

    def step_of(self, row: JsonObject) -> int | None:
        """Return the step of the run at which a row was written; None where it does not say."""
        epoch, step = count(row.get("epoch")), count(row.get("step"))
        return None if epoch is None or step is None else epoch * (self.per_epoch or 0) + step


def finite(points: Points) -> Points:
    """Return the points with a finite value."""
    return [point for point in points if math.isfinite(point[1])]


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("log.txt", "config.yaml", "environment.json"))


def read_run(path: Path, notes: Notes) -> Run:
    """Read a run folder; note what cannot be read."""
    run = Run(path)
    if not (path / "config.yaml").exists():
        notes.add(f"{path / 'config.yaml'}: is missing, so the run's settings are not known")
    run.config = read_file(path / "config.yaml", notes, dict, yaml.safe_load)
    run.environment = Environment(**read_file(path / "environment.json", notes, dict))
    rows = list(read_rows(path / "log.txt", notes))
    if not (path / "log.txt").exists():
        notes.add(f"{path}: has no log.txt, so no curves")
    elif not rows:
        notes.add(f"{path / 'log.txt'}: holds no line that can be read, so no curves")
    steps, epochs = (count(part(run.config, "run", k)) for k in ("iters_per_epoch", "max_epoch"))
    run.per_epoch = steps or max((count(row.get("step")) or 0 for row in rows), default=0) or None
    run.total_steps = steps * epochs if steps and epochs else None
    _read_log(run, rows, notes)
    _read_outputs(run, notes)
    run.best = _read_best(path / "best.json", notes)
    found = (_CHECKPOINT.fullmatch(file.name) for file in path.glob("checkpoint_*.pth"))
    numbered = sorted((int(match[1]), match[0]) for match in found if match)
    run.checkpoints = [name for _, name in numbered]
    if (path / "checkpoint_best.pth").exists():
        run.checkpoints.append("checkpoint_best.pth")
    return run


def name_runs(runs: Sequence[Run]) -> None:
    """Give each run the shortest name that is its own: its folder, or the one above."""
    paths = [run.path.resolve() for run in runs]
    stamped = [_STAMP.fullmatch(path.name) and path.parent.name for path in paths]
    short = [above or path.name for above, path in zip(stamped, paths, strict=True)]
    for run, name, path in zip(runs, short, paths, strict=True):
        run.name = name if short.count(name) == 1 else f"{name}/{path.name}"
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)


def _read_log(run: Run, rows: Sequence[JsonObject], notes: Notes) -> None:
    """Sort the lines of a log; of a step that was logged twice the later line counts."""
    steps: dict[int, JsonObject] = {}
    valid: dict[int, JsonObject] = {}
    odd = 0
    for row in rows:
        at, epoch = run.step_of(row), count(row.get("epoch"))
        if isinstance(row.get("valid"), dict) and at is not None:
            valid[at] = row["valid"]
        elif at is not None:
            steps[at] = row
        elif epoch is not None and "train_loss" in row:
            run.epochs.add(epoch)
        else:
            odd += 1
    if odd:
        text = f"{odd:,} lines are neither a step, an epoch nor a validation"
        notes.add(f"{run.path / 'log.txt'}: {text}")
    for at, row in sorted(steps.items()):
        _add_points(run.curves, at, row)
    for at, data_sets in sorted(valid.items()):
        for data_set, figures in data_sets.items():
            if isinstance(figures, dict):
                _add_points(run.valid.setdefault(data_set, {}), at, figures)
    run.last_step = max(steps, default=0)


def _add_points(curves: dict[str, Points], step: int, figures: JsonObject) -> None:
    for name, value in figures.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in _NO_FIGURES and (value is None or is_number):
            curves.setdefault(name, []).append((step, number(value)))


def _read_outputs(run: Run, notes: Notes) -> None:
    odd = 0
    path = run.path / "validation.jsonl"
    for row in read_rows(path, notes):
        at, name = run.step_of(row), row.get("picture") or row.get("image")
        if at is None or not isinstance(name, str) or not isinstance(row.get("output"), str):
            odd += 1
        else:
            run.outputs.setdefault(name, {})[at] = row
    if odd:
        notes.add(f"{path}: {odd:,} lines without epoch, step, picture or output are left out")


def _read_best(path: Path, notes: Notes) -> JsonObject:
    best = read_file(path, notes, dict)
    given = isinstance(best.get("metric"), str) and not math.isnan(number(best.get("value")))
    if best and not (given and all(count(best.get(key)) is not None for key in ("epoch", "step"))):
        notes.add(f"{path}: does not name metric, value, epoch and step, and is left out")
        return {}
    return best


def read_bad_samples(folder: Path, notes: Notes) -> list[tuple[str, str, int, list[str]]]:
    """Count a run's bad samples by data set and cause, with examples."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for row in read_rows(folder / "bad_samples.jsonl", notes):
        place = "/".join(str(row[name]) for name in ("shard", "key") if row.get(name))
        text = f"{place}: {row['detail']}" if row.get("detail") else place
        named = row.get("dataset", ""), row.get("cause", "unknown")
        group = str(named[0])[:_MAX_TEXT], str(named[1])[:_MAX_TEXT]
        counts[group] += 1
        if counts[group] <= _MAX_EXAMPLES:
            examples.setdefault(group, []).append(text[:_MAX_TEXT])
    if (more := len(counts) - _MAX_GROUPS) > 0:
        notes.add(f"{folder / 'bad_samples.jsonl'}: {more:,} rarer causes are not listed here")
    most = counts.most_common(_MAX_GROUPS)
    return [(*group, total, examples[group]) for group, total in most]


def read_lost_steps(folder: Path, notes: Notes) -> tuple[list[JsonObject], int]:
    """Return the first lost steps of a run, and how many more there are."""
    rows = read_rows(folder / "nonfinite.jsonl", notes)
    first = [
        row | {"keys": row["keys"] if isinstance(row.get("keys"), list) else []}
        for row in islice(rows, _MAX_LOST)
    ]
    return first, sum(1 for _ in rows)
