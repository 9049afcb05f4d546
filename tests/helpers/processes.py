"""Processes that tests start: run to their end, all below one of them, and their death."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.repo import ROOT


def finished(
    command: Sequence[object], cwd: Path = ROOT, **environment: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, on one thread; ``environment`` adds variables."""
    added = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in added.items()},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@contextlib.contextmanager
def started(command: Sequence[object], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command on one thread; at the end it and all below it are killed.

    Args:
        command: Program and arguments.
        **settings: Of ``Popen``; its ``env`` adds variables.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | settings
    job = subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        text=True,
        env=environment,
        start_new_session=True,
        **settings,
    )
    try:
        yield job
    finally:
        kill_all(job.pid)
        job.wait()
        for pipe in (job.stdout, job.stderr):
            if pipe:
                pipe.close()


def descendants(pid: int) -> list[int]:
    """A process and all below it, the process first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The command's name, in parentheses, may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for known in found:
        found += children.get(known, [])
    return found


def kill_all(pid: int) -> None:
    for process in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
