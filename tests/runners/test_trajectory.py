"""What the recorded trajectories of ``test_parity.py`` do not show of the runner."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.runners.options import RunOptions
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.checking import find_units
from tests.helpers.recorded.comparison import failures
from tests.helpers.recorded.training import (
    Trajectory,
    build_runner,
    compare_trajectory,
    final_error,
    train_recorded,
)

TRAJECTORIES = [
    Trajectory(file)
    for unit in find_units(GOLDEN)
    if unit.kind == "training"
    for file in unit.files
    if file.suffix == ".json"
]
TRAJECTORY = TRAJECTORIES[0]


def one_run(**config: int) -> str:
    """The first recorded run with these settings."""
    return next(
        name
        for name, run in TRAJECTORY.runs.items()
        if all(run["config"][key] == value for key, value in config.items())
    )


def test_accumulation_divides_the_gradient_unless_told_otherwise(tmp_path: Path) -> None:
    gradients = {divide: first_gradient(tmp_path, divide) for divide in (True, False)}
    torch.testing.assert_close(3 * gradients[True], gradients[False])
    assert RunOptions.divide_accumulated_loss is True


def first_gradient(output_dir: Path, divide: bool) -> torch.Tensor:
    """The gradient with which the optimizer makes its first step."""
    name = one_run(accum=3)
    runner = build_runner(TRAJECTORY, name, output_dir, divide_accumulated_loss=divide)
    seen: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        gradient = runner.model.llama_proj.weight.grad
        assert gradient is not None
        seen.append(gradient.clone())

    runner.optimizer.optimizer.register_step_pre_hook(keep)
    for step in range(3):
        assert seen == []
        runner.train_step(0, step)
    return seen[0]


def test_a_wrong_weight_decay_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = one_run(accum=1)
    monkeypatch.setitem(TRAJECTORY.runs[name]["config"], "weight_decay", 0.0)
    runner = build_runner(TRAJECTORY, name, tmp_path)
    train_recorded(runner, TRAJECTORY.runs[name])
    assert final_error(runner, TRAJECTORY, name) > 1e-5


def test_checkpoint_of_every_epoch_holds_the_trained_projection(tmp_path: Path) -> None:
    name = one_run(max_epoch=2)
    runner = build_runner(TRAJECTORY, name, tmp_path)
    train_recorded(runner, TRAJECTORY.runs[name])
    names = sorted(file.name for file in runner.folder.path.glob("checkpoint_*.pth"))
    assert names == ["checkpoint_0.pth", "checkpoint_1.pth"]
    saved = torch.load(runner.folder.path / "checkpoint_1.pth", weights_only=True)
    final = TRAJECTORY.tensors.part(f"{name}.final.")
    assert saved["model"].keys() == final.keys()
    for key, value in final.items():
        torch.testing.assert_close(saved["model"][key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "levers",
    [
        {"packing": "on"},
        {"packing": "off"},
        {"gradient_checkpointing": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "packing": "off"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_lever_leads_away_from_what_was_recorded(levers: dict[str, Any]) -> None:
    results = compare_trajectory(TRAJECTORY, **levers)
    assert failures(results) == []
    assert results
