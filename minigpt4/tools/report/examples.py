"""Images with texts: the contact sheet, the samples that score lowest, and looks."""

import base64
import heapq
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.report.reading import (
    JsonObject,
    Notes,
    number,
    read_file,
    short_path,
)
from minigpt4.tools.report.runs import Run

MAX_IMAGES, MAX_FAILURES = 12, 8
MAX_LOOKS, MAX_OVERLAYS, MAX_WORDS = 8, 40, 3
_MAX_TEXT = 1500  # characters of a text on the page
_SIDE, _OVERLAY_SIDE = 256, 168  # pixels
_QUALITY = 82


class Text(NamedTuple):
    """A generated text; its title says by which run and when, ``scores`` are "metric value"."""

    title: str
    text: str
    scores: list[str]


class Example(NamedTuple):
    """An image, its reference texts and what was generated.

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
    has_picture: bool


class Look(NamedTuple):
    """An image as the model sees it.

    Attributes:
        picture: Data URI; None without one.
        image: Path of the image.
        prompt: Asked about it.
        answer: Given text or the model's own.
        words: For each image token its nearest words with their similarity.
        overlays: Token of the answer and data URI.
        left_out: Number of overlays that find no room.
    """

    picture: str | None
    image: str
    prompt: str
    answer: str
    words: list[list[tuple[str, float]]]
    overlays: list[tuple[str, str]]
    left_out: int


def make_sheet(runs: Sequence[Run], notes: Notes) -> tuple[list[Example], int]:
    """Join first and last texts of each run by image; also return how many more images there are.

    Runs are in the order of their start.
    """
    runs = sorted(runs, key=lambda run: str(run.environment.get("started")))
    runs = [run for run in runs if run.outputs]
    names = list(dict.fromkeys(name for run in runs for name in run.outputs))
    names.sort(key=lambda name: -sum(name in run.outputs for run in runs))  # images of most runs
    examples = [_join(name, runs) for name in names[:MAX_IMAGES]]
    missing = sum(example.has_picture and not example.picture for example in examples)
    if missing:
        notes.add(
            f"contact sheet: {missing} of {len(examples)} pictures cannot be read or are gone"
        )
    return examples, len(names) - len(examples)


def _join(name: str, runs: Sequence[Run]) -> Example:
    outputs: list[Text] = []
    rows: list[JsonObject] = []
    pictures: list[str | None] = []
    alone = sum(name in run.outputs for run in runs) == 1
    for place, run in enumerate(runs):
        steps = run.outputs.get(name)
        if not steps:
            continue
        first, last = min(steps), max(steps)
        # What a later run says at first is what the one before said at last.
        if first != last and (alone or place == 0):
            outputs.append(_text(_when(run, first, False), steps[first]))
        outputs.append(_text(_when(run, last, run.finished), steps[last]))
        rows.append(steps[last])
        pictures.append(picture_uri(run.path, steps[last].get("picture")))
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

    Args:
        rows: Outputs with scores.
        folder: Of the images that were written with them.
        source: Run or evaluation, as the page names it.
        metric: Decides the order, as ``best.json`` names it; the first of a row without.
    """
    judged = ((_badness(row, metric), row) for row in rows)
    failing = ((badness, row) for badness, row in judged if not math.isnan(badness))
    worst = heapq.nlargest(MAX_FAILURES, failing, key=lambda pair: pair[0])
    return [_failure(row, folder, source) for _, row in worst]


def _badness(row: JsonObject, metric: str | None) -> float:
    """Return a number that is the larger the worse; NaN for a row without fault or score."""
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
    """Whether a low figure is a good one; False for a metric that is not known here."""
    from minigpt4.metrics import lower_is_better

    try:
        return lower_is_better(metric)
    except MiniGPT4Error:  # of a plug-in
        return False


def _failure(row: JsonObject, folder: Path, source: str) -> Example:
    kept, image = "picture" in row, row.get("image")
    if kept:
        picture = picture_uri(folder, row["picture"])
    else:  # the sample's key may be a file that is still there
        file = Path(image) if isinstance(image, str) else Path()
        picture = picture_uri(file.parent, file.name)
    data_set = row.get("data_set")
    return Example(
        picture,
        short_path(row.get("image", "")),
        f"{data_set} · {source}" if isinstance(data_set, str) else source,
        _references(row),
        [_text("answer", row)],
        has_picture=kept or picture is not None,
    )


def _references(row: JsonObject) -> list[str]:
    several = row.get("references")
    found = several if isinstance(several, list) else [row.get("reference")]
    return [_short(text) for text in found if isinstance(text, str)]


def _text(title: str, row: JsonObject) -> Text:
    scores = row.get("score")
    values = [(n, number(x)) for n, x in scores.items()] if isinstance(scores, dict) else []
    shown = [f"{name} {value:.3g}" for name, value in values if not math.isnan(value)]
    return Text(title, _short(str(row.get("output", ""))), shown)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def read_looks(run_folder: Path, notes: Notes) -> list[Look]:
    """Read the looks of a run folder; empty without any."""
    path = run_folder / "looks" / "looks.json"
    content = read_file(path, notes, list)
    if len(content) > MAX_LOOKS:
        notes.add(f"{path}: the first {MAX_LOOKS} of {len(content)} pictures are shown")
    return [_look(path.parent, row, notes) for row in content[:MAX_LOOKS] if isinstance(row, dict)]


def _look(folder: Path, row: JsonObject, notes: Notes) -> Look:
    overlays = []
    listed = [overlay for overlay in _list(row.get("overlays")) if isinstance(overlay, dict)]
    for overlay in listed[:MAX_OVERLAYS]:
        uri = picture_uri(folder, overlay.get("file"), _OVERLAY_SIDE)
        if uri:
            overlays.append((str(overlay.get("token", "")), uri))
        else:
            notes.add(f"{folder}: overlay {overlay.get('file')!r} cannot be read or is gone")
    tokens = [_list(token)[:MAX_WORDS] for token in _list(row.get("nearest_words"))]
    return Look(
        picture_uri(folder, row.get("picture")),
        image=short_path(row.get("image") or ""),
        prompt=str(row.get("prompt") or ""),
        answer=str(row.get("answer") or ""),
        words=[[pair for item in token if (pair := _word(item))] for token in tokens],
        overlays=overlays,
        left_out=max(0, len(listed) - MAX_OVERLAYS),
    )


def _word(item: Any) -> tuple[str, float] | None:
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str):
        return item[0].strip() or "␣", number(item[1])
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def picture_uri(folder: Path, name: object, side: int = _SIDE) -> str | None:
    """Return an image as a data URI; None for one that is missing, broken or outside the folder.

    Args:
        folder: Holds the image.
        name: Relative to the folder, from a file that may hold anything.
        side: Maximum of the larger side, in pixels.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        return _encode(path, path.stat().st_mtime_ns, side)
    except (OSError, ValueError, RuntimeError):
        return None


@lru_cache(maxsize=1024)
def _encode(path: Path, _changed: int, side: int) -> str | None:
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(file, "WEBP", quality=_QUALITY)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError, EOFError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
