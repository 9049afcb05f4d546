"""A training step never waits for its GPU; figures are gathered when the log is due."""

from pathlib import Path

import pytest
import torch

import train
from minigpt4.runners.trainer import RunnerBase
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, stage1_options


@pytest.mark.gpu
def test_the_host_runs_ahead_of_the_gpu(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_once = RunnerBase._step

    def watched(self: RunnerBase, epoch: int, step: int) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error" if self.step else "default")
        try:
            return step_once(self, epoch, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(RunnerBase, "_step", watched)
    options = stage1_options(scenes, tmp_path, device="cuda", log_freq=3)
    assert run_entry(train.main, "--cfg-path", STAGE1, "--options", *options) == (0, "")


def test_a_step_asks_a_tensor_for_its_numbers_once(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was finite; on a GPU the step before, whose numbers are on the host by then."""
    asked: list[str] = []
    inside: list[bool] = []

    def watch(name: str) -> None:
        ask = getattr(torch.Tensor, name)

        def watched(self: torch.Tensor, *args: object) -> object:
            if inside:
                asked.append(name)
            return ask(self, *args)

        monkeypatch.setattr(torch.Tensor, name, watched)

    step_once = RunnerBase._step

    def step(self: RunnerBase, epoch: int, index: int) -> torch.Tensor:
        inside.append(True)
        try:
            return step_once(self, epoch, index)
        finally:
            inside.pop()

    monkeypatch.setattr(RunnerBase, "_step", step)
    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy"):
        watch(name)
    options = stage1_options(scenes, tmp_path, num_workers=1)
    code, stderr = run_entry(train.main, "--cfg-path", STAGE1, "--options", *options)
    assert code == 0, stderr
    assert asked == ["tolist"] * 6
