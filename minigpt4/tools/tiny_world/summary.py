"""Summary of a quickstart: figures of held-out scenes before training and after each stage."""

from pathlib import Path
from typing import Any

from minigpt4.tools.tiny_world import answers, scoring
from minigpt4.tools.tiny_world.data_sets import read_heldout
from minigpt4.tools.tiny_world.stages import load_stage

STAGES = ("before", "stage1", "stage2")
_SHOWN = 6  # scenes on the contact sheet


def evaluate(output: Path, scenes: Path, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures before training, after stage 1 and after stage 2, and examples for the sheet."""
    exact: dict[str, float] = {}
    failure: dict[str, float] = {}
    chat_exact: dict[str, float] = {}
    questions: dict[str, float] = {}
    controls: dict[str, float] = {}
    heldout = read_heldout(scenes / "heldout_seen")
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
            questions = answers.question_figures(chat, seen, seed)
    summary = {
        "seed": seed,
        "scenes": len(heldout),
        "caption_exact": exact,
        "chat_failure": failure,
        "chat_exact": chat_exact,
        "chat_questions": questions,
        "controls": controls,
    }
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
