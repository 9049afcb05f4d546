"""Short trainings on the drawn world: their options, the launcher, and comparison of two runs."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.helpers.processes import finished
from tests.helpers.repo import EntryPoint
from train import main

Stop = Callable[[int, int], None]


STAGE1 = "train_configs/tiny_stage1_pretrain.yaml"


STAGE2 = "train_configs/tiny_stage2_finetune.yaml"


def stage1_options(scenes: Path, output: Path, **run: object) -> list[str]:
    short = {"max_epoch": 2, "iters_per_epoch": 3, "batch_size_train": 4, "num_workers": 0} | run
    return [
        f"datasets.laion.build_info.storage={scenes}/laion/",
        f"datasets.cc_sbu.build_info.storage={scenes}/cc_sbu/",
        f"run.output_dir={output}",
        *[f"run.{key}={value}" for key, value in short.items()],
    ]


@dataclass(frozen=True)
class Trainings:
    """Short trainings of stage 1 in this process; the fixture ``trainings`` gives one.

    Each name in ``options`` is an output folder below ``folder``.
    """

    entry: EntryPoint
    scenes: Path
    folder: Path

    def options(self, name: str = "out", **run: object) -> list[str]:
        return stage1_options(self.scenes, self.folder / name, **run)

    def run(self, *options: object, config: object = STAGE1) -> tuple[int, str]:
        """Return exit code and stderr."""
        return self.entry(main, "--cfg-path", config, "--options", *options)

    def output(self, name: str = "out") -> Path:
        return only_run(self.folder / name)


def training_command(
    options: Sequence[str], config: str, processes: int | None, *launcher: str
) -> list[str]:
    """``train.py`` alone, or under torchrun with options of the launcher's own."""
    launch = [sys.executable]
    if processes:
        launch += ["-m", "torch.distributed.run", *(launcher or ["--standalone"])]
        launch += ["--nproc-per-node", str(processes)]
    return [*launch, "train.py", "--cfg-path", config, "--options", *options]


def train(
    *options: str, config: str = STAGE1, processes: int | None = None
) -> subprocess.CompletedProcess[str]:
    return finished(training_command(options, config, processes))


def only_run(output: Path) -> Path:
    (run,) = output.iterdir()
    return run


def trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["model"]


# Figures of the log that depend on the clock.
_OF_THE_CLOCK = {"samples_per_second", "tokens_per_second", "data_wait", "memory_gb", "eta_seconds"}


def compare(killed: Path, alone: Path) -> list[str]:
    """What differs between two runs that should be equal."""
    differences = []
    (one,), (other,) = list(killed.iterdir()), list(alone.iterdir())
    names = [{f.name for f in run.glob("checkpoint_*.pth")} for run in (one, other)]
    if names[0] != names[1]:
        differences.append(f"checkpoints: {sorted(names[0] ^ names[1])}")
    for name in sorted(names[0] & names[1]):
        contents = [torch.load(run / name, weights_only=True) for run in (one, other)]
        differences += [
            f"{name}: {part}"
            for part in ("model", "optimizer", "scaler", "epoch")
            if not equal(contents[0][part], contents[1][part])
        ]
    for name in ("log.txt", "bad_samples.jsonl", "validation.jsonl"):
        lines = [read_lines(run / name) for run in (one, other)]
        if lines[0] != lines[1]:
            differences.append(name)
    best = [(run / "best.json").read_text() for run in (one, other) if (run / "best.json").exists()]
    if len(best) == 1 or len(set(best)) > 1:
        differences.append("best.json")
    return differences


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def read_lines(path: Path) -> list[Any]:
    """Lines of JSON without what depends on the clock; bad samples in any order."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in _OF_THE_CLOCK} for row in rows]
    return kept if path.name == "log.txt" else sorted(map(json.dumps, kept))
