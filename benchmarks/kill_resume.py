"""Kill a real training with SIGKILL at random moments, resume it, and compare with one left alone.

    python benchmarks/kill_resume.py --kills 100 --processes 1
    python benchmarks/kill_resume.py --kills 100 --processes 2

Every job is ``torchrun … train.py`` on the embedded default; a kill takes the launcher, its
processes and their readers at once, as a machine does that loses power. ``run.resume: auto`` goes
on. A kill is survived when the job that follows goes on from a saved step; at the end the
projection and the optimizer must be those of the job left alone, bit for bit, and so must the log,
the validations with the best of them, and the list of bad samples. Exit code 1 if anything differs
or nothing was killed.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from minigpt4.errors import MiniGPT4Error, NothingCheckedError, run_guarded
from minigpt4.tools.tiny_world.data_sets import write_data_sets
from tests.helpers.processes import kill_all
from tests.helpers.training import compare

CONFIG = "train_configs/tiny_stage1_pretrain.yaml"
_KILLS_A_RUN = 25
_STEPS_A_KILL = 4
_DEADLINE = 600.0  # seconds that one job may take


@dataclass
class Figures:
    """What was tried and what came of it."""

    processes: int
    kills: int = 0
    survived: int = 0
    runs: int = 0
    equal: int = 0
    differences: list[str] = field(default_factory=list)


def command(output: Path, scenes: Path, processes: int, options: list[str]) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [
        *launcher,
        *("--nproc-per-node", str(processes), "train.py", "--cfg-path", CONFIG, "--options"),
        f"datasets.laion.build_info.storage={scenes}/laion/",
        f"datasets.cc_sbu.build_info.storage={scenes}/cc_sbu/",
        f"run.output_dir={output}",
        "run.resume=auto",
        *options,
    ]


def newest_step(output: Path) -> int:
    """The newest saved step of the one run in a folder; 0 without one."""
    found = [int(file.stem.removeprefix("state_")) for file in output.glob("*/state_*.pth")]
    return max(found, default=0)


@contextlib.contextmanager
def job(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running job; whatever is left of it is killed in the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        running = subprocess.Popen(
            arguments, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            yield running
        finally:
            kill_all(running.pid)
            running.wait()


def train_to_the_end(arguments: list[str], log: Path) -> None:
    with job(arguments, log) as running:
        code = running.wait(timeout=_DEADLINE)
    if code != 0:
        raise MiniGPT4Error(f"a job left alone ended with {code}: see {log}")


def kill_once(arguments: list[str], output: Path, log: Path, goal: int, wait: float) -> int | None:
    """Run until step ``goal`` is saved and ``wait`` seconds more, then kill.

    Returns:
        The newest saved step at that moment; None if the job ended before.
    """
    until = time.monotonic() + _DEADLINE
    with job(arguments, log) as running:
        while newest_step(output) < goal:
            if running.poll() is not None:
                return None
            if time.monotonic() > until:
                raise MiniGPT4Error(f"step {goal} was not reached in {_DEADLINE:.0f} s: see {log}")
            time.sleep(0.002)
        time.sleep(wait)
        if running.poll() is not None:
            return None
        kill_all(running.pid)
        return newest_step(output)


def break_some(shard: Path) -> None:
    """Make some of a shard's pictures unreadable, so that bad samples lie on the way."""
    content = bytearray(shard.read_bytes())
    for number, position in enumerate(find_all(content, b"\xff\xd8\xff")):
        if number % 9 == 4:
            content[position : position + 3] = b"bad"
    shard.write_bytes(content)


def find_all(content: bytearray, mark: bytes) -> Iterator[int]:
    position = content.find(mark)
    while position >= 0:
        yield position
        position = content.find(mark, position + 1)


def one_run(figures: Figures, folder: Path, kills: int, seed: int) -> None:
    """One job left alone and one that is killed again and again; both to the end."""
    rng = random.Random(f"{seed}/{figures.processes}/{figures.runs}")
    scenes = folder / "scenes"
    write_data_sets(scenes, seed, pairs=400, descriptions=0, heldout=0)
    break_some(scenes / "laion" / "00000.tar")
    steps = kills * _STEPS_A_KILL + 8
    options = [
        f"run.seed={seed}",
        *("run.max_epoch=2", f"run.iters_per_epoch={steps // 2}", "run.warmup_steps=5"),
        *("run.batch_size_train=4", "run.num_workers=1", "run.log_freq=3"),
        f"run.save_every_steps={rng.randint(1, 3)}",
        *("datasets.cc_sbu.build_info.val_fraction=0.1", "run.valid_splits=[val]"),
        *("run.eval_every_steps=4", "run.valid_captions=2", "chat.max_new_tokens=4"),
    ]
    alone, killed = folder / "alone", folder / "killed"
    arguments = [command(out, scenes, figures.processes, options) for out in (alone, killed)]
    train_to_the_end(arguments[0], folder / "alone.log")
    goal = 0
    for _ in range(kills):
        before = newest_step(killed)
        goal = min(before + rng.randint(0 if before else 1, 2 * _STEPS_A_KILL - 2), steps - 2)
        reached = kill_once(arguments[1], killed, folder / "killed.log", goal, rng.random() * 0.2)
        if reached is None:
            break
        figures.kills += 1
        figures.survived += newest_step(killed) >= before
    if newest_step(killed) < steps:  # else the last kill came when all was done
        train_to_the_end(arguments[1], folder / "killed.log")
    figures.runs += 1
    differences = compare(killed, alone)
    figures.equal += not differences
    figures.differences += [f"run {figures.runs}: {text}" for text in differences]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        raise MiniGPT4Error("--processes: give at least 1")
    if arguments.kills < 1:
        raise NothingCheckedError("--kills: nothing to check; give at least 1")
    figures = Figures(arguments.processes)
    while figures.kills < arguments.kills:
        kills = min(_KILLS_A_RUN, arguments.kills - figures.kills)
        folder = Path(tempfile.mkdtemp(prefix="kill_resume_"))
        one_run(figures, folder, kills, arguments.seed + figures.runs)
        print(
            f"{figures.kills} kills, {figures.survived} survived; "
            f"{figures.equal} of {figures.runs} runs equal to one left alone",
            flush=True,
        )
        if figures.differences:
            print("\n".join([*figures.differences, f"kept: {folder}"]))
            break
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(vars(figures), indent=2) + "\n")
    whole = figures.survived == figures.kills >= arguments.kills
    whole = whole and figures.equal == figures.runs
    return 0 if whole else 1


if __name__ == "__main__":
    run_guarded(main)
