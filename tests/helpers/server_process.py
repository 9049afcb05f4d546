"""Servers in processes of their own, with the embedded tiny model."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minigpt4.errors import MiniGPT4Error
from tests.helpers.repo import ROOT, TINY

_PATIENCE = 300  # seconds, for liveness only


@dataclass
class ServerProcess:
    """A running server, its log, and its folder; ``url`` is ``http://127.0.0.1:PORT``."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Return the exit code, once it has ended."""
        return self.process.wait(_PATIENCE)

    def wait_until(self, pattern: str) -> re.Match[str]:
        """Wait until a pattern is in the log."""
        end = time.monotonic() + _PATIENCE
        while not (found := re.search(pattern, self.log(), re.MULTILINE)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise MiniGPT4Error(f"{pattern!r} is not in the log:\n{self.log()}")
            time.sleep(0.1)
        return found


@contextmanager
def running(
    command: Sequence[str], folder: Path, options: Sequence[str], **environment: str
) -> Iterator[ServerProcess]:
    """Start a command that serves a chat; stop it at the end."""
    command = [sys.executable, *command, "--cfg-path", TINY, "--device", "cpu"]
    command += ["--options", *options] if options else []
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        yield ServerProcess(process, folder)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_server(
    arguments: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """Run ``serve`` on a free port, with an untrained projection unless the options name one."""
    command = ["-m", "minigpt4", "serve", "--port", "0", *arguments]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(command, Path(folder), ["model.ckpt=", *options], OMP_NUM_THREADS="1") as server,
    ):
        server.url = server.wait_until(r"^serving \S+ at (http://\S+)/v1$")[1]
        yield server
