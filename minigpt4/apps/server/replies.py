"""Replies: OpenAI's objects for answers and errors, as JSON that is always ASCII."""

import json
import logging
from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from minigpt4.chat import BusyError, NonFiniteLogitsError
from minigpt4.errors import MiniGPT4Error, one_line

logger = logging.getLogger(__name__)


class RequestError(MiniGPT4Error):
    """A request that cannot be answered; ``param`` names the field, ``code`` the kind of error."""

    def __init__(
        self,
        status: int,
        text: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers


def as_request_error(error: Exception) -> RequestError:
    """Return what a client sees of an error; only errors of the server are logged as well."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        wait = {"Retry-After": "2"}  # seconds
        return RequestError(429, str(error), code="server_busy", headers=wait)
    if isinstance(error, NonFiniteLogitsError):
        logger.error("%s", error)
        return RequestError(500, str(error), code="non_finite_logits")
    if isinstance(error, HTTPException):
        text = f"{error.detail}: see POST /v1/chat/completions, GET /v1/models and GET /health"
        return RequestError(error.status_code, text, headers=dict(error.headers or {}))
    if isinstance(error, MiniGPT4Error):
        return RequestError(400, str(error))
    logger.error("a request failed", exc_info=error)
    text = "the request failed inside the server, whose log says why"
    return RequestError(500, text, code="internal_error")


def error_object(error: RequestError) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    fields = {"message": one_line(error, 1000), "type": kind}
    return {"error": fields | {"param": error.param, "code": error.code}}


def encode(value: object) -> bytes:
    """Encode JSON in ASCII, which holds any text, even half a surrogate pair."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def json_reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


async def error_reply(request: Request, error: Exception) -> Response:
    """Reply to a request in which something was raised."""
    if isinstance(error, ClientDisconnect):
        return Response()  # to nobody
    told = as_request_error(error)
    return json_reply(error_object(told), told.status, told.headers)
