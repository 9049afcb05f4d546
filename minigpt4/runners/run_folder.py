"""The folder of one run: its record, its checkpoints, and the states to resume from."""

import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from minigpt4.config.checks import check_file
from minigpt4.config.reading import UNREADABLE
from minigpt4.errors import CheckpointError, MiniGPT4Error, one_line
from minigpt4.files import lock_folder, write_json, write_text
from minigpt4.weights.checkpoint import load_weights, save_atomically

STATE = re.compile(r"state_(\d+)\.pth")
# Keys that say whether to resume, not what the run is.
_NOT_COMPARED = ("resume", "resume_ckpt_path")
_PACKAGES = (
    *("minigpt4", "torch", "torchvision", "transformers", "accelerate", "timm", "tokenizers"),
    *("safetensors", "webdataset", "omegaconf", "numpy", "pillow"),
    *("bitsandbytes", "peft", "torchao"),  # options
)
_GIT_SECONDS = 10
_HERE = Path(__file__).parent

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
        return {"path": self.path, "_lock": None}  # the other processes receive it, without a lock

    @classmethod
    def create(
        cls, output_dir: str, config: dict[str, Any], seed: int, processes: int
    ) -> "RunFolder":
        """Return a new locked folder with the run's record; ``MiniGPT4Error`` if unwritable."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            for suffix in ("", *(f"-{number}" for number in range(2, 100))):
                path = Path(output_dir) / f"{stamp}{suffix}"
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
        """Return the newest unfinished run of the same config that no process works on; locked.

        Args:
            output_dir: Folder of the runs.
            config: Resolved config.
            total_steps: Number of steps after which a run is finished.
            launch: Launch of torchrun that began the run; None for any.
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
        """Keep other processes from resuming this run; False where one works on it already."""
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
        """Return the states, newest first."""
        found = [file for file in self.path.iterdir() if STATE.fullmatch(file.name)]
        return sorted(found, key=_step, reverse=True)

    def clear_half_written(self) -> None:
        """Remove what a kill in the middle of a save has left."""
        for file in self.path.glob(".*.writing"):
            file.unlink(missing_ok=True)

    def newest_state(self) -> dict[str, Any] | None:
        """Return the newest undamaged state; each newer damaged one is logged."""
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
        """Write ``checkpoint_best.pth``, and ``best.json`` with what makes it the best."""
        path = self.save_checkpoint("best", content)
        write_json(self.path / "best.json", facts)
        return path

    def save_state(self, step: int, content: dict[str, Any], keep_last: int) -> None:
        """Write ``state_<step>.pth``, whole or not at all; then remove all but the last ones."""
        path = self.path / f"state_{step}.pth"
        save_atomically(content, path)
        if not is_whole(path):
            raise MiniGPT4Error(f"{path}: came out damaged; is the disk at fault?")
        later = [file for file in self.states() if _step(file) > step]
        for file in later + self.states()[len(later) + keep_last :]:
            file.unlink(missing_ok=True)


def _step(state: Path) -> int:
    return int(state.stem.removeprefix("state_"))


def load_state(path: Path) -> dict[str, Any]:
    """Return what ``RunFolder.save_state`` wrote.

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
    """Return whether a file that torch wrote is undamaged; torch itself does not check."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def check_resumable(value: str) -> str | None:
    """Return what is wrong with what is neither a run's folder nor a file to resume from."""
    folder = Path(value)
    if os.path.isdir(folder):  # also for names that no folder can have
        held = any(folder.glob("state_*.pth")) and (folder / "config.yaml").is_file()
        return None if held else f"{value} is no folder of a run with a state_….pth in it"
    return check_file(value)


def _comparable(config: dict[str, Any]) -> Any:
    """Return a config as ``config.yaml`` has it, without what only says whether to resume."""
    content = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(config)))
    run = content.get("run") or {}
    return content | {"run": {k: v for k, v in run.items() if k not in _NOT_COMPARED}}


def _saved_config(path: Path) -> Any:
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        return _comparable(saved)
    except (OSError, TypeError, *UNREADABLE) as error:
        logger.warning("%s: not readable (%s); left alone", path / "config.yaml", one_line(error))
        return None


def _launch(path: Path) -> str | None:
    """Return which launch of torchrun worked on a run last."""
    launches = _launches(path / "environment.json")
    return str(launches[-1].get("launch")) if launches else None


def record(folder: Path, config: Mapping[str, Any], seed: int, processes: int = 1) -> None:
    """Write ``environment.json``, earlier launches included, and ``config.yaml``; no host or user.

    Only a folder that cannot be written is a ``MiniGPT4Error``.
    """
    path = folder / "environment.json"
    facts = environment(seed, processes) | {"earlier_launches": _launches(path)}
    write_text(path, json.dumps(facts, indent=2) + "\n")
    # Last: a folder with a config is a run, and has the other file.
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def environment(seed: int, processes: int = 1) -> dict[str, Any]:
    """Return facts about this launch; one that cannot be found out says why."""
    facts: dict[str, Callable[[], Any]] = {
        "started": lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": lambda: [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": lambda: seed,
        "processes": lambda: processes,
        "launch": lambda: os.environ.get("TORCHELASTIC_RUN_ID"),
        "git": git_state,
        "python": platform.python_version,
        "platform": lambda: f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": _versions,
        "cuda": lambda: torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": lambda: list(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))),
    }
    return {name: _found_out(fact) for name, fact in facts.items()}


def _found_out(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception as error:  # a broken driver or package must not end a run
        return f"unknown ({one_line(error)})"


def git_state(folder: Path = _HERE) -> dict[str, Any] | None:
    """Return commit, branch, and whether tracked files changed; None if git tracks no file here."""
    if not _git(folder, "ls-files", "."):
        return None
    commit, branch = _git(folder, "rev-parse", "HEAD"), _git(folder, "branch", "--show-current")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    dirty = None if changes is None else bool(changes)
    return {"commit": commit, "branch": branch or None, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output; None when it fails, is absent or takes too long."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _launches(path: Path) -> list[Any]:
    """Return the launches that ``environment.json`` records; none where it cannot be read."""
    try:
        latest = json.loads(path.read_text(encoding="utf-8"))
        return [*latest.pop("earlier_launches", []), latest]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
