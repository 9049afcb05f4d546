"""What a training step costs as it grows: its time and memory, padded and packed, as plots.

    python benchmarks/growth.py --size small --json output/growth.json

Against the batch, the longest caption (the others of a batch spread evenly down to four tokens),
and the number of processes that share out the gradients, each with a batch of its own and, on a
CPU, one thread. Whole stage-1 steps as in train_throughput.py; medians, padded and packed in turn;
memory as it counts it, of one process. Writes growth_batch.png, growth_caption.png and
growth_processes.png.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.training_steps import (  # noqa: E402
    MODES,
    SIZES,
    Size,
    Steps,
    about,
    build,
    described,
    draw,
)
from minigpt4.chat import choose_device  # noqa: E402
from minigpt4.errors import (  # noqa: E402
    ConfigError,
    MiniGPT4Error,
    NothingCheckedError,
    run_guarded,
)
from minigpt4.runners.distributed import Distributed  # noqa: E402

CURVES = {"padded": "sdpa", "packed": "prefix"}  # modes of the throughput table
SHORTEST, LONGEST = 4, 26  # tokens of a caption, but where they are what grows
AXES = {
    "batch": "samples a step",
    "caption": "tokens of the longest caption",
    "processes": "processes, each with its own batch",
}
LONGEST_LEARNT = 159  # tokens; more are cut off
MEMORY_SLACK = 1.05
Point = dict[str, Any]


def measure(
    steps: Steps, size: Size, batch: int, longest: int, repeats: int, seed: int
) -> dict[str, dict[str, float]]:
    """Seconds and bytes of a step in each curve's mode."""
    spread = torch.linspace(SHORTEST, longest, batch).round().int().tolist()
    if batch == 1:
        spread = [longest]
    inputs = draw(steps.model, size, 1, spread, random.Random(seed))
    seconds: dict[str, list[float]] = {curve: [] for curve in CURVES}
    memory = {}
    for repeat in range(repeats + 1):
        for curve, mode in CURVES.items():
            if not repeat:  # it warms up, too
                memory[curve] = steps.memory(MODES[mode], inputs)
                continue
            start = time.perf_counter()
            steps.step(MODES[mode], inputs)
            seconds[curve].append(time.perf_counter() - start)
    return {
        curve: {"seconds": statistics.median(seconds[curve]), "bytes": memory[curve]}
        for curve in CURVES
    }


def one_of_several(arguments: argparse.Namespace, size: Size) -> None:
    """A process that torchrun started; the main one writes what all of them took."""
    accelerator = Accelerator(cpu=arguments.device == "cpu")
    processes = Distributed(accelerator, timeout=600)
    model = build(size, accelerator.device)
    steps = Steps(model, averaged=processes.average_gradients)
    seed = arguments.seed + accelerator.process_index
    found = measure(steps, size, arguments.batch, LONGEST, arguments.repeats, seed)
    every = processes.gather([found])
    if accelerator.is_main_process:
        slowest = {
            curve: {
                figure: max(one[curve][figure] for one in every) for figure in ("seconds", "bytes")
            }
            for curve in CURVES
        }
        arguments.one_of_several.write_text(json.dumps(slowest))
    accelerator.end_training()


def with_processes(count: int, arguments: argparse.Namespace, device: torch.device) -> Point:
    """The figures of so many processes, each with a batch of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        given = {
            "size": arguments.size,
            "device": device.type,
            "batch": arguments.batch,
            "repeats": arguments.repeats,
            "seed": arguments.seed,
            "one-of-several": file,
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={count}", __file__]
        command += [f"--{name}={value}" for name, value in given.items()]
        # One thread each, so that one process does not have what two must share.
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not file.is_file():
            raise MiniGPT4Error(f"{count} processes: exit code {done.returncode}: {done.stderr}")
        return json.loads(file.read_text())


def plot(what: str, points: dict[int, Point], facts: dict[str, Any], file: Path) -> None:
    """Two panels beside each other: time and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, label, of, unit in (
        (panels[0], "step time [ms]", "seconds", 1e-3),
        (panels[1], "memory of a process [MB]", "bytes", 1e6),
    ):
        for curve, style in zip(CURVES, ("o-", "s--"), strict=True):
            heights = [point[curve][of] / unit for point in points.values()]
            panel.plot(list(points), heights, style, label=curve)
        panel.set_xlabel(AXES[what])
        panel.set_ylabel(label)
        panel.set_xticks(list(points))
        panel.set_xlim(0, 1.05 * max(points))
        panel.set_ylim(0, 1.08 * max(panel.get_ylim()))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(f"Stage-1 step, size {described(facts)}", fontsize="medium")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def missed(found: dict[str, dict[int, Point]]) -> list[str]:
    """Bars that were missed; of what was not asked for there are none."""
    lines = []
    for what, points in found.items():
        if what == "caption":  # the more they differ, the more there is to save
            largest = points[max(points)]
            for figure, more in (("bytes", "needs more memory"), ("seconds", "takes longer")):
                if largest["packed"][figure] > largest["padded"][figure]:
                    lines.append(f"{what} {max(points)}: packed {more} than padded")
        if what == "processes":
            for curve in CURVES:
                rate = {value: value / point[curve]["seconds"] for value, point in points.items()}
                if rate[max(rate)] <= rate[min(rate)]:
                    lines.append(f"{what}, {curve}: more of them train no more samples a second")
        elif len(points) > 2:
            lines += [
                f"{what}, {curve}: memory grows more than linearly"
                for curve in CURVES
                if not grows_linearly({v: point[curve]["bytes"] for v, point in points.items()})
            ]
    return lines


def grows_linearly(memory: dict[int, float]) -> bool:
    """Whether the line through the first two points is not overshot at the last."""
    first, second, *_, last = sorted(memory)
    slope = (memory[second] - memory[first]) / (second - first)
    return memory[last] <= MEMORY_SLACK * (memory[first] + slope * (last - first))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--batches", type=int, nargs="*", default=(4, 8, 16, 32))
    parser.add_argument("--captions", type=int, nargs="*", default=(8, 16, 32, 64, 128))
    parser.add_argument("--processes", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--batch", type=int, default=16, help="where it is not what grows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plots", type=Path, default=ROOT / "benchmarks" / "plots")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one-of-several", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    values = (*arguments.batches, *arguments.processes, arguments.batch, arguments.repeats)
    if min(values) < 1 or not all(SHORTEST <= c <= LONGEST_LEARNT for c in arguments.captions):
        raise ConfigError(
            f"numbers must be at least 1, --captions between {SHORTEST} and {LONGEST_LEARNT}"
        )
    device, size = choose_device(arguments.device), SIZES[arguments.size]
    if arguments.one_of_several:
        one_of_several(arguments, size)
        return 0
    facts = about(device, size=arguments.size, repeats=arguments.repeats, seed=arguments.seed)
    print(f"{described(facts)}, medians of {arguments.repeats}")
    torch.manual_seed(arguments.seed)
    steps = Steps(build(size, device))
    found: dict[str, dict[int, Point]] = {axis: {} for axis in AXES}
    for batch in sorted(set(arguments.batches)):
        found["batch"][batch] = measure(
            steps, size, batch, LONGEST, arguments.repeats, arguments.seed
        )
    for longest in sorted(set(arguments.captions)):
        found["caption"][longest] = measure(
            steps, size, arguments.batch, longest, arguments.repeats, arguments.seed
        )
    for count in sorted(set(arguments.processes)):
        if device.type == "cuda" and count > torch.cuda.device_count():
            print(f"{count} processes: not measured, {torch.cuda.device_count()} GPUs")
            continue
        found["processes"][count] = with_processes(count, arguments, device)
    found = {axis: points for axis, points in found.items() if points}
    if not found:
        raise NothingCheckedError("nothing was measured: no --batches, --captions or --processes")
    for axis, points in found.items():
        print_table(axis, points)
        own = {"threads": 1} if axis == "processes" else {}
        plot(axis, points, facts | own, arguments.plots / f"growth_{axis}.png")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**facts, **found}, indent=2) + "\n")
    lines = missed(found)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


def print_table(axis: str, points: dict[int, Point]) -> None:
    print(f"{AXES[axis]:<40}" + "".join(f"{curve:>22}" for curve in CURVES))
    for value, point in points.items():
        cells = (
            f"{1e3 * figures['seconds']:,.0f} ms {figures['bytes'] / 1e6:>8,.0f} MB"
            for figures in (point[curve] for curve in CURVES)
        )
        print(f"{value:>40}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    run_guarded(main)
