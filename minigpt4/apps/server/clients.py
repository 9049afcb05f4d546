"""Clients: their requests are read with patience, but not any amount of it, and they may leave."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from minigpt4.apps.server.replies import RequestError

_T = TypeVar("_T")


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: 413, when it is larger than ``most`` bytes.
    """
    # Many clients read a reply only once they have sent all, so what is too much is read, too; but
    # not any amount of it.
    patience = 4 * most
    told = request.headers.get("content-length", "")
    body, length = bytearray(), int(told) if told.isdecimal() else 0
    if length <= patience:
        length = 0
        async for chunk in request.stream():
            length += len(chunk)
            if length <= most:
                body += chunk
            elif length > patience:
                break
    if length > most:
        text = f"the request is larger than {most:,} bytes, which are the most"
        raise RequestError(413, text, code="request_too_large", headers={"Connection": "close"})
    return bytes(body)


async def unless_gone(request: Request, reply: Awaitable[_T]) -> _T:
    """A reply that is not waited for any more once the client has gone.

    Raises:
        ClientDisconnect: then; the making of the reply is cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    making, leaving = asyncio.ensure_future(reply), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise ClientDisconnect
        return making.result()
    finally:
        for task in (making, leaving):
            task.cancel()
        await asyncio.gather(making, leaving, return_exceptions=True)
