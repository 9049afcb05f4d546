"""Summary of a quickstart: figures, a table and a contact sheet of held-out scenes by stage."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from minigpt4.tools.tiny_world import answers, scoring
from minigpt4.tools.tiny_world.data_sets import read_heldout
from minigpt4.tools.tiny_world.phrases import description
from minigpt4.tools.tiny_world.stages import load_stage

STAGES = ("before", "stage1", "stage2")
_SHOWN = 6  # scenes on the contact sheet
_COLUMNS = (
    ("picture", 200),
    ("reference", 270),
    ("before: caption", 270),
    ("after stage 1: caption", 270),
    ('after stage 2: "Describe this image in detail."', 330),
)
_ROW, _HEAD, _PAD, _LINE = 190, 46, 14, 19
_PAPER, _INK, _FAINT, _RULE = "#ffffff", "#1c2733", "#6a7885", "#dde3e8"


def evaluate(output: Path, scenes: Path, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return figures before training, after stage 1 and after stage 2, and examples to show."""
    heldout = read_heldout(scenes / "heldout_seen")
    summary: dict[str, Any] = {"seed": seed, "scenes": len(heldout)}
    names = ("caption_exact", "chat_failure", "chat_exact", "chat_questions", "controls")
    exact, failure, chat_exact, questions, controls = (summary.setdefault(n, {}) for n in names)
    examples: list[dict[str, Any]] = [{"scene": s, "file": file} for s, file in heldout[:_SHOWN]]
    for stage in STAGES:
        chat = load_stage(stage, output, seed)
        seen = answers.encode_split(chat, heldout)
        captions = answers.write_captions(chat, seen.images)
        descriptions = answers.describe(chat, seen)
        figures = scoring.caption_figures(seen.scenes, captions)
        told = scoring.description_figures(seen.scenes, descriptions)
        exact[stage] = figures["exact"]
        for index, example in enumerate(examples):
            example[stage] = descriptions[index] if stage == "stage2" else captions[index]
        if stage == "before":
            continue
        failure[stage] = told["failure"]
        withheld = answers.encode_split(chat, read_heldout(scenes / "heldout_withheld"))
        if stage == "stage1":
            for name in ("two_objects", "three_objects", "layout"):
                exact[f"stage1_{name}"] = figures[name]
            captions = answers.write_captions(chat, withheld.images)
            figures = scoring.caption_figures(withheld.scenes, captions)
            exact["stage1_withheld_pairs"] = figures["exact"]
            captions = answers.write_captions(chat, seen.images.roll(1, 0))  # of other scenes
            controls["shuffled_images"] = scoring.caption_figures(seen.scenes, captions)["exact"]
        else:
            chat_exact["stage2"] = told["exact"]
            told = scoring.description_figures(withheld.scenes, answers.describe(chat, withheld))
            chat_exact["stage2_withheld_pairs"] = told["exact"]
            questions |= answers.question_figures(chat, seen, seed)
    return summary, examples


def as_table(summary: dict[str, Any]) -> str:
    """Return the summary as a table."""
    exact, failure = summary["caption_exact"], summary["chat_failure"]

    def row(label: str, **values: float) -> str:
        found = [values.get(stage) for stage in STAGES]
        cells = ["      –" if value is None else f"{100 * value:5.1f} %" for value in found]
        return f"  {label:<44}" + "  ".join(f"{cell:>8}" for cell in cells)

    chat, controls = summary["chat_exact"], summary["controls"]
    lines = [
        f"\n  {summary['scenes']} held-out scenes, seed {summary['seed']}"
        f"{'before':>27}  {'stage 1':>8}  {'stage 2':>8}",
        row("caption names the right things", **{stage: exact[stage] for stage in STAGES}),
        row("  two things", stage1=exact["stage1_two_objects"]),
        row("  three things", stage1=exact["stage1_three_objects"]),
        row("  pairs never shown in training", stage1=exact["stage1_withheld_pairs"]),
        row("  says where they are", stage1=exact["stage1_layout"]),
        row("  control: another scene's picture", stage1=controls["shuffled_images"]),
        row("chat: answer fails (cut, repeated, wrong form)", **failure),
        row("chat: description exact", stage2=chat["stage2"]),
        row("  pairs never shown in training", stage2=chat["stage2_withheld_pairs"]),
    ]
    for kind, value in summary["chat_questions"].items():
        lines.append(row(f"  question: {kind}", stage2=value))
    seconds = summary["stage1_seconds"], summary["stage2_seconds"]
    lines.append("  training took {:.0f} s for stage 1, {:.0f} s for stage 2".format(*seconds))
    return "\n".join(lines)


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
        texts = [description(example["scene"]), *(example[stage] for stage in STAGES)]
        x = _COLUMNS[0][1]
        for text, (_, column) in zip(texts, _COLUMNS[1:], strict=True):
            for line, words in enumerate(textwrap.wrap(text, (column - 2 * _PAD) // 7)[:8]):
                place = (x + _PAD, top + _PAD + line * _LINE)
                canvas.text(place, words, fill=_INK, font=font)
            x += column
    sheet.save(file)
