"""Evaluation folders: a table of figures with their intervals, and the samples that fail."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minigpt4.tools.report.examples import Example, is_lower_better, lowest
from minigpt4.tools.report.reading import (
    JsonObject,
    Notes,
    count,
    number,
    part,
    read_file,
    read_rows,
)

_COUNTS = ("samples", "unreadable", "intervals")


class MetricValue(NamedTuple):
    """The figure of a metric and the ends of its interval, each NaN where there is none."""

    metric: str
    value: float
    low: float
    high: float
    lower_is_better: bool


class EvaluatedSet(NamedTuple):
    """A data set of an evaluation; ``counts`` are what its metrics counted, in words."""

    name: str
    samples: int | None
    unreadable: int | None
    figures: list[MetricValue]
    failures: list[Example]
    counts: list[str]


@dataclass
class Evaluation:
    """An evaluation folder."""

    path: Path
    name: str
    data_sets: list[EvaluatedSet] = field(default_factory=list)


def is_evaluation(path: Path) -> bool:
    content = read_file(path / "summary.json", Notes(), dict)
    return any(count(part(content, name, "samples")) is not None for name in content)


def read_evaluation(path: Path, notes: Notes) -> Evaluation:
    """Read the figures and failures of each data set."""
    evaluation = Evaluation(path, path.resolve().name)
    for name, content in read_file(path / "summary.json", notes, dict).items():
        if not isinstance(content, dict):
            notes.add(f"{path / 'summary.json'}: {name} holds no figures and is left out")
            continue
        file = path / f"{name}.jsonl"
        if not file.is_file():
            notes.add(f"{file}: is missing, so that {name} has no failure examples")
        outputs = (row for row in read_rows(file, notes) if "error" not in row)
        one = EvaluatedSet(
            name,
            count(content.get("samples")),
            count(content.get("unreadable")),
            [
                _metric_value(metric, value, content)
                for metric, value in content.items()
                if metric not in _COUNTS and not isinstance(value, dict | list | str)
            ],
            lowest(outputs, path, f"{name} · {evaluation.name}"),
            _counts(content),
        )
        evaluation.data_sets.append(one)
    return evaluation


def _metric_value(metric: str, value: Any, content: JsonObject) -> MetricValue:
    ends = part(content, "intervals", metric)
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return MetricValue(metric, number(value), number(low), number(high), is_lower_better(metric))


def _counts(content: JsonObject) -> list[str]:
    """Describe what each metric counted, such as how many texts failed in which way."""
    found = content.get("counts")
    return [
        f"{metric}: {', '.join(f'{key} {value}' for key, value in counts.items())}"
        for metric, counts in (found.items() if isinstance(found, dict) else ())
        if isinstance(counts, dict)
    ]
