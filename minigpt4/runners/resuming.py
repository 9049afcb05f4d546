"""Where a run starts: at the beginning, or from what an earlier one has saved."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.errors import CheckpointError, MiniGPT4Error
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import RunOptions
from minigpt4.runners.run_folder import STATE, RunFolder, load_state
from minigpt4.runners.run_record import record
from minigpt4.weights.checkpoint import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Attributes:
        folder: Its own folder.
        state: What to take up; None at the beginning.
        origin: Where the state was read, for messages.
        same_folder: Whether the state is from this folder, whose files the run continues.
    """

    folder: RunFolder
    state: dict[str, Any] | None = None
    origin: str = ""
    same_folder: bool = False

    @property
    def step(self) -> int:
        """Steps that are done already."""
        return int(self.state["step"]) if self.state else 0


def find_resume_point(
    processes: Distributed, config: dict[str, Any], run: RunOptions, iters_per_epoch: int
) -> ResumePoint:
    """Return where the run starts; the main process chooses, all others start where it does.

    Raises:
        MiniGPT4Error: for a state that cannot be used, a folder that cannot be written.
    """
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
    """Go on with a run or from a file; where there is neither, start anew."""
    total_steps = run.max_epoch * iters_per_epoch
    launch = os.environ.get("TORCHELASTIC_RUN_ID") if restarted else None
    given = run.resume_ckpt_path
    folder = None
    if run.resume == "auto" or restarted:
        launch = None if run.resume == "auto" else launch
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
    """The same run again, where it was saved last."""
    folder.clear_half_written()
    state = folder.newest_state()
    if state is None:
        logger.info("%s: nothing was saved yet; this run starts anew in it", folder.path)
        return ResumePoint(folder)
    logger.info("%s: going on after step %d", folder.path, state["step"])
    return ResumePoint(folder, state, str(folder.path), same_folder=True)


def _from_file(path: Path, iters_per_epoch: int) -> dict[str, Any]:
    """A state, or an epoch's checkpoint as far as it is one."""
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
