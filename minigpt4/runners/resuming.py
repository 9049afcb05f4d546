"""Where a run starts: at the beginning, or from what an earlier one has saved."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from minigpt4.config import Config
from minigpt4.config.checks import check_file
from minigpt4.errors import CheckpointError, MiniGPT4Error
from minigpt4.runners.run_folder import STATE, RunFolder, load_state
from minigpt4.runners.run_record import record
from minigpt4.weights.checkpoint import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
        folder: Its own.
        state: What to take up; None at the beginning.
        origin: Where the state was read, for messages.
        log_bytes: Of the folder's log, what belongs to the run up to the state.
    """

    folder: RunFolder
    state: dict[str, Any] | None = None
    origin: str = ""
    log_bytes: int = 0


def check_resumable(value: str) -> str | None:
    """Complaint about what is neither a run's folder nor a file to go on from."""
    folder = Path(value)
    if os.path.isdir(folder):  # also for names that no folder can have
        held = any(folder.glob("state_*.pth")) and (folder / "config.yaml").is_file()
        return None if held else f"{value} is no folder of a run with a state_….pth in it"
    return check_file(value)


def find_start(
    accelerator: Accelerator,
    config: Config,
    settings: dict[str, Any],
    iters_per_epoch: int,
    total_steps: int,
) -> Start:
    """The main process chooses; all others start where it does.

    Args:
        accelerator: The processes of the run.
        config: Of the run.
        settings: Its run section, with defaults.
        iters_per_epoch: Steps of an epoch.
        total_steps: Of the run: one that has done so many is finished.

    Raises:
        MiniGPT4Error: for a state that cannot be used, a folder that cannot be written.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [_choose(accelerator, config, settings, iters_per_epoch, total_steps)]
        except MiniGPT4Error as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], MiniGPT4Error):
        raise found[0]
    assert isinstance(found[0], Start)
    return found[0]


def _choose(
    accelerator: Accelerator,
    config: Config,
    settings: dict[str, Any],
    iters_per_epoch: int,
    total_steps: int,
) -> Start:
    resolved, output_dir = config.resolved(), settings["output_dir"]
    processes, seed = accelerator.num_processes, settings["seed"]
    # torchrun --max-restarts starts all processes anew after one has died.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    launch = os.environ.get("TORCHELASTIC_RUN_ID") if restarted else None
    given = settings["resume_ckpt_path"]
    folder = None
    if settings["resume"] == "auto" or restarted:
        auto = settings["resume"] == "auto"
        folder = RunFolder.find(output_dir, resolved, total_steps, None if auto else launch)
    elif given and Path(given).is_dir():
        folder = RunFolder(Path(given))
        if not folder.lock():
            raise MiniGPT4Error(f"run.resume_ckpt_path: {given}: another process works on this run")
    if folder is not None:
        start = _go_on(folder)
        record(folder.path, resolved, seed, processes)
        return start
    state = _from_file(Path(given), iters_per_epoch) if given else None
    folder = RunFolder.create(output_dir, resolved, seed, processes)
    if state is None:
        return Start(folder)
    if state["step"] >= total_steps:
        logger.warning("%s: its run has finished all of its %d steps", given, total_steps)
    logger.info("going on after step %d of %s, in a folder of its own", state["step"], given)
    return Start(folder, state, str(given))


def _go_on(folder: RunFolder) -> Start:
    """The same run again, where it was saved last."""
    folder.clear_half_written()
    state = folder.newest_state()
    if state is None:
        logger.info("%s: nothing was saved yet; this run starts anew in it", folder.path)
        return Start(folder)
    logger.info("%s: going on after step %d", folder.path, state["step"])
    return Start(folder, state, str(folder.path), state["log_bytes"])


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
