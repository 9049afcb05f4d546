"""The embedded default over several seeds, held against its bars; exit code 1 below one.

    python benchmarks/tiny_world.py --seeds 3 --json output/tiny_world.json

Every seed draws its own scenes, trains both stages under torchrun, and scores text generated for
held-out scenes. The control repeats stage 1 with every picture given another picture's caption.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.cli import quickstart
from minigpt4.errors import NothingCheckedError, run_guarded
from minigpt4.tools.tiny_world.data_sets import read_heldout, write_data_sets
from minigpt4.tools.tiny_world.stages import load_stage, train_stage1

ASSETS = Path("assets/tiny")
# figure: (at least, at most) for every seed; None = no bar, reported only
BARS: dict[str, tuple[float | None, float | None]] = {
    "stage1_seconds": (None, 150),
    "stage1_samples_per_second": (250, None),  # where the time goes: stage1_profile.py
    "caption_exact.before": (None, 0.03),
    "caption_exact.stage1": (0.85, None),
    "caption_exact.stage1_two_objects": (0.90, None),
    "caption_exact.stage1_three_objects": (0.60, None),
    "caption_exact.stage1_withheld_pairs": (0.75, None),
    "caption_exact.stage1_layout": (0.40, None),
    "controls.shuffled_pairs": (None, 0.03),
    "controls.shuffled_images": (None, 0.03),
    "stage2_seconds": (None, 90),
    "chat_failure.stage1": (0.30, None),
    "chat_failure.stage2": (None, 0.10),
    "chat_exact.stage2": (0.75, None),
    "chat_exact.stage2_withheld_pairs": (0.60, None),
    "chat_questions.shape": (0.85, None),
    "chat_questions.relation": (0.85, None),
    "chat_questions.color": (None, None),
    "chat_questions.size": (None, None),
    "chat_questions.count": (None, None),
    "chat_questions.background": (None, None),
    "chat_questions.yesno": (None, None),
    "caption_exact.stage2": (None, None),
}


def run_seed(seed: int, output: Path, pairs: int, heldout: int, options: list[str]) -> Any:
    """The quickstart of one seed and its control; the figures."""
    arguments = argparse.Namespace(
        seed=seed,
        output=output,
        pairs=pairs,
        heldout=heldout,
        stage1_options=options,
        stage2_options=options,
    )
    quickstart.run(arguments)
    summary = json.loads((output / "summary.json").read_text())
    summary["stage1_samples_per_second"] = samples_per_second(output / "stage1")
    summary["controls"]["shuffled_pairs"] = run_control(seed, output / "control", arguments)
    return summary


def samples_per_second(runs: Path) -> float:
    """The median over the log lines of the one run in a folder."""
    (log,) = runs.glob("*/log.txt")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    speeds = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    return statistics.median(speeds)


def run_control(seed: int, output: Path, arguments: argparse.Namespace) -> float:
    """Share of exact captions after stage 1 on shuffled pairs."""
    from minigpt4.tools.tiny_world import answers, scoring

    scenes = output / "scenes"
    write_data_sets(
        scenes,
        seed,
        pairs=arguments.pairs,
        heldout=arguments.heldout,
        shuffle_captions=True,
    )
    train_stage1(scenes, output, seed, arguments.stage1_options)
    chat = load_stage("stage1", output, seed)
    split = answers.encode_split(chat, read_heldout(scenes / "heldout_seen"))
    captions = answers.write_captions(chat, split.images)
    return scoring.caption_figures(split.scenes, captions)["exact"]


def look_up(summary: dict[str, Any], figure: str) -> float:
    """A figure by its dotted name."""
    value: Any = summary
    for part in figure.split("."):
        value = value[part]
    return float(value)


def hold_against_bars(summaries: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """A table line for each figure, and whether every seed reaches its bar."""
    seeds = "".join(f"{'seed ' + str(summary['seed']):>10}" for summary in summaries)
    yield f"{'figure':<38}{'bar':>9}{seeds}", True
    for figure, (low, high) in BARS.items():
        values = [look_up(summary, figure) for summary in summaries]
        held = all((low is None or v >= low) and (high is None or v <= high) for v in values)
        bar = "" if low is high is None else f"≥ {low:g}" if high is None else f"≤ {high:g}"
        cells = "".join(f"{v:>10.1f}" if "second" in figure else f"{v:>10.3f}" for v in values)
        yield f"{figure:<38}{bar:>9}{cells}{'' if held else '   MISSED'}", held


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--output", type=Path, default=Path("output/tiny_world"))
    parser.add_argument("--pairs", type=int, default=5000, help="image-caption pairs for stage 1")
    parser.add_argument("--heldout", type=int, default=300, help="scenes in each held-out split")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c", help="of both stages")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise NothingCheckedError("--seeds: nothing to check; give at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summaries = [
        run_seed(
            seed,
            arguments.output / f"seed_{seed}",
            arguments.pairs,
            arguments.heldout,
            arguments.options,
        )
        for seed in range(arguments.seeds)
    ]
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summaries, indent=2) + "\n")
    size = sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file())
    lines = [*hold_against_bars(summaries)]
    lines.append((f"assets/tiny: {size / 1e6:.2f} MB (bar ≤ 8)", size <= 8e6))
    print("\n".join(["", *(line for line, _ in lines)]))
    below = [line.split()[0] for line, held in lines if not held]
    print(f"below the bar: {', '.join(below)}" if below else "every bar is reached")
    return 1 if below else 0


if __name__ == "__main__":
    run_guarded(main)
