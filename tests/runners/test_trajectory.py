import inspect
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.config import Config
from minigpt4.datasets.samples import BadSample, Batch, DataSet, RawSample
from minigpt4.runners.preparation import make_accelerator
from minigpt4.runners.runner_base import RunnerBase
from tests.recorded import GOLDEN, build_model, load_case, load_projection, part

FACTS = json.loads((GOLDEN / "trajectory_v1_a.json").read_text(encoding="utf-8"))
RUNS: dict[str, dict[str, Any]] = FACTS["runs"]
# End symbol and longest answer of the two stages (golden/README.md).
STAGES = {1: ("\n", 32), 2: ("###", 160)}


class NoSource:
    """A data set that is never read: the recorded batches take its place."""

    units = 1

    def read_pass(
        self, reader: int, readers: int, rng: random.Random
    ) -> Iterator[RawSample | BadSample]:
        raise AssertionError("the recorded batches should have been read")

    def read_in_order(self) -> Iterator[RawSample | BadSample]:
        raise AssertionError("nothing is evaluated here")


@cache
def recorded_tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "trajectory_v1_a.safetensors")


def recorded_batches() -> Iterator[Batch]:
    images = recorded_tensors()["images"]
    for image, texts in zip(images, FACTS["text_batches"], strict=True):
        yield Batch(keys=[""] * len(texts), image=image, text=list(texts))


def build_runner(name: str, output_dir: Path) -> RunnerBase:
    run, steps = RUNS[name], RUNS[name]["config"]
    model = build_model(load_case(GOLDEN / FACTS["case"]))
    load_projection(model, part(recorded_tensors(), "init.llama_proj."), name)
    model.end_sym, model.max_txt_len = STAGES[steps["stage"]]
    model.prompts = list(run["prompts"])
    options: dict[str, Any] = {
        "lr_sched": steps["lr_sched"],
        "init_lr": steps["init_lr"],
        "min_lr": steps["min_lr"],
        "warmup_lr": steps["warmup_lr"],
        "warmup_steps": steps["warmup_steps"],
        "max_epoch": steps["max_epoch"],
        "iters_per_epoch": steps["iters_per_epoch"],
        "weight_decay": steps["weight_decay"],
        "accum_grad_iters": steps["accum"],
        "divide_accumulated_loss": False,
        "batch_size_train": 2,
        "num_workers": 0,
        "output_dir": str(output_dir),
        "device": "cpu",
    }
    runner = RunnerBase(
        model,
        [DataSet("recorded", NoSource(), lambda image: torch.zeros(1), str)],
        make_accelerator("cpu"),
        Config(Path("recorded.yaml"), model={}, datasets={}, run=options, chat={}),
        **options,
    )
    runner.batches = recorded_batches()
    return runner


def train_recorded(
    name: str, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunnerBase, list[float], list[float]]:
    """Run all twelve steps; the runner, its loss and its learning rate of every step."""
    runner = build_runner(name, output_dir)
    indices = RUNS[name]["prompt_index_per_step"]
    if indices is not None:
        prompts = RUNS[name]["prompts"]
        monkeypatch.setattr(runner.task, "prompt_of", lambda step: prompts[indices[step]])
    losses: list[float] = []
    rates: list[float] = []
    step_once = runner._step

    def recording_step(epoch: int, step: int) -> torch.Tensor:
        (rate,) = {group["lr"] for group in runner.optimizer.param_groups}
        rates.append(rate)
        loss = step_once(epoch, step)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(runner, "_step", recording_step)
    runner.train()
    return runner, losses, rates


def final_error(runner: RunnerBase, name: str) -> float:
    """Largest difference between the trained and the recorded projection."""
    final = part(recorded_tensors(), f"{name}.final.llama_proj.")
    own = dict(runner.model.llama_proj.named_parameters())
    assert own.keys() == final.keys()
    return max((own[key] - final[key]).abs().max().item() for key in own)


@pytest.mark.parametrize("name", RUNS)
def test_twelve_steps_are_the_originals(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, losses, rates = train_recorded(name, tmp_path, monkeypatch)
    assert rates == RUNS[name]["lr"]
    assert losses == pytest.approx(RUNS[name]["loss"], abs=1e-5)
    assert final_error(runner, name) < 1e-5


def test_optimizer_groups_are_the_originals(tmp_path: Path) -> None:
    name = next(iter(RUNS))
    groups = build_runner(name, tmp_path).optimizer.param_groups
    for group, recorded in zip(groups, RUNS[name]["param_groups"], strict=True):
        assert [list(parameter.shape) for parameter in group["params"]] == recorded["shapes"]
        assert group["weight_decay"] == recorded["weight_decay"]
        assert list(group["betas"]) == recorded["betas"]
        assert group["eps"] == recorded["eps"]


def test_accumulation_divides_the_gradient_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = (name for name, run in RUNS.items() if run["config"]["accum"] > 1)
    gradients = {divide: first_gradient(name, tmp_path, divide) for divide in (True, False)}
    torch.testing.assert_close(3 * gradients[True], gradients[False])
    defaults = inspect.signature(RunnerBase).parameters
    assert defaults["divide_accumulated_loss"].default is True


def first_gradient(name: str, output_dir: Path, divide: bool) -> torch.Tensor:
    """The gradient with which the optimizer makes its first step."""
    runner = build_runner(name, output_dir)
    runner.divide_accumulated_loss = divide
    seen: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        gradient = runner.model.llama_proj.weight.grad
        assert gradient is not None
        seen.append(gradient.clone())

    runner.optimizer.register_step_pre_hook(keep)
    for step in range(3):
        assert seen == []
        runner._step(0, step)
    return seen[0]


def test_a_wrong_weight_decay_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(RUNS))
    monkeypatch.setitem(RUNS[name]["config"], "weight_decay", 0.0)
    runner, _, _ = train_recorded(name, tmp_path, monkeypatch)
    assert final_error(runner, name) > 1e-5


def test_checkpoint_of_every_epoch_holds_the_trained_projection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = (name for name, run in RUNS.items() if run["config"]["max_epoch"] == 2)
    runner, _, _ = train_recorded(name, tmp_path, monkeypatch)
    names = sorted(file.name for file in runner.folder.path.glob("*.pth"))
    assert names == ["checkpoint_0.pth", "checkpoint_1.pth"]
    saved = torch.load(runner.folder.path / "checkpoint_1.pth", weights_only=True)
    final = part(recorded_tensors(), f"{name}.final.")
    assert saved["model"].keys() == final.keys()
    for key, value in final.items():
        torch.testing.assert_close(saved["model"][key], value, rtol=0, atol=1e-5)
