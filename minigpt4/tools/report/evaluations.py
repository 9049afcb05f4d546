"""Evaluation folders: figures, their intervals and counts, and the samples that fail."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from minigpt4.tools.report.examples import Example, lowest
from minigpt4.tools.report.reading import JsonObject, Notes, count, part, read_file, read_rows


class EvaluatedSet(NamedTuple):
    """A data set of an evaluation, with its part of ``summary.json``."""

    name: str
    content: JsonObject
    failures: list[Example]


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
        failures = lowest(outputs, path, f"{name} · {evaluation.name}")
        evaluation.data_sets.append(EvaluatedSet(name, content, failures))
    return evaluation
