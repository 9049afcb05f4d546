"""Training steps a second, lever by lever, from the original's way to ours: one table, one run.

    python benchmarks/train_throughput.py --size small --json output/train_throughput.json

Whole steps on random weights (see training_steps.py). Each mode adds a lever to the one before:
original, sdpa, packed, prefix, compiled, cached; two others are held against packed and are no
levers: trainable, checkpointed. Modes take turns, figures are medians.

"Of ceiling": the arithmetic that the stage cannot do without (a packed step with logits at targets
only, towers included but in the row "cached", which is spared theirs), as torch counts it, over the
time and over what a plain matrix product reaches on the device. "Memory": weights that the mode
uses, and the most that its step allocates beside them. Tokens are real ones, padding is none.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.training_steps import (  # noqa: E402
    MODES,
    SIZES,
    Inputs,
    Mode,
    Size,
    Steps,
    about,
    build,
    described,
    draw,
    draw_lengths,
)
from minigpt4.chat import choose_device  # noqa: E402
from minigpt4.errors import ConfigError, NothingCheckedError, run_guarded  # noqa: E402

Row = dict[str, Any]
ALWAYS = ("original", "packed")  # the others are held against them


def matrix_product_flops(device: torch.device) -> float:
    """Floating-point operations a second of a square product, the best of ten."""
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def once() -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return 2 * side**3 / min(once() for _ in range(10))


class Reference:
    """Floating-point operations that a step of so many positions cannot do without."""

    def __init__(self, steps: Steps, inputs: Inputs, positions: float) -> None:
        self.positions = positions
        with FlopCounterMode(display=False) as whole:
            steps.step(Mode(), inputs)
        counted = steps.model.batch_positions
        with FlopCounterMode(display=False) as cached:
            steps.step(Mode(cached=True), inputs)
        self._towers = whole.get_total_flops() - cached.get_total_flops()
        self._language_model = cached.get_total_flops() * positions / counted

    def of(self, mode: str) -> float:
        return self._language_model + (0 if MODES[mode].cached else self._towers)


def attempt(work: Callable[[], Any]) -> tuple[float, Any] | None:
    """Seconds of some work, and what it gave; None where the GPU's memory did not suffice."""
    start = time.perf_counter()
    try:
        found = work()
    except torch.OutOfMemoryError:
        pass  # not freed here: the error still holds what was computed
    else:
        return time.perf_counter() - start, found
    gc.collect()
    torch.cuda.empty_cache()
    return None


def measure(
    steps: Steps, size: Size, stage: int, modes: Sequence[str], arguments: argparse.Namespace
) -> list[Row]:
    """A row for each mode; without figures where it ran out of memory."""
    model, drawn = steps.model, random.Random(arguments.seed)
    batch = arguments.batch or size.batch[stage]
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    memory, positions, running, ceiling = {}, [], list(modes), 0.0
    for repeat in range(arguments.repeats + 2):  # the first compiles, the second counts memory
        inputs = draw(model, size, stage, draw_lengths(stage, batch, drawn), drawn)
        for mode in list(running):
            work = steps.memory if repeat == 1 else steps.step
            done = attempt(partial(work, MODES[mode], inputs))
            if done is None:
                running.remove(mode)
            elif repeat == 1:
                memory[mode] = done[1]
            elif repeat > 1:
                seconds[mode].append(done[0])
                positions += [model.batch_positions] if mode == "packed" else []
        ceiling = max(ceiling, matrix_product_flops(model.device))
    medians = {mode: statistics.median(seconds[mode]) for mode in running}
    original = medians.get("original")
    reference = None
    if "packed" in running:
        reference = Reference(steps, inputs, statistics.mean(positions))
    rows = []
    for mode in modes:
        row: Row = {"stage": stage, "mode": mode, "batch": batch, "out_of_memory": True}
        if mode in running:
            step = medians[mode]
            row |= {
                "out_of_memory": False,
                "step_seconds": step,
                "samples_per_second": batch / step,
                "tokens_per_second": reference and reference.positions / step,
                "share_of_ceiling": reference and reference.of(mode) / step / ceiling,
                "peak_memory_bytes": memory[mode],
                "ratio": original and original / step,
            }
        rows.append(row)
    return rows


def missed(rows: Sequence[Row], size: Size) -> list[str]:
    """Bars that were missed, or that nothing was measured for; a size without bars misses none."""
    found = {(row["stage"], row["mode"]): row for row in rows if not row.get("out_of_memory")}
    lines = []
    for stage, bars in size.bars.items():
        for mode, figures in bars.items():
            for figure, bar in figures.items():
                got = found.get((stage, mode), {}).get(figure)
                if got is None:
                    lines.append(f"stage {stage}, {mode}: {figure} was not measured")
                elif got < bar:
                    lines.append(f"stage {stage}, {mode}: {figure} {got:.2f} is below {bar}")
        # As many levers as "cached" has, but for that one.
        uncached = "compiled" if (stage, "compiled") in found else "prefix"
        for dear, cheap, figure, bar in (
            ("trainable", "packed", "step_seconds", 1.3),
            (uncached, "cached", "step_seconds", 1.0),
            (uncached, "cached", "peak_memory_bytes", 1.0),
        ):
            what = f"stage {stage}, {figure} of {dear} over {cheap}"
            if not {(stage, dear), (stage, cheap)} <= found.keys():
                lines.append(f"{what}: not measured")
            elif (got := found[stage, dear][figure] / found[stage, cheap][figure]) <= bar:
                lines.append(f"{what}: {got:.2f}, more than {bar} is asked for")
    return lines


def print_table(rows: Sequence[Row]) -> None:
    print("stage mode         batch  samples/s   tokens/s  of ceiling     memory   ratio")
    for row in rows:
        named = f"{row['stage']:>5} {row['mode']:<12} {row['batch']:>5}"
        if row["out_of_memory"]:
            print(f"{named}  out of memory")
            continue
        speed = f"{row['samples_per_second']:>10.1f} {_told(row['tokens_per_second'], '.0f'):>10}"
        share, memory = (
            _told(row["share_of_ceiling"], ".0%"),
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
        )
        print(f"{named} {speed} {share:>11} {memory:>10} {_told(row['ratio'], '.2f'):>7}")


def _told(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


def print_aims(rows: Sequence[Row], size: Size) -> None:
    found = {(row["stage"], row["mode"]): row for row in rows}
    for stage, aims in size.aims.items():
        for mode, aim in aims.items():
            got = found.get((stage, mode), {}).get("samples_per_second")
            print(f"aim: stage {stage}, {mode}: {aim} samples/s; here {_told(got, '.0f')}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument(
        "--modes",
        nargs="*",
        choices=MODES,
        default=tuple(MODES),
        help=f"beside these two: {', '.join(ALWAYS)}",
    )
    batches = (f"{size.batch[1]} and {size.batch[2]} ({name})" for name, size in SIZES.items())
    parser.add_argument("--batch", type=int, help=f"default, by stage: {', '.join(batches)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or (arguments.batch is not None and arguments.batch < 1):
        raise ConfigError("--repeats and --batch must be at least 1")
    device, size = choose_device(arguments.device), SIZES[arguments.size]
    torch.manual_seed(arguments.seed)
    modes = [mode for mode in MODES if mode in {*ALWAYS, *arguments.modes}]
    steps = Steps(build(size, device), "compiled" in modes)
    facts = about(device, size=arguments.size, repeats=arguments.repeats, seed=arguments.seed)
    print(f"{described(facts)}; medians of {arguments.repeats}", flush=True)
    rows: list[Row] = []
    for stage in dict.fromkeys(arguments.stages):
        found = measure(steps, size, stage, modes, arguments)
        print_table(found)
        rows += found
    if all(row["out_of_memory"] for row in rows):
        raise NothingCheckedError("every mode ran out of memory; a smaller --batch or --size")
    print_aims(rows, size)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    lines = missed(rows, size)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
