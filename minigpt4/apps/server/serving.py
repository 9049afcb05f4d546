"""Serving: the app on a port, until a signal ends it."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import h11
import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt4.apps.server.app import Service, build_app
from minigpt4.apps.server.replies import RequestError, encode, error_object

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 2.0  # seconds for the last replies to be read, before their connections are closed


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(service: Service, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and exit with 128 + its number.

    The first signal lets answers under way go on for a moment; a second one ends at once.
    """
    Image.MAX_IMAGE_PIXELS = service.limits.pixels  # what load_image holds pictures against
    config = uvicorn.Config(
        build_app(service),
        http=JsonErrors,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # anybody could write them
        server_header=False,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    server = _Server(config, service)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving %s at http://%s:%d/v1", service.model_id, shown, port)
    server.run(sockets=[listening])
    assert server.signal is not None  # nothing else ends it
    logger.info("stopped by %s", signal.Signals(server.signal).name)
    if any(answer.thread.is_alive() for answer in server.left):
        # A thread deep in torch, ended by Python as it exits, may abort the process.
        _end_now(server.signal)
    sys.exit(128 + server.signal)


def _end_now(number: int) -> None:
    logging.shutdown()
    os._exit(128 + number)


class _Server(uvicorn.Server):
    """A uvicorn that stops as this project's programs do."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.signal: int | None = None
        self.service = service
        self.left = service.answers

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            _end_now(sig)
        self.signal = sig
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.left = set(self.service.answers)
        self.service.stop()
        seconds = self.service.limits.grace_seconds
        if self.left:
            logger.info("stopping: %g seconds for answers under way", seconds)
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, self.service.cut)
        loop.call_later(seconds + _PATIENCE, self._hang_up)
        await super().shutdown(sockets)
        for answer in self.left:
            await asyncio.to_thread(answer.thread.join, _PATIENCE)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


class JsonErrors(H11Protocol):
    """HTTP that tells even a garbled request in JSON what is wrong with it."""

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            fault = RequestError(400, "this is not HTTP as it should be", code="invalid_http")
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            body = h11.Data(data=encode(error_object(fault)))
            for part in (response, body, h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
