"""A server in a process of its own: ``python -m minigpt4 serve`` with the embedded tiny model."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.processes import started
from tests.helpers.repo import TINY

_PATIENCE = 120  # seconds, for liveness only
_SERVING = re.compile(r"^serving \S+ at (http://\S+)/v1$", re.MULTILINE)


@dataclass
class ServerProcess:
    """A running server; ``url`` is ``http://127.0.0.1:PORT``."""

    process: subprocess.Popen[str]
    log_file: Path
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(_PATIENCE)


@contextmanager
def running_server(
    arguments: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """A server that serves, on a port that was free; it is ended in the end.

    Args:
        arguments: Of ``serve``.
        options: ``--options``; the projection is an untrained one unless they name another.
    """
    command = [sys.executable, "-m", "minigpt4", "serve", "--cfg-path", TINY]
    command += ["--device", "cpu", "--port", "0", *arguments]
    command += ["--options", "model.ckpt=", *options]
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "server.log"
        with log_file.open("wb") as log, started(command, stdout=log, stderr=log) as process:
            server = ServerProcess(process, log_file)
            server.url = _address(server)
            yield server


def _address(server: ServerProcess) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := _SERVING.search(server.log()):
            return found[1]
        if server.process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"no server came up:\n{server.log()}")
