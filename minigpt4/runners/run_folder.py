"""The folder of one run: its record, checkpoints, and the states from which it can be resumed."""

import contextlib
import json
import logging
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigpt4.config.checks import check_file
from minigpt4.errors import CheckpointError, MiniGPT4Error, one_line
from minigpt4.files import lock_folder, write_json
from minigpt4.runners.run_record import record
from minigpt4.weights.checkpoint import load_weights, save_atomically

# They say whether to go on, not what with.
_NOT_COMPARED = ("resume", "resume_ckpt_path")
STATE = re.compile(r"state_(\d+)\.pth")

logger = logging.getLogger(__name__)


class RunFolder:
    """``<output_dir>/<date-time>``; only the main process writes into it.

    ``checkpoint_<epoch>.pth`` and ``checkpoint_best.pth`` are for users and have the original's
    form; ``state_<step>.pth`` holds all that an exact resume needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_lock": None}  # the other processes hear of it, and hold none

    @classmethod
    def create(
        cls, output_dir: str, config: dict[str, Any], seed: int, processes: int
    ) -> "RunFolder":
        """A new folder, with the record of the run in it.

        Raises:
            MiniGPT4Error: when it cannot be written.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            for name in (stamp, *(f"{stamp}-{number}" for number in range(2, 100))):
                path = Path(output_dir) / name
                with contextlib.suppress(FileExistsError):
                    path.mkdir(parents=True)
                    break
        except OSError as error:
            raise MiniGPT4Error(
                f"run.output_dir: {output_dir} cannot be written ({error}); choose another folder"
            ) from error
        record(path, config, seed, processes)
        folder = cls(path)
        folder.lock()
        return folder

    @classmethod
    def find(
        cls, output_dir: str, config: dict[str, Any], total_steps: int, launch: str | None = None
    ) -> "RunFolder | None":
        """The newest unfinished run of the same config that nobody works on; locked.

        Args:
            output_dir: Where the runs lie.
            config: Resolved.
            total_steps: A run that has done so many is finished.
            launch: Only a run that this launch of torchrun has begun.
        """
        own = _comparable(config)
        folders = [file.parent for file in Path(output_dir).glob("*/config.yaml")]
        for path in sorted(folders, key=lambda p: (p / "config.yaml").stat().st_mtime_ns)[::-1]:
            if launch is not None and _launch(path) != launch:
                continue
            folder = cls(path)
            finished = f"state_{total_steps}.pth" in {file.name for file in folder.states()}
            if not finished and _saved_config(path) == own and folder.lock():
                return folder
        return None

    def lock(self) -> bool:
        """Keep other processes from going on with this run; False where one does already."""
        self._lock = lock_folder(self.path)
        if self._lock is None:
            return False
        # A reader that outlives a killed trainer by a moment must not hold it.
        os.register_at_fork(after_in_child=self.unlock)
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def states(self) -> list[Path]:
        """The states, newest first."""
        found = [file for file in self.path.iterdir() if STATE.fullmatch(file.name)]
        return sorted(found, key=_step, reverse=True)

    def clear_half_written(self) -> None:
        """Take away what a kill in the middle of a save has left."""
        for file in self.path.glob(".*.writing"):
            file.unlink(missing_ok=True)

    def newest_state(self) -> dict[str, Any] | None:
        """The newest state that is whole; each damaged one before it is told in a line."""
        for file in self.states():
            try:
                return load_state(file)
            except CheckpointError as error:
                logger.warning("%s; the one before is used", error)
        return None

    def save_checkpoint(self, name: int | str, content: dict[str, Any]) -> Path:
        """Write ``checkpoint_<epoch>.pth`` or ``checkpoint_best.pth``, whole or not at all."""
        path = self.path / f"checkpoint_{name}.pth"
        save_atomically(content, path)
        return path

    def save_best(self, facts: dict[str, Any], content: dict[str, Any]) -> Path:
        """Write ``checkpoint_best.pth``, and beside it what makes it the best."""
        path = self.save_checkpoint("best", content)
        write_json(self.path / "best.json", facts)
        return path

    def save_state(self, step: int, content: dict[str, Any], keep_last: int) -> Path:
        """Write ``state_<step>.pth``, whole or not at all; then take away all but the last ones."""
        path = self.path / f"state_{step}.pth"
        save_atomically(content, path)
        if not is_whole(path):
            raise MiniGPT4Error(f"{path}: came out damaged; is the disk at fault?")
        later = [file for file in self.states() if _step(file) > step]
        for file in later + self.states()[len(later) + keep_last :]:
            file.unlink(missing_ok=True)
        return path


def _step(state: Path) -> int:
    return int(state.stem.removeprefix("state_"))


def load_state(path: Path) -> dict[str, Any]:
    """What ``RunFolder.save_state`` wrote.

    Raises:
        CheckpointError: for a file that is damaged, or no state.
    """
    if not is_whole(path):
        raise CheckpointError(f"{path}: damaged or cut short")
    content = load_weights(path)
    if not isinstance(content, dict) or not {"model", "optimizer", "step", "ranks"} <= set(content):
        raise CheckpointError(f"{path}: not the state of a run")
    return content


def is_whole(path: Path) -> bool:
    """Whether every byte of a file that torch wrote is as it was; torch itself does not look."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def check_resumable(value: str) -> str | None:
    """Return what is wrong with what is neither a run's folder nor a file to go on from."""
    folder = Path(value)
    if os.path.isdir(folder):  # also for names that no folder can have
        held = any(folder.glob("state_*.pth")) and (folder / "config.yaml").is_file()
        return None if held else f"{value} is no folder of a run with a state_….pth in it"
    return check_file(value)


def _comparable(config: dict[str, Any]) -> Any:
    """A config as ``config.yaml`` gives it back, without what only says whether to go on."""
    content = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(config)))
    run = content.get("run") or {}
    return content | {"run": {k: v for k, v in run.items() if k not in _NOT_COMPARED}}


def _saved_config(path: Path) -> Any:
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        return _comparable(saved)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
        OmegaConfBaseException,
    ) as error:
        logger.warning("%s: not readable (%s); left alone", path / "config.yaml", one_line(error))
        return None


def _launch(path: Path) -> str | None:
    """Which launch of torchrun worked on a run last."""
    try:
        return str(json.loads((path / "environment.json").read_text()).get("launch"))
    except (OSError, ValueError, AttributeError):
        return None
