"""Where the time of a training step goes, kernel by kernel: torch's profiler over a few steps.

    python benchmarks/step_profile.py --size small --json output/step_profile.json

Steps are those of train_throughput.py, in the mode that is asked for. Beside the ten that take the
longest, those that compute nothing: copies, casts, gathers, and waits of the host for the device.
Together they may take a tenth of the time.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.training_steps import (  # noqa: E402
    MODES,
    SIZES,
    Inputs,
    Mode,
    Steps,
    about,
    build,
    described,
    draw,
    draw_lengths,
    profiler,
)
from minigpt4.chat import choose_device  # noqa: E402
from minigpt4.errors import ConfigError, NothingCheckedError, run_guarded  # noqa: E402

LONGEST, MOST_MOVED = 10, 0.10
MOVES = (  # what computes nothing
    *("copy_", "_to_copy", "clone", "cat", "stack", "constant_pad_nd", "fill_", "zero_"),
    *("index", "index_select", "index_copy", "index_copy_", "index_add_", "_index_put_impl_"),
    *("slice_backward", "select_backward", "nonzero", "_local_scalar_dense", "arange"),
)
_MOVES = {f"aten::{name}" for name in MOVES}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
Figures = dict[str, Any]


def measure(steps: Steps, mode: Mode, batches: Sequence[Inputs]) -> list[Figures]:
    """Operators by the time that they alone take (on a GPU: their kernels), the longest first."""
    gpu = steps.model.device.type == "cuda"
    with profiler() as profiled:
        for inputs in batches:
            steps.step(mode, inputs)
    found = [
        (event.key, event.self_device_time_total if gpu else event.self_cpu_time_total, event.count)
        for event in profiled.key_averages()
        if event.device_type.name == "CPU"  # a kernel's time is told once more beside its own
    ]
    whole = sum(time for _, time, _ in found)
    if not whole:
        raise NothingCheckedError("the profiler saw nothing of the steps")
    return [
        {"name": name, "share": time / whole, "calls": calls / len(batches)}
        for name, time, calls in sorted(found, key=lambda one: -one[1])
    ]


def print_figures(stage: int, figures: Sequence[Figures]) -> None:
    print(f"stage {stage:<50} share  calls a step")
    for row in figures[:LONGEST]:
        print(_line(row))
    moved = [row for row in figures if row["name"] in _MOVES]
    print(f"  computes nothing: {moved_share(figures):.1%} of the time")
    for row in moved[:LONGEST]:
        print("  " + _line(row))
    for row in figures:
        if row["name"] in WAITS:
            print(f"  waits of the host: {row['name']}, {row['calls']:.1f} a step")


def _line(row: Figures) -> str:
    return f"{row['name'][:54]:<54} {row['share']:>7.1%} {row['calls']:>8.1f}"


def moved_share(figures: Sequence[Figures]) -> float:
    return sum(row["share"] for row in figures if row["name"] in _MOVES)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--mode", choices=MODES, default="prefix")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        raise ConfigError("--steps must be at least 1")
    device, size = choose_device(arguments.device), SIZES[arguments.size]
    torch.manual_seed(arguments.seed)
    drawn = random.Random(arguments.seed)
    model = build(size, device)
    steps = Steps(model, MODES[arguments.mode].compiled)
    facts = about(device, size=arguments.size, mode=arguments.mode, steps=arguments.steps)
    print(f"{described(facts)}, {arguments.mode}")
    stages: dict[str, list[Figures]] = {}
    for stage in dict.fromkeys(arguments.stages):
        batches = [
            draw(model, size, stage, draw_lengths(stage, size.batch[stage], drawn), drawn)
            for _ in range(arguments.steps + 2)
        ]
        for inputs in batches[:2]:  # the first ones make buffers, and compile
            steps.step(MODES[arguments.mode], inputs)
        stages[str(stage)] = measure(steps, MODES[arguments.mode], batches[2:])
        print_figures(stage, stages[str(stage)])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**facts, "stages": stages}, indent=2) + "\n")
    over = [stage for stage, figures in stages.items() if moved_share(figures) > MOST_MOVED]
    for stage in over:
        print(f"stage {stage}: more than {MOST_MOVED:.0%} of the time computes nothing")
    return 1 if over else 0


if __name__ == "__main__":
    run_guarded(main)
