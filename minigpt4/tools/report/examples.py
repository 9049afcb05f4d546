"""Generated texts beside pictures: the contact sheet, and the samples that score lowest."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.report.pictures import picture_uri
from minigpt4.tools.report.reading import Notes, number, read_rows, short_path
from minigpt4.tools.report.runs import Run

MOST_PICTURES = 12
MOST_FAILURES = 8
_LONGEST = 1500  # characters of a text on the page

Row = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A text under its title.

    Attributes:
        title: Who says it, and when.
        text: As generated.
        scores: "metric value" each.
    """

    title: str
    text: str
    scores: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """A picture, what is right to say of it and what was said.

    Attributes:
        picture: Data URI; None without one.
        key: Of the sample.
        source: Data set, and run or evaluation.
        references: One or several.
        outputs: In the order of training.
        has_picture: Whether there should be one.
    """

    picture: str | None
    key: str
    source: str
    references: list[str]
    outputs: list[Text]
    has_picture: bool = True


@dataclass(frozen=True)
class Sheet:
    """The contact sheet: its examples, and how many more there are."""

    examples: list[Example]
    more: int = 0


@dataclass
class Said:
    """A run with its rows of ``validation.jsonl``, by picture and step."""

    run: Run
    rows: dict[str, dict[int, Row]] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max((max(rows) for rows in self.rows.values()), default=0)


def read_said(run: Run, notes: Notes) -> Said:
    """The texts that a run generated at its validations."""
    said = Said(run)
    odd = 0
    path = run.path / "validation.jsonl"
    for row in read_rows(path, notes):
        at = run.step_of(row)
        name = row.get("picture") or row.get("image")
        if at is None or not isinstance(name, str) or not isinstance(row.get("output"), str):
            odd += 1
            continue
        said.rows.setdefault(name, {})[at] = row
    if odd:
        notes.add(f"{path}: {odd:,} lines without epoch, step, picture or output are left out")
    return said


def make_sheet(said: Sequence[Said], notes: Notes) -> Sheet:
    """First and last texts of each run, joined by picture; the runs in the order of their start."""
    said = sorted((s for s in said if s.rows), key=lambda s: str(s.run.environment.get("started")))
    names = list(dict.fromkeys(name for one in said for name in one.rows))
    # Pictures that most runs speak of tell most.
    names.sort(key=lambda name: -sum(name in one.rows for one in said))
    examples = [_join(name, said) for name in names[:MOST_PICTURES]]
    missing = sum(example.has_picture and not example.picture for example in examples)
    if missing:
        notes.add(
            f"contact sheet: {missing} of {len(examples)} pictures cannot be read or are gone"
        )
    return Sheet(examples, len(names) - len(examples))


def _join(name: str, said: Sequence[Said]) -> Example:
    picture: str | None = None
    references: list[str] = []
    outputs: list[Text] = []
    rows: list[Row] = []
    alone = sum(name in one.rows for one in said) == 1
    for place, one in enumerate(said):
        steps = one.rows.get(name, {})
        if not steps:
            continue
        first, last = min(steps), max(steps)
        picture = picture or picture_uri(one.run.path, steps[last].get("picture"))
        # What a later run says at first is what the one before said at last.
        if first != last and (alone or place == 0):
            title = f"before {one.run.name}" if first == 0 else f"{one.run.name}, step {first:,}"
            outputs.append(_text(title, steps[first]))
        outputs.append(_text(_when(one, last), steps[last]))
        rows.append(steps[last])
        references += _references(steps[last])
    return Example(
        picture,
        short_path(rows[0].get("image", name)),
        str(rows[0].get("data_set", "")),
        list(dict.fromkeys(references)),
        outputs,
        has_picture=any("picture" in row for row in rows),
    )


def _when(one: Said, step: int) -> str:
    if step == 0:
        return f"before {one.run.name}"
    return f"after {one.run.name}" if one.run.finished else f"{one.run.name}, step {step:,}"


def failures_of_run(said: Said) -> list[Example]:
    """The samples of the last validation that score lowest."""
    last = said.last_step
    rows = [rows[last] for rows in said.rows.values() if last in rows]
    metric = said.run.best.metric if said.run.best else None
    return _lowest(rows, said.run.path, f"{said.run.name}, step {last:,}", metric)


def failures_of_rows(rows: Iterable[Row], folder: Path, source: str) -> list[Example]:
    """The samples of an evaluation that score lowest."""
    return _lowest(rows, folder, source, None)


def _lowest(rows: Iterable[Row], folder: Path, source: str, metric: str | None) -> list[Example]:
    def badness(row: Row) -> float:
        """The larger, the worse."""
        name, value = _main_score(row, metric)
        return value if is_lower_better(name) else -value

    scored = (row for row in rows if _fails(row, metric))
    worst = heapq.nlargest(MOST_FAILURES, scored, key=badness)
    return [_failure(row, folder, source) for row in worst]


def _failure(row: Row, folder: Path, source: str) -> Example:
    kept = "picture" in row
    picture = picture_uri(folder, row["picture"]) if kept else _picture_of(row.get("image"))
    return Example(
        picture,
        short_path(row.get("image", "")),
        f"{row['data_set']} · {source}" if isinstance(row.get("data_set"), str) else source,
        _references(row),
        [_text("answer", row)],
        has_picture=kept or picture is not None,
    )


def _picture_of(image: object) -> str | None:
    """The picture that a sample's key names, where it is a file that is still there."""
    if not isinstance(image, str) or not image:
        return None
    return picture_uri(Path(image).parent, Path(image).name)


def _fails(row: Row, metric: str | None) -> bool:
    """Whether a row's figure leaves anything to wish for."""
    name, value = _main_score(row, metric)
    if not name or math.isnan(value) or row.get("output") in _references(row):
        return False
    return value != (0.0 if is_lower_better(name) else 1.0)


def _main_score(row: Row, metric: str | None) -> tuple[str, float]:
    """The figure by which samples are put in order: that of the best checkpoint, or the first."""
    scores = row.get("score")
    if not isinstance(scores, Mapping) or not scores:
        return "", math.nan
    # "<data set>/<metric>" may name the best one.
    wanted = metric.rpartition("/")[2] if metric else None
    name = wanted if wanted in scores else next(iter(scores))
    return str(name), number(scores[name])


def is_lower_better(metric: str) -> bool:
    """Whether a low figure is a good one; False for a metric that nobody knows here."""
    from minigpt4.metrics import lower_is_better

    try:
        return lower_is_better(metric)
    except MiniGPT4Error:  # of a plug-in
        return False


def _references(row: Row) -> list[str]:
    several = row.get("references")
    found = several if isinstance(several, list) else [row.get("reference")]
    return [_short(text) for text in found if isinstance(text, str)]


def _text(title: str, row: Row) -> Text:
    scores = row.get("score")
    told = [
        f"{name} {number(value):.3g}"
        for name, value in (scores.items() if isinstance(scores, Mapping) else ())
        if not math.isnan(number(value))
    ]
    return Text(title, _short(str(row.get("output", ""))), told)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
