"""The embedded default's own loss curves over several seeds, for the report to compare with.

    python benchmarks/reference_curves.py --seeds 3 --json minigpt4/tools/report/tiny_curves.json

Every seed draws its own scenes and trains both stages by the shipped YAML files under torchrun,
with a line of the log for every ten steps.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from minigpt4.errors import run_guarded
from minigpt4.files import write_atomically
from minigpt4.tools.tiny_world.data_sets import write_data_sets
from minigpt4.tools.tiny_world.stages import train_stage1, train_stage2

OPTIONS = ["run.log_freq=10"]
# What shapes a curve; the report says where a run has another value.
SETTINGS = ("init_lr", "min_lr", "warmup_steps", "batch_size_train", "max_epoch", "iters_per_epoch")
STAGES = {"stage1": train_stage1, "stage2": train_stage2}


def train_seed(seed: int, output: Path, options: list[str]) -> None:
    """Both stages, into ``output``."""
    scenes = output / "scenes"
    write_data_sets(scenes, seed)
    for train in STAGES.values():
        train(scenes, output, seed, options)


def collect(outputs: Sequence[Path]) -> dict[str, Any]:
    """What the file holds: settings and the curve of each seed, by stage."""
    settings, curves = {}, {}
    for stage in STAGES:
        folders = [only for output in outputs for only in (output / stage).iterdir()]
        run = yaml.safe_load((folders[0] / "config.yaml").read_text())["run"]
        settings[stage] = {key: run[key] for key in SETTINGS}
        curves[stage] = [read_curve(folder / "log.txt") for folder in folders]
    made_with = f"python benchmarks/reference_curves.py --seeds {len(outputs)}"
    return {"made_with": made_with, "settings": settings, "stages": curves}


def read_curve(log: Path) -> list[list[float]]:
    """``[step of the run, mean loss since the line before]`` of every line of steps."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if row.get("loss") is not None and "step" in row]
    per_epoch = max(row["step"] for row in rows)
    return [[row["epoch"] * per_epoch + row["step"], round(row["loss"], 4)] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("output/reference_curves"))
    parser.add_argument("--json", type=Path, required=True, help="file for the curves")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c", help="of both stages")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    outputs = [arguments.output / f"seed{seed}" for seed in range(arguments.seeds)]
    for seed, output in enumerate(outputs):
        train_seed(seed, output, OPTIONS + arguments.options)
    content = collect(outputs)
    text = json.dumps(content, separators=(",", ":")).replace("]],[[", "]],\n[[") + "\n"
    write_atomically(arguments.json, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_guarded(main)
