"""Recorded trajectories: some AdamW steps of the projection, through the real runner."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from minigpt4.assembly import build_accelerator
from minigpt4.assembly import build_runner as assemble
from minigpt4.checked import CheckedConfig
from minigpt4.config import Config
from minigpt4.conversation.options import GenerationOptions
from minigpt4.datasets.samples import BadSample, Batch, DataSet, RawSample
from minigpt4.registry import RUNNERS, UNKNOWN, bind
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.nonfinite import MicroBatch
from minigpt4.runners.resuming import find_resume_point
from minigpt4.runners.trainer import Trainer
from minigpt4.weights.checkpoint import load_into
from tests.helpers.recorded.comparison import (
    LOSS_ATOL,
    Comparison,
    Recorded,
    Unit,
    equal,
    files_of,
    read_json,
    within,
)
from tests.helpers.recorded.model import Case, build_model


class NoSource:
    """A data set that is never read: the recorded batches take its place."""

    units = 1
    window = 1

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        raise AssertionError("the recorded batches should have been read")


@dataclass(frozen=True)
class Trajectory:
    """Some runs from one projection over the same batches."""

    file: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = read_json(self.file)
        return facts

    @cached_property
    def tensors(self) -> Recorded:
        return Recorded(self.file.with_suffix(".safetensors"))

    @property
    def case(self) -> Case:
        return Case((self.file.parent / self.facts["weights"]).parent)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        runs: dict[str, dict[str, Any]] = self.facts["runs"]
        return runs


def find_trajectories(folder: Path) -> Iterator[Unit]:
    for file in files_of(folder, "*.json"):
        content = read_json(file)
        if isinstance(content, dict) and {"runs", "text_batches"} <= content.keys():
            files = frozenset({file, file.with_suffix(".safetensors")})
            check = partial(compare_trajectory, Trajectory(file))
            yield Unit(file.stem, "training", files, check)


def compare_trajectory(trajectory: Trajectory, **levers: Any) -> list[Comparison]:
    """Learning rates, losses, parameter groups and the final projection of every run.

    Args:
        trajectory: What was recorded.
        levers: Options of the run that must change no number.
    """
    results = []
    for name, run in trajectory.runs.items():
        with tempfile.TemporaryDirectory() as folder:
            runner = build_runner(trajectory, name, Path(folder), **levers)
            groups = [_facts_of(group) for group in runner.optimizer.optimizer.param_groups]
            losses, rates = train_recorded(runner, run)
        error = max(abs(a - b) for a, b in zip(losses, run["loss"], strict=True))
        results += [
            equal(f"{name}: parameter groups", groups, run["param_groups"]),
            equal(f"{name}: learning rates", rates, run["lr"]),
            within(f"{name}: {len(losses)} losses", error, LOSS_ATOL),
            within(f"{name}: final projection", final_error(runner, trajectory, name), LOSS_ATOL),
        ]
    return [*results, trajectory.tensors.all_read()]


def _facts_of(group: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": len(group["params"]),
        "shapes": [list(parameter.shape) for parameter in group["params"]],
        "weight_decay": group["weight_decay"],
        "betas": list(group["betas"]),
        "eps": group["eps"],
    }


def build_runner(trajectory: Trajectory, name: str, output_dir: Path, **levers: Any) -> Trainer:
    """The real runner, at the start of a recorded run."""
    run, facts, tensors = trajectory.runs[name], trajectory.facts, trajectory.tensors
    steps, images = run["config"], tensors["images"]
    model = build_model(trajectory.case)
    # From a copy: training writes into the tensors that it was given.
    start = {n: value.clone() for n, value in tensors.part("init.llama_proj.").items()}
    load_into(model.llama_proj, start, name)
    stage = trajectory.case.facts["modes"][f"stage{steps['stage']}"]
    model.end_sym, model.max_txt_len = stage["end_sym"], stage["max_txt_len"]
    model.prompts = list(run["prompts"])
    same = ("lr_sched", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "max_epoch")
    options: dict[str, Any] = {
        **{key: steps[key] for key in (*same, "iters_per_epoch", "weight_decay")},
        "accum_grad_iters": steps["accum"],
        "divide_accumulated_loss": False,  # the original did not
        "batch_size_train": images.shape[1],
        "num_workers": 0,
        "output_dir": str(output_dir),
        "device": "cpu",
        **levers,
    }
    config = Config(Path("recorded.yaml"), model={}, datasets={}, run=options, chat={})
    bound, faults = bind(RUNNERS.get("runner_base"), options, "run")
    assert faults == []
    checked = CheckedConfig(config, "training", UNKNOWN, bound, {}, GenerationOptions())
    processes = Distributed(build_accelerator(checked.run), checked.run.timeout)
    datasets = [DataSet("recorded", NoSource(), lambda image: torch.zeros(1), str)]
    length = steps["iters_per_epoch"]
    resume_point = find_resume_point(processes, config.resolved(), checked.run, length)
    runner: Trainer = assemble(checked, processes, model, datasets, length, resume_point, None)
    runner.batches = (
        Batch(
            keys=[""] * len(texts),
            image=image,
            image_counts=[1] * len(texts),
            text=list(texts),
            normalise=None,
        )
        for image, texts in zip(images, facts["text_batches"], strict=True)
    )
    return runner


def train_recorded(runner: Trainer, run: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Run all steps with the recorded prompts; loss and learning rate of every step."""
    indices, add_gradient = run["prompt_index_per_step"], runner.optimizer.backward
    if indices is not None:
        prompts = run["prompts"]
        runner.task.prompt_of = lambda step: prompts[indices[step]]  # type: ignore[attr-defined]
    losses: list[float] = []
    rates: list[float] = []

    def recording(loss: torch.Tensor, micro_batch: MicroBatch) -> None:
        (rate,) = {group["lr"] for group in runner.optimizer.optimizer.param_groups}
        rates.append(rate)
        losses.append(loss.item())
        add_gradient(loss, micro_batch)

    runner.optimizer.backward = recording  # type: ignore[method-assign]
    runner.train()
    return losses, rates


def final_error(runner: Trainer, trajectory: Trajectory, name: str) -> float:
    """Largest difference between the trained and the recorded projection."""
    final = trajectory.tensors.part(f"{name}.final.llama_proj.")
    own = dict(runner.model.llama_proj.named_parameters())
    assert own.keys() == final.keys()
    return max((own[key] - final[key]).abs().max().item() for key in own)
