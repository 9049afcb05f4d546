"""Gate: which requests reach gradio, which reads bodies of any length and fetches addresses.

gradio itself refuses files that were not uploaded; but an address in the place of a file is fetched
from any public host.
"""

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_BYTES = 2 * 2**20  # of an event; images are uploaded separately


class Gate:
    """Refuse events that are too long, or name a file outside the folder of uploads."""

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        self.app = app
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if "/file=http" in path.lower():
            await _refuse(403)(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST" or path == "/gradio_api/upload":
            await self.app(scope, receive, send)
        else:
            await self._check_body(scope, receive, send)

    async def _check_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > _MAX_BYTES:
                await _refuse(413)(scope, receive, send)
                return
        try:
            json.loads(body, object_hook=self._check_file)
        except (PermissionError, RecursionError):
            await _refuse(403)(scope, receive, send)
            return
        except ValueError:  # a form, as of a login
            pass
        parts = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> Message:
            return next(parts, None) or await receive()

        await self.app(scope, again, send)

    def _check_file(self, value: dict[str, Any]) -> None:
        if "path" in value and not is_within(value["path"], self.uploads):
            raise PermissionError


def is_within(name: object, folder: Path) -> bool:
    try:
        return Path(str(name)).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # a name of a megabyte, or with a zero in it
        return False


def _refuse(code: int) -> PlainTextResponse:
    return PlainTextResponse("not on this page", status_code=code)
