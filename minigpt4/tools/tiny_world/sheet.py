"""The contact sheet: picture, reference, and what was said before, after stage 1 and stage 2."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from minigpt4.tools.tiny_world.phrases import description

_COLUMNS = (
    ("picture", 200),
    ("reference", 270),
    ("before: caption", 270),
    ("after stage 1: caption", 270),
    ('after stage 2: "Describe this image in detail."', 330),
)
_ROW, _HEAD, _PAD, _LINE = 190, 46, 14, 19
_PAPER, _INK, _FAINT, _RULE = "#ffffff", "#1c2733", "#6a7885", "#dde3e8"


def draw_contact_sheet(examples: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a PNG with one row for each example (``scene``, ``file``, and a text per stage)."""
    width = sum(column for _, column in _COLUMNS)
    sheet = Image.new("RGB", (width, _HEAD + _ROW * len(examples)), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(14)
    x = 0
    for title, column in _COLUMNS:
        canvas.text((x + _PAD, 15), title, fill=_FAINT, font=small)
        x += column
    for number, example in enumerate(examples):
        top = _HEAD + number * _ROW
        canvas.line([(0, top), (width, top)], fill=_RULE)
        with Image.open(example["file"]) as picture:
            side = _ROW - 2 * _PAD
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (_PAD, top + _PAD))
        texts = [
            description(example["scene"]),
            *(example[s] for s in ("before", "stage1", "stage2")),
        ]
        x = _COLUMNS[0][1]
        for text, (_, column) in zip(texts, _COLUMNS[1:], strict=True):
            for line, words in enumerate(textwrap.wrap(text, (column - 2 * _PAD) // 7)[:8]):
                place = (x + _PAD, top + _PAD + line * _LINE)
                canvas.text(place, words, fill=_INK, font=font)
            x += column
    sheet.save(file)
