"""A training step never waits for its GPU; figures are gathered when the log is due."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from minigpt4.datasets.samples import Batch
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.optimizer import OptimizerStep
from minigpt4.tasks import ImageTextPretrainTask as Task
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, stage1_options


def around_steps(
    monkeypatch: pytest.MonkeyPatch, around: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Put a context around forward, backward and the optimizer's step of each number."""
    forward, backward, step = Task.train_step, OptimizerStep.backward, OptimizerStep.step
    numbers, now = itertools.count(), [0]

    def watched_forward(self: Task, model: MiniGPT4, batch: Batch, number: int) -> torch.Tensor:
        now[0] = next(numbers)
        with around(now[0]):
            return forward(self, model, batch, number)

    def watched_backward(self: OptimizerStep, *arguments: Any) -> None:
        with around(now[0]):
            backward(self, *arguments)

    def watched_step(self: OptimizerStep, epoch: int, index: int) -> None:
        with around(now[0]):
            step(self, epoch, index)

    monkeypatch.setattr(Task, "train_step", watched_forward)
    monkeypatch.setattr(OptimizerStep, "backward", watched_backward)
    monkeypatch.setattr(OptimizerStep, "step", watched_step)


@pytest.mark.gpu
def test_the_host_runs_ahead_of_the_gpu(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def watched(number: int) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    around_steps(monkeypatch, watched)
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

    @contextmanager
    def watched_step(_number: int) -> Iterator[None]:
        inside.append(True)
        try:
            yield
        finally:
            inside.pop()

    around_steps(monkeypatch, watched_step)
    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy"):
        watch(name)
    options = stage1_options(scenes, tmp_path, num_workers=1)
    code, stderr = run_entry(train.main, "--cfg-path", STAGE1, "--options", *options)
    assert code == 0, stderr
    assert asked == ["tolist"] * 6
