"""Connections of the server: those without a request are closed, and never shut others out."""

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from minigpt4.apps.arguments import open_socket
from minigpt4.apps.server import serving
from minigpt4.apps.server.serving import HttpConnection
from tests.helpers.processes import started
from tests.helpers.server_process import running_server


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """A server of this kind of connection; gives its port."""
    listening = open_socket("127.0.0.1", 0)
    config = uvicorn.Config(app, http=HttpConnection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listening]))
    yield listening.getsockname()[1]
    server.should_exit = True
    await task


async def read(port: int, *parts: bytes) -> bytes:
    """Send something, and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), timeout=60)
    finally:
        writer.close()


REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        ((), 0),
        ((b"GET / HTTP/1.1\r\nHost: he",), 0),
        ((REQUEST, b"GET / HTTP/1.1\r\nHost: he"), 1),  # a half one on a kept connection
    ],
)
def test_a_connection_without_a_whole_request_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: tuple[bytes, ...], answers: int
):
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 0.3)

    async def measure() -> bytes:
        async with served() as port:
            return await read(port, *sent)

    assert asyncio.run(measure()).count(b"200 OK") == answers


def test_beyond_the_limit_the_one_that_waits_longest_makes_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 3)

    async def measure() -> tuple[list[bytes], bytes]:
        async with served() as port:
            waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            answer = await read(
                port, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            )
            ended = []
            for reader, writer in waiting[:2]:
                try:
                    ended.append(await asyncio.wait_for(reader.read(), timeout=60))
                except ConnectionResetError:
                    ended.append(b"")
                writer.close()
            return ended, answer

    ended, answer = asyncio.run(measure())
    assert ended == [b"", b""]
    assert b"200 OK" in answer


def test_replies_do_not_wait_for_an_acknowledgement():
    with open_socket("127.0.0.1", 0) as listening:
        address = listening.getsockname()
        with socket.create_connection(address), listening.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@contextmanager
def few_files(count: int) -> Iterator[None]:
    """Let processes that start meanwhile open so many files at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


IDLE = """
import socket, sys, time
held = []
for _ in range(300):
    held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
print("connected", flush=True)
time.sleep(600)
"""


def test_idle_connections_do_not_shut_others_out():
    with ExitStack() as stack:
        with few_files(160):
            server = stack.enter_context(running_server())
        idle = stack.enter_context(
            started([sys.executable, "-c", IDLE, server.port], stdout=subprocess.PIPE)
        )
        assert idle.stdout is not None
        assert idle.stdout.readline() == "connected\n"
        for _ in range(5):
            assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        assert len(server.log()) < 20_000
