"""Gate: what of a request reaches gradio.

gradio would fetch an address of another host for a visitor, and read a body of any length.
"""

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOST_BYTES = 2 * 2**20  # of an event; pictures are uploaded by themselves


class Gate:
    """Refuses requests that name a file which was not uploaded, another host, or too much.

    Args:
        app: The page.
        uploads: Folder of the files that may be named.
    """

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        self.app = app
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if "/file=http" in path.lower() or "/proxy=" in path.lower():
            await _refuse(403)(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST" or path.endswith("/upload"):
            await self.app(scope, receive, send)
        else:
            await self._check_body(scope, receive, send)

    async def _check_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > _MOST_BYTES:
                await _refuse(413)(scope, receive, send)
                return
        try:
            allowed = self._allowed(json.loads(body))
        except RecursionError:
            allowed = False
        except ValueError:  # a form, as of a login
            allowed = True
        if not allowed:
            await _refuse(403)(scope, receive, send)
            return
        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _allowed(self, value: Any) -> bool:
        """Whether all files in an event are uploaded ones."""
        if isinstance(value, list):
            return all(map(self._allowed, value))
        if not isinstance(value, dict):
            return True
        if "path" in value:
            try:
                return Path(value["path"]).resolve().is_relative_to(self.uploads)
            except (TypeError, OSError, ValueError):
                return False
        return all(map(self._allowed, value.values()))


def _refuse(code: int) -> PlainTextResponse:
    return PlainTextResponse("not on this page", status_code=code)
