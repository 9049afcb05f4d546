"""Images with texts: the contact sheet, the samples that score lowest, and looks."""

import base64
import heapq
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minigpt4.datasets.images import load_image
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.metrics import lower_is_better
from minigpt4.tools.report.reading import JsonObject, Notes, number, read_file, short_path
from minigpt4.tools.report.runs import Run

MAX_IMAGES, MAX_FAILURES = 12, 8
MAX_LOOKS, MAX_OVERLAYS, MAX_WORDS = 8, 40, 3
_MAX_TEXT = 1500  # characters of a text on the page
_SIDE, _OVERLAY_SIDE = 256, 168  # pixels


class Text(NamedTuple):
    """A generated text, titled by its run and step; ``scores`` are "metric value"."""

    title: str
    text: str
    scores: list[str]


class Example(NamedTuple):
    """An image, its reference texts and what was generated, in the order of training."""

    picture: str | None  # data URI
    key: str
    source: str  # data set, and run or evaluation
    references: list[str]
    outputs: list[Text]
    has_picture: bool  # or should have one


def make_sheet(runs: Sequence[Run], notes: Notes) -> tuple[list[Example], int]:
    """Join the first and last texts of each run by image; also return how many images are left."""
    runs = sorted(runs, key=lambda run: str(run.environment.started))
    names = list(dict.fromkeys(name for run in runs for name in run.outputs))
    names.sort(key=lambda name: -sum(name in run.outputs for run in runs))  # images of most runs
    examples = [_join(name, runs) for name in names[:MAX_IMAGES]]
    if missing := sum(example.has_picture and not example.picture for example in examples):
        of = f"{missing} of {len(examples)}"
        notes.add(f"contact sheet: {of} pictures cannot be read or are gone")
    return examples, len(names) - len(examples)


def _join(name: str, runs: Sequence[Run]) -> Example:
    runs = [run for run in runs if name in run.outputs]
    outputs: list[Text] = []
    for run in runs:
        steps = run.outputs[name]
        first, last = min(steps), max(steps)
        if run is runs[0] and first != last:  # a later run begins where the one before ended
            outputs.append(_text(_when(run, first, False), steps[first]))
        outputs.append(_text(_when(run, last, run.finished), steps[last]))
    rows = [run.outputs[name][max(run.outputs[name])] for run in runs]
    pairs = zip(runs, rows, strict=True)
    pictures = [picture_uri(run.path, row.get("picture")) for run, row in pairs]
    return Example(
        next(filter(None, pictures), None),
        short_path(rows[0].get("image", name)),
        str(rows[0].get("data_set", "")),
        list(dict.fromkeys(text for row in rows for text in _references(row))),
        outputs,
        any("picture" in row for row in rows),
    )


def _when(run: Run, step: int, at_end: bool) -> str:
    if step == 0:
        return f"before {run.name}"
    return f"after {run.name}" if at_end else f"{run.name}, step {step:,}"


def failures_of_run(run: Run) -> list[Example]:
    """Return the samples of the last validation that score lowest."""
    last = max((max(steps) for steps in run.outputs.values()), default=0)
    rows = (steps[last] for steps in run.outputs.values() if last in steps)
    return lowest(rows, run.path, f"{run.name}, step {last:,}", run.best.get("metric"))


def lowest(
    rows: Iterable[JsonObject], folder: Path, source: str, metric: str | None = None
) -> list[Example]:
    """Return the samples that score lowest, without those that are right.

    The order is that of a metric, as ``best.json`` names it, or of the first one in a row.
    """
    judged = ((_badness(row, metric), row) for row in rows)
    failing = ((badness, row) for badness, row in judged if not math.isnan(badness))
    worst = heapq.nlargest(MAX_FAILURES, failing, key=lambda pair: pair[0])
    return [_failure(row, folder, source) for _, row in worst]


def _badness(row: JsonObject, metric: str | None) -> float:
    """Return a number that is larger for a worse row; NaN for one that is right or has no score."""
    scores = row.get("score")
    if not isinstance(scores, dict) or not scores or row.get("output") in _references(row):
        return math.nan
    wanted = (metric or "").rpartition("/")[2]  # "<data set>/<metric>" may be the best
    name = wanted if wanted in scores else next(iter(scores))
    value, is_lower = number(scores[name]), is_lower_better(name)
    if value == (0.0 if is_lower else 1.0):
        return math.nan
    return value if is_lower else -value


def is_lower_better(metric: str) -> bool:
    """Whether a low figure is a good one; False for the metric of an absent plug-in."""
    try:
        return lower_is_better(metric)
    except MiniGPT4Error:
        return False


def _failure(row: JsonObject, folder: Path, source: str) -> Example:
    kept, image = "picture" in row, str(row.get("image", ""))
    # Without a saved picture, the sample's key may be a file that still exists.
    file = Path(image)
    picture = picture_uri(folder, row["picture"]) if kept else picture_uri(file.parent, file.name)
    data_set = row.get("data_set")
    return Example(
        picture,
        short_path(image),
        f"{data_set} · {source}" if isinstance(data_set, str) else source,
        _references(row),
        [_text("answer", row)],
        has_picture=kept or picture is not None,
    )


def _references(row: JsonObject) -> list[str]:
    found = _list(row.get("references")) or [row.get("reference")]
    return [_short(text) for text in found if isinstance(text, str)]


def _text(title: str, row: JsonObject) -> Text:
    scores = row.get("score")
    values = [(n, number(x)) for n, x in scores.items()] if isinstance(scores, dict) else []
    shown = [f"{name} {value:.3g}" for name, value in values if not math.isnan(value)]
    return Text(title, _short(str(row.get("output", ""))), shown)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def read_looks(run_folder: Path, notes: Notes) -> list[JsonObject]:
    """Return the looks of a run folder as the page shows them."""
    path = run_folder / "looks" / "looks.json"
    content = read_file(path, notes, list)
    if len(content) > MAX_LOOKS:
        notes.add(f"{path}: the first {MAX_LOOKS} of {len(content)} pictures are shown")
    return [_look(path.parent, row, notes) for row in content[:MAX_LOOKS] if isinstance(row, dict)]


def _look(folder: Path, row: JsonObject, notes: Notes) -> JsonObject:
    """Return a look with pictures as data URIs, and with its nearest words by image token."""
    overlays = []
    listed = [overlay for overlay in _list(row.get("overlays")) if isinstance(overlay, dict)]
    for overlay in listed[:MAX_OVERLAYS]:
        if uri := picture_uri(folder, overlay.get("file"), _OVERLAY_SIDE):
            overlays.append((overlay.get("token", ""), uri))
        else:
            notes.add(f"{folder}: overlay {overlay.get('file')!r} cannot be read or is gone")
    tokens = [_list(token)[:MAX_WORDS] for token in _list(row.get("nearest_words"))]
    return {
        "picture": picture_uri(folder, row.get("picture")),
        "image": short_path(row.get("image") or ""),
        "prompt": row.get("prompt") or "",
        "answer": row.get("answer") or "",
        "words": [
            [(str(w[0]).strip() or "␣", number(w[1])) for w in token if len(_list(w)) == 2]
            for token in tokens
        ],
        "overlays": overlays,
        "left_out": len(listed) - len(listed[:MAX_OVERLAYS]),
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def picture_uri(folder: Path, name: object, side: int = _SIDE) -> str | None:
    """Return an image in a folder as a small data URI; None where it cannot be read."""
    try:
        path = (folder / str(name)).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        picture = load_image(path, shown=True)
    except (OSError, ValueError, RuntimeError, DataError):
        return None
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
