"""Evaluation folders: a table of figures with their intervals, and the samples that fail."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.tools.report.examples import Example, failures_of_rows, is_lower_better
from minigpt4.tools.report.reading import Notes, count, number, part, read_json, read_rows

_COUNTS = ("samples", "unreadable", "intervals")


@dataclass(frozen=True)
class Figure:
    """A metric of a data set.

    Attributes:
        value: NaN where the file has none.
        low: Lower end of the interval; NaN without one.
        high: Upper end.
        lower_is_better: Of the metric.
    """

    metric: str
    value: float
    low: float
    high: float
    lower_is_better: bool

    @property
    def is_share(self) -> bool:
        """Whether it can be drawn as a bar from 0 to 1."""
        return 0 <= self.value <= 1


@dataclass(frozen=True)
class Evaluated:
    """A data set of an evaluation; ``counts`` are what its metrics counted, in words."""

    name: str
    samples: int | None
    unreadable: int | None
    figures: list[Figure]
    failures: list[Example]
    counts: list[str]


@dataclass
class Evaluation:
    """An evaluation folder."""

    path: Path
    name: str
    data_sets: list[Evaluated] = field(default_factory=list)


def is_evaluation(path: Path) -> bool:
    content = read_json(path / "summary.json", Notes())
    return isinstance(content, dict) and any(
        count(part(content, name, "samples")) is not None for name in content
    )


def read_evaluation(path: Path, notes: Notes) -> Evaluation:
    """Figures and failures of each data set."""
    evaluation = Evaluation(path, path.resolve().name)
    for name, content in read_json(path / "summary.json", notes).items():
        if not isinstance(content, dict):
            notes.add(f"{path / 'summary.json'}: {name} holds no figures and is left out")
            continue
        figures = [
            _figure(metric, value, content)
            for metric, value in content.items()
            if metric not in _COUNTS and not isinstance(value, dict | list | str)
        ]
        file = path / f"{name}.jsonl"
        if Path(name).name != name or not file.is_file():
            notes.add(f"{file}: is missing, so that {name} has no failure examples")
            failures = []
        else:
            source = f"{name} · {evaluation.name}"
            failures = failures_of_rows(_answered(file, notes), path, source)
        told = count(content.get("samples")), count(content.get("unreadable"))
        evaluation.data_sets.append(Evaluated(name, *told, figures, failures, _counts(content)))
    return evaluation


def _figure(metric: str, value: Any, content: dict[str, Any]) -> Figure:
    ends = part(content, "intervals", metric)
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    better = is_lower_better(metric)
    return Figure(metric, number(value), number(low), number(high), better)


def _counts(content: dict[str, Any]) -> list[str]:
    """What each metric counted, such as how many texts failed in which way."""
    found = content.get("counts")
    return [
        f"{metric}: {', '.join(f'{key} {value}' for key, value in counts.items())}"
        for metric, counts in (found.items() if isinstance(found, dict) else ())
        if isinstance(counts, dict)
    ]


def _answered(file: Path, notes: Notes) -> Iterator[dict[str, Any]]:
    return (row for row in read_rows(file, notes) if "error" not in row)
