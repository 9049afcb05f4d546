"""Serving: the app on a port, until a signal ends it."""

import asyncio
import logging
import os
import resource
import signal
import socket
from types import FrameType
from typing import NoReturn

import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from minigpt4.apps.server.app import Service, build_app

logger = logging.getLogger(__name__)

_GRACE = 5  # seconds for answers under way when the server is told to stop
_PATIENCE = 2  # seconds for the last replies to be read, before their connections are closed
_REQUEST_SECONDS = 30  # for the head of a request to arrive; limits.py has those of its body
MAX_CONNECTIONS = 1000
_OTHER_FILES = 64  # descriptors that are not connections: weights, logs, fetched images


def serve(service: Service, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and exit with 128 + its number.

    The first signal lets answers under way go on for a moment; a second one ends at once.
    """
    Image.MAX_IMAGE_PIXELS = service.limits.pixels  # what load_image compares images with
    config = uvicorn.Config(
        build_app(service),
        http=HttpConnection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the app has logged what matters
        access_log=False,
        proxy_headers=False,  # any client could write them
        server_header=False,
        timeout_graceful_shutdown=_GRACE + _PATIENCE,
    )
    # A garbled body after a refusal is an error inside uvicorn, which asyncio would log at length.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _end_on_signals()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving %s at http://%s:%d/v1", service.model_id, shown, port)
    _Server(config, service).run(sockets=[listening])


class HttpConnection(H11Protocol):
    """A connection that is closed if no whole request arrives in time.

    When there are too many, the one that has waited longest without a request makes room.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_REQUEST_SECONDS, self._close_if_idle)
        limit = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES)
        if len(self.connections) > max(limit, 1):
            others = [c for c in self.connections if isinstance(c, HttpConnection) and c.is_idle()]
            min(others, key=lambda other: other._deadline.when()).transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._deadline.cancel()
        self._deadline = self.loop.call_later(_REQUEST_SECONDS, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def is_idle(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self.is_idle():
            self.transport.close()


class _Server(uvicorn.Server):
    """A uvicorn that lets answers end before it does."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _end_on_signals()  # a second one; uvicorn raises the first one again when it has stopped
        if self.service.stop():
            logger.info("stopping: %d seconds for answers under way", _GRACE)
        asyncio.get_running_loop().call_later(_GRACE, self.service.cut)
        await super().shutdown(sockets)


def _end_on_signals() -> None:
    for number in HANDLED_SIGNALS:
        signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> NoReturn:
    """End the process at once: Python's own exit may abort in a thread that is deep in torch."""
    logger.info("stopped by %s", signal.Signals(number).name)
    logging.shutdown()
    os._exit(128 + number)
