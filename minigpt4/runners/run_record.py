"""What a run was made of: its resolved config, and versions, git state, GPUs and seed."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from minigpt4.errors import one_line
from minigpt4.files import write_atomically

_PACKAGES = (
    *("minigpt4", "torch", "torchvision", "transformers", "accelerate", "timm", "tokenizers"),
    *("safetensors", "webdataset", "omegaconf", "numpy", "pillow"),
    *("bitsandbytes", "peft", "torchao"),  # options
)
_GIT_SECONDS = 10
_HERE = Path(__file__).parent


def record(folder: Path, config: Mapping[str, Any], seed: int, processes: int = 1) -> None:
    """Write ``environment.json`` and ``config.yaml`` into a run's folder.

    A resumed run keeps what ``environment.json`` said of the launches before, under
    ``earlier_launches``, oldest first. Host, user and folders are left out, but for those that
    the config and the command line name.

    Raises:
        MiniGPT4Error: when the folder cannot be written; nothing else here ends a run.
    """
    path = folder / "environment.json"
    earlier = _launches(path) if path.exists() else []
    content = environment(seed, processes) | {"earlier_launches": earlier}
    whole = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(whole.encode()))
    # Last: a folder with a config is a run, and has the other file.
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode(errors="backslashreplace")
    write_atomically(folder / "config.yaml", lambda file: file.write(text))


def environment(seed: int, processes: int = 1) -> dict[str, Any]:
    """What this process runs on; a fact that cannot be found out is None or says why."""
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
    return {name: _told(fact) for name, fact in facts.items()}


def git_state(folder: Path = _HERE) -> dict[str, Any] | None:
    """Commit, branch (None when detached) and whether tracked files were changed.

    None without git, and where ``folder`` is no tracked part of a repository: a virtual
    environment that lies in somebody's repository, for one.
    """
    if not _git(folder, "ls-files", "."):
        return None
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "branch": None if branch == "HEAD" else branch,
        "dirty": None if changes is None else bool(changes),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None when it fails, is absent or takes too long."""
    try:
        told = subprocess.check_output(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # looking must not lock the index
        )
    except (OSError, subprocess.SubprocessError):  # CalledProcessError is one
        return None
    return told.strip()


def _versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _told(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception as error:  # a broken driver or package must not end a run
        return f"unknown ({one_line(error)})"


def _launches(path: Path) -> list[Any]:
    """The launches that a file tells of; none when there is no file that can be read."""
    try:
        latest = json.loads(path.read_text(encoding="utf-8"))
        return [*latest.pop("earlier_launches", []), latest]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
