"""Watch it learn: draw scenes, train stage 1 and 2 on them, score held-out ones, make a report."""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.tiny_world.data_sets import VALIDATION, read_heldout, write_data_sets

if TYPE_CHECKING:  # torch takes seconds to import; the other commands do without
    from minigpt4.chat import Chat

_EVAL_CONFIG = "eval_configs/tiny_eval.yaml"
_SHOWN = 6  # scenes on the contact sheet
_LOOKED_AT = 3  # scenes of which the report shows where words look

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``quickstart``."""
    parser.add_argument("--seed", type=int, default=0, help="of scenes and training")
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--pairs", type=int, default=5000, help="image-caption pairs for stage 1")
    parser.add_argument("--heldout", type=int, default=300, help="scenes in each held-out split")
    parser.add_argument("--stage1-options", nargs="*", default=[], metavar="a.b=c")
    parser.add_argument("--stage2-options", nargs="*", default=[], metavar="a.b=c")


def run(arguments: argparse.Namespace) -> None:
    """All of it; ends with a table, ``summary.json``, ``contact_sheet.png`` and a report."""
    output, seed = arguments.output, arguments.seed
    scenes = output / "scenes"
    write_data_sets(scenes, seed, pairs=arguments.pairs, heldout=arguments.heldout)
    stage1_seconds = train_stage1(scenes, output, seed, arguments.stage1_options)
    stage2_seconds = train_stage2(scenes, output, seed, arguments.stage2_options)
    logger.info("\n== scoring %d held-out scenes of each split", arguments.heldout)
    summary, examples = evaluate(output, scenes, seed)
    summary |= {"stage1_seconds": stage1_seconds, "stage2_seconds": stage2_seconds}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    from minigpt4.tools.tiny_world.sheet import draw_contact_sheet

    draw_contact_sheet(examples, output / "contact_sheet.png")
    look_inside(output, scenes, seed)
    from minigpt4.tools.report.making import make_report

    page = make_report(
        [_run_of(output, stage) for stage in ("stage1", "stage2")], output / "report"
    )
    print(_table(summary))
    print(f"figures: {output}/summary.json   pictures: {output}/contact_sheet.png   report: {page}")
    print("now chat with it: make demo")


def _validated(data_set: str, held_out: Path) -> list[str]:
    """Options: measure on held-out scenes while it learns, and with exchanged pictures."""
    return [
        "plugins=[minigpt4.tools.tiny_world.scoring]",  # metrics that know scenes
        f"datasets.{data_set}.build_info.val_storage={held_out}",
        "run.valid_splits=[val]",
        "run.valid_control=True",
        "run.metrics=[scene_pairs]",
        "run.batch_size_eval=50",
        "chat.max_new_tokens=60",
    ]


def train_stage1(scenes: Path, output: Path, seed: int, options: Sequence[str] = ()) -> float:
    """Stage 1 on ``scenes``; lands at ``output/stage1.pth``. Seconds of wall time."""
    storages = [
        f"datasets.{name}.build_info.storage={scenes}/{name}/" for name in ("laion", "cc_sbu")
    ]
    config = "train_configs/tiny_stage1_pretrain.yaml"
    validated = _validated("cc_sbu", scenes / VALIDATION / "captions")
    own = [*storages, *validated, "run.eval_every_steps=25", "run.valid_captions=30"]
    return _train("stage1", config, output, [*own, f"run.seed={seed}", *options])


def train_stage2(scenes: Path, output: Path, seed: int, options: Sequence[str] = ()) -> float:
    """Stage 2 from ``output/stage1.pth``; lands at ``output/stage2.pth``. Seconds of wall time."""
    own = [
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/",
        *_validated("cc_sbu_align", scenes / VALIDATION / "descriptions"),
        *("run.eval_every_steps=100", "run.valid_captions=30"),
        f"model.ckpt={output}/stage1.pth",
        f"run.seed={seed}",
    ]
    config = "train_configs/tiny_stage2_finetune.yaml"
    return _train("stage2", config, output, [*own, *options])


def _train(stage: str, config: str, output: Path, options: list[str]) -> float:
    runs = output / stage
    shutil.rmtree(runs, ignore_errors=True)
    options = [f"run.output_dir={runs}", *options]
    arguments = ["train.py", "--cfg-path", config, "--options", *options]
    logger.info("\n== %s: torchrun --nproc-per-node 1 %s", stage, " ".join(arguments))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    # torchrun leaves the number of threads open for one process; accelerate warns about that.
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), **os.environ}
    started = time.monotonic()
    status = subprocess.run([*launcher, "1", *arguments], check=False, env=environment).returncode
    seconds = time.monotonic() - started
    checkpoints = sorted(runs.glob("*/checkpoint_[0-9]*.pth"), key=_epoch)
    if status != 0 or not checkpoints:
        raise MiniGPT4Error(f"{stage} failed (exit code {status}); its own message stands above")
    shutil.copyfile(checkpoints[-1], output / f"{stage}.pth")
    return round(seconds, 1)


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint_"))


def evaluate(output: Path, scenes: Path, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures before training, after stage 1 and after stage 2, and examples for the sheet."""
    from minigpt4.tools.tiny_world import answers, scoring

    exact: dict[str, float] = {}
    failure: dict[str, float] = {}
    chat_exact: dict[str, float] = {}
    questions: dict[str, float] = {}
    controls: dict[str, float] = {}
    heldout = read_heldout(scenes / "heldout_seen")
    examples: list[dict[str, Any]] = [{"scene": s, "file": file} for s, file in heldout[:_SHOWN]]
    for stage in ("before", "stage1", "stage2"):
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


def look_inside(output: Path, scenes: Path, seed: int) -> None:
    """Where the words of stage 2 look, of a few held-out scenes; beside its run, for the report."""
    from minigpt4.tools.interpret import write_looks
    from minigpt4.tools.tiny_world import answers

    folder = _run_of(output, "stage2") / "looks"
    folder.mkdir(exist_ok=True)
    files = [file for _, file in read_heldout(scenes / "heldout_seen")[:_LOOKED_AT]]
    for _ in write_looks(load_stage("stage2", output, seed), files, folder, answers.DESCRIBE):
        pass


def _run_of(output: Path, stage: str) -> Path:
    """The folder of a stage's run, of which there is one."""
    (folder,) = (output / stage).iterdir()
    return folder


def load_stage(stage: str, output: Path, seed: int) -> "Chat":
    """A chat with the projection of a stage; ``before`` is the untrained one."""
    import torch

    from minigpt4.chat import load_chat

    torch.manual_seed(seed)  # the untrained projection's init
    ckpt = "" if stage == "before" else f"{output}/{stage}.pth"
    return load_chat(_EVAL_CONFIG, [f"model.ckpt={ckpt}"])


def _table(summary: dict[str, Any]) -> str:
    """The summary as people read it."""
    exact, failure = summary["caption_exact"], summary["chat_failure"]

    def row(label: str, *values: float | None) -> str:
        cells = ["      –" if value is None else f"{100 * value:5.1f} %" for value in values]
        return f"  {label:<44}" + "  ".join(f"{cell:>8}" for cell in cells)

    lines = [
        f"\n  {summary['scenes']} held-out scenes, seed {summary['seed']}"
        f"{'before':>27}  {'stage 1':>8}  {'stage 2':>8}",
        row("caption names the right things", exact["before"], exact["stage1"], exact["stage2"]),
        row("  two things", None, exact["stage1_two_objects"], None),
        row("  three things", None, exact["stage1_three_objects"], None),
        row("  pairs never shown in training", None, exact["stage1_withheld_pairs"], None),
        row("  says where they are", None, exact["stage1_layout"], None),
        row(
            "  control: another scene's picture", None, summary["controls"]["shuffled_images"], None
        ),
        row(
            "chat: answer fails (cut, repeated, wrong form)",
            None,
            failure["stage1"],
            failure["stage2"],
        ),
        row("chat: description exact", None, None, summary["chat_exact"]["stage2"]),
        row(
            "  pairs never shown in training",
            None,
            None,
            summary["chat_exact"]["stage2_withheld_pairs"],
        ),
    ]
    for kind, value in summary["chat_questions"].items():
        lines.append(row(f"  question: {kind}", None, None, value))
    seconds = summary["stage1_seconds"], summary["stage2_seconds"]
    lines.append("  training took {:.0f} s for stage 1, {:.0f} s for stage 2".format(*seconds))
    return "\n".join(lines)
