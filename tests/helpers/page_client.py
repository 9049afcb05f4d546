"""A visitor of the chat page without a browser: the same requests, by the page's own protocol."""

import asyncio
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from minigpt4.errors import MiniGPT4Error
from tests.helpers.processes import started
from tests.helpers.repo import TINY

_API = "gradio_api"


@dataclass
class Server:
    """``demo.py`` in a process of its own.

    Attributes:
        url: Of the page.
        process: To look at, or to send a signal.
        log: All it wrote.
        uploads: Folder in which it keeps what is uploaded.
    """

    url: str
    process: subprocess.Popen[str]
    log: Path
    uploads: Path

    def wait_until(self, line: str, seconds: float = 300.0) -> None:
        """Wait for a line of the log."""
        end = time.monotonic() + seconds
        while line not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise MiniGPT4Error(f"demo.py did not say {line!r}:\n{self.log.read_text()}")
            time.sleep(0.1)

    def uploaded(self) -> list[Path]:
        """Files that lie there, without those of the page itself."""
        return [file for file in self.uploads.glob("minigpt4-page-*/*/*") if file.is_file()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serve(
    folder: Path, *arguments: str, options: Sequence[str] = (), env: dict[str, str] | None = None
) -> Iterator[Server]:
    """The page with the tiny model on a free port; stopped at the end."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "demo.py", "--cfg-path", TINY, "--device", "cpu"]
    command += ["--port", str(port), *arguments, *(["--options", *options] if options else [])]
    added = {"GRADIO_TEMP_DIR": str(folder / "uploads")} | (env or {})
    with (
        log.open("wb") as output,
        started(command, stdout=output, stderr=output, env=added) as process,
    ):
        server = Server(f"http://127.0.0.1:{port}/", process, log, folder / "uploads")
        server.wait_until("the page is open")
        yield server
        process.terminate()
        process.wait(30)


@dataclass
class Outcome:
    """What an event came to.

    Attributes:
        data: Values of its outputs; the chat box, the question box and the status line.
        messages: Lines that the page showed on the way.
        views: What changed on the page on the way, as JSON.
    """

    data: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)

    @property
    def shown(self) -> list[str]:
        """Texts of the whole chat, questions and answers; empty where the chat did not change."""
        box = self.data[0] if self.data else []
        parts = [m["content"][-1] for m in box if isinstance(m, dict)]
        return [part["text"] for part in parts if part["type"] == "text"]

    @property
    def answers(self) -> list[str]:
        """Of the whole chat, the oldest first."""
        return self.shown[1::2]


class Visitor:
    """One page: its key, what it was told of the page's events, and its settings."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self.client = client
        self.key = secrets.token_hex(8)
        names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        self._events = {
            (names.get(target), event): dependency["id"]
            for dependency in config["dependencies"]
            for target, event in dependency["targets"]
        }
        asking = self._events["question", "submit"]
        (inputs,) = (d["inputs"] for d in config["dependencies"] if d["id"] == asking)
        values = {c["id"]: c["props"].get("value") for c in config["components"]}
        self.settings = {names[i]: values[i] for i in inputs[1:]}

    async def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A picture as a message takes it."""
        answer = await self.client.post(f"{_API}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        (path,) = answer.json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    async def ask(self, text: object, files: Sequence[object] = ()) -> Outcome:
        message = {"text": text, "files": list(files)}
        return await self.send("question", "submit", [message, *self.settings.values()])

    async def send(
        self, element: str | None, event: str, data: Sequence[object], event_data: object = None
    ) -> Outcome:
        """Set off an event, and follow it to its end."""
        body = {
            "data": list(data),
            "fn_index": self._events[element, event],
            "session_hash": self.key,
            "event_data": event_data,
        }
        joined = await self.client.post(f"{_API}/queue/join", json=body)
        joined.raise_for_status()
        outcome = Outcome()
        async with self.client.stream(
            "GET", f"{_API}/queue/data", params={"session_hash": self.key}
        ) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                said = json.loads(line[5:])
                if said["msg"] == "log":
                    outcome.messages.append(said["log"])
                elif said["msg"] == "process_generating":
                    outcome.views.append(json.dumps(said["output"].get("data")))
                elif said["msg"] == "process_completed":
                    outcome.data = said["output"].get("data") or []
                    break
        return outcome


@asynccontextmanager
async def visit(url: str, login: tuple[str, str] | None = None) -> AsyncIterator[Visitor]:
    """Open the page, and close it at the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        if login:
            named = dict(zip(("username", "password"), login, strict=True))
            (await client.post("login", data=named)).raise_for_status()
        visitor = Visitor(client, (await client.get("config")).raise_for_status().json())
        alive = asyncio.create_task(_stay(visitor))
        try:
            await visitor.send(None, "load", [])
            yield visitor
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)


async def _stay(visitor: Visitor) -> None:
    """The connection by which the server knows that the page is still open."""
    async with visitor.client.stream("GET", f"{_API}/heartbeat/{visitor.key}") as stream:
        async for _ in stream.aiter_raw():
            pass
