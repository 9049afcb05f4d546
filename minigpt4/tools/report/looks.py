"""Looks at what the model sees: nearest words of the image tokens, and attention over pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.tools.report.pictures import picture_uri
from minigpt4.tools.report.reading import Notes, number, read_json, short_path

MOST_LOOKS, MOST_OVERLAYS, MOST_WORDS = 8, 40, 3
_SIDE = 168  # pixels of an overlay


@dataclass(frozen=True)
class Look:
    """A picture as the model sees it.

    Attributes:
        picture: Data URI; None without one.
        words: For each image token its nearest words with their similarity.
        overlays: Token of the answer and data URI.
        left_out: Overlays that find no room.
    """

    picture: str | None
    image: str
    prompt: str
    answer: str
    words: list[list[tuple[str, float]]]
    overlays: list[tuple[str, str]]
    left_out: int


def read_looks(run_folder: Path, notes: Notes) -> list[Look]:
    """The looks of a run folder; empty without any."""
    folder = run_folder / "looks"
    path = folder / "looks.json"
    content = read_json(path, notes)
    if content is None:
        return []
    if not isinstance(content, list):
        notes.add(f"{path}: holds no list and is left out")
        return []
    looks = [_look(folder, row, notes) for row in content[:MOST_LOOKS] if isinstance(row, dict)]
    if len(content) > MOST_LOOKS:
        notes.add(f"{path}: the first {MOST_LOOKS} of {len(content)} pictures are shown")
    return looks


def _look(folder: Path, row: dict[str, Any], notes: Notes) -> Look:
    overlays = []
    listed = [o for o in _list(row.get("overlays")) if isinstance(o, dict)]
    for overlay in listed[:MOST_OVERLAYS]:
        uri = picture_uri(folder, overlay.get("file"), _SIDE)
        if uri:
            overlays.append((str(overlay.get("token", "")), uri))
        else:
            notes.add(f"{folder}: overlay {overlay.get('file')!r} cannot be read or is gone")
    words = [[pair for item in _list(token)[:MOST_WORDS] if (pair := _word(item))]
             for token in _list(row.get("nearest_words"))]  # fmt: skip
    return Look(
        picture_uri(folder, row.get("picture")),
        image=short_path(row.get("image") or ""),
        prompt=str(row.get("prompt") or ""),
        answer=str(row.get("answer") or ""),
        words=words,
        overlays=overlays,
        left_out=max(0, len(listed) - MOST_OVERLAYS),
    )


def _word(item: Any) -> tuple[str, float] | None:
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str):
        return item[0].strip() or "␣", number(item[1])
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
