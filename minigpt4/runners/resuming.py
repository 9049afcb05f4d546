"""Resuming: parts of a run whose state is saved, and where a run starts."""

import logging
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch

from minigpt4.errors import CheckpointError, MiniGPT4Error
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import RunOptions
from minigpt4.runners.run_folder import STATE, RunFolder, load_state, record
from minigpt4.weights.checkpoint import load_weights

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a run that is saved, and restored when the run is resumed."""

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on, as plain values and tensors."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned; other parts' keys are in it, too."""


class RandomState:
    """The random generators of this process: Python's, NumPy's and torch's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = numpy.random.get_state()
        version, internal, gauss_next = random.getstate()
        own = [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)]
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        saved = {"python": [version, list(internal), gauss_next], "numpy": own}
        return {"rng": {**saved, "torch": torch.get_rng_state(), "cuda": cuda}}

    def restore(self, state: Mapping[str, Any]) -> None:
        saved = state["rng"]
        version, internal, gauss_next = saved["python"]
        random.setstate((version, tuple(internal), gauss_next))
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
        torch.set_rng_state(saved["torch"])
        if self._device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self._device)


class RunningLoss:
    """Losses of this process since the last line of the log."""

    def __init__(self, processes: Distributed) -> None:
        self._processes = processes
        self._losses: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        self._losses.append(loss)

    def take_mean(self) -> tuple[float, int]:
        """Return the mean of all processes' finite losses, NaN without any, and how many steps."""
        losses = torch.stack(self._losses).float()
        finite = losses[losses.isfinite()]
        sums = torch.stack([finite.sum(), torch.tensor(float(len(finite)), device=losses.device)])
        total, count = self._processes.sum(sums).tolist()
        self._losses = []
        return total / count if count else math.nan, len(losses)

    def state(self) -> dict[str, Any]:
        return {"losses": [loss.item() for loss in self._losses]}

    def restore(self, state: Mapping[str, Any]) -> None:
        device = self._processes.device
        self._losses = [torch.tensor(loss, device=device) for loss in state["losses"]]


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Attributes:
        folder: Folder of the run.
        state: State to resume from; None at the beginning.
        origin: File or folder of the state, for messages.
        same_folder: Whether the state is from this folder, whose files the run continues.
    """

    folder: RunFolder
    state: dict[str, Any] | None = None
    origin: str = ""
    same_folder: bool = False

    @property
    def step(self) -> int:
        return int(self.state["step"]) if self.state else 0


def find_resume_point(
    processes: Distributed, config: dict[str, Any], run: RunOptions, iters_per_epoch: int
) -> ResumePoint:
    """Return where the run starts: the main process chooses, or all raise its error."""
    found: ResumePoint | MiniGPT4Error | None = None
    if processes.main:
        try:
            found = _choose(processes.count, config, run, iters_per_epoch)
        except MiniGPT4Error as error:
            found = error
    found = processes.broadcast(found)
    if isinstance(found, MiniGPT4Error):
        raise found
    assert isinstance(found, ResumePoint)
    return found


def _choose(
    processes: int, config: dict[str, Any], run: RunOptions, iters_per_epoch: int
) -> ResumePoint:
    # torchrun --max-restarts starts all processes again after one has died.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted or run.resume == "auto" or run.resume_ckpt_path:
        return _resume(processes, config, run, iters_per_epoch, restarted)
    return ResumePoint(RunFolder.create(run.output_dir, config, run.seed, processes))


def _resume(
    processes: int, config: dict[str, Any], run: RunOptions, iters_per_epoch: int, restarted: bool
) -> ResumePoint:
    """Continue a run or a file; where there is neither, start from the beginning."""
    total_steps = run.max_epoch * iters_per_epoch
    given = run.resume_ckpt_path
    folder = None
    if run.resume == "auto" or restarted:
        launch = None if run.resume == "auto" else os.environ.get("TORCHELASTIC_RUN_ID")
        folder = RunFolder.find(run.output_dir, config, total_steps, launch)
    elif given and Path(given).is_dir():
        folder = RunFolder(Path(given))
        if not folder.lock():
            raise MiniGPT4Error(f"run.resume_ckpt_path: {given}: another process works on this run")
    if folder is not None:
        start = _go_on(folder)
        record(folder.path, config, run.seed, processes)
        return start
    state = _from_file(Path(given), iters_per_epoch) if given else None
    folder = RunFolder.create(run.output_dir, config, run.seed, processes)
    if state is None:
        return ResumePoint(folder)
    if state["step"] >= total_steps:
        logger.warning("%s: its run has finished all of its %d steps", given, total_steps)
    logger.info("going on after step %d of %s, in a folder of its own", state["step"], given)
    return ResumePoint(folder, state, str(given))


def _go_on(folder: RunFolder) -> ResumePoint:
    """Return where the same run was saved last."""
    folder.clear_half_written()
    state = folder.newest_state()
    if state is None:
        logger.info("%s: nothing was saved yet; this run starts there again", folder.path)
        return ResumePoint(folder)
    logger.info("%s: going on after step %d", folder.path, state["step"])
    return ResumePoint(folder, state, str(folder.path), same_folder=True)


def _from_file(path: Path, iters_per_epoch: int) -> dict[str, Any]:
    """Return a state, or what an epoch's checkpoint holds of one."""
    if STATE.fullmatch(path.name):
        return load_state(path)
    content = load_weights(path)
    try:
        kept = {key: content[key] for key in ("model", "optimizer", "scaler", "epoch")}
        step = (int(kept.pop("epoch")) + 1) * iters_per_epoch
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: holds no training state to resume ({error}); "
            "to start from its projection use model.ckpt"
        ) from error
    logger.info("%s: tells nothing of the data that were read: the run goes on with others", path)
    return {**kept, "step": step}
