"""A visitor of the chat page without a browser: the same requests, by the page's own protocol."""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.server_process import ServerProcess, running

_API = "gradio_api"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serve(
    folder: Path, *arguments: str, options: Sequence[str] = (), **environment: str
) -> Iterator[ServerProcess]:
    """Run the page on a free port; its uploads are in ``uploads`` of the folder."""
    command = ["demo.py", "--port", str(free_port()), *arguments]
    environment = {"GRADIO_TEMP_DIR": str(folder / "uploads"), **environment}
    with running(command, folder, options, **environment) as server:
        server.url = server.wait_until(r"the page is open at (\S+)")[1]
        yield server


def uploaded(server: ServerProcess) -> list[Path]:
    """Uploaded files that are still there, with those of the page itself."""
    files = server.folder.glob("uploads/minigpt4-page-*/*/*")
    return [file for file in files if file.is_file()]


@dataclass
class Outcome:
    """Result of an event."""

    data: list[Any] = field(default_factory=list)  # chat box, question box and status line
    messages: list[str] = field(default_factory=list)  # lines that the page showed on the way
    views: list[str] = field(default_factory=list)  # what changed on the way, as JSON

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
