"""App: the server's paths, around one chat."""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from minigpt4.apps.server.answering import STOPPING, Answer, Order, Progress
from minigpt4.apps.server.limits import Limits
from minigpt4.apps.server.pictures import Fetcher, read_picture
from minigpt4.apps.server.replies import (
    RequestError,
    as_request_error,
    encode,
    error_object,
    error_reply,
    json_reply,
)
from minigpt4.apps.server.requests import ChatRequest, Picture, read_request, to_dialogue
from minigpt4.chat import BusyError, Chat
from minigpt4.errors import DataError, MiniGPT4Error, shown

_T = TypeVar("_T")


class Service:
    """One chat, whose queue gets the limits' places, offered to all who have the key, if any.

    Without a fetcher images that are given by their address are refused.
    """

    def __init__(
        self,
        chat: Chat,
        model_id: str,
        limits: Limits,
        api_key: str | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.chat = chat
        self.model_id = model_id
        self.limits = limits
        self.fetcher = fetcher
        self.answers: set[Answer] = set()  # in the making, or waiting
        self.answered = 0  # or given up by the client
        self.stopping = False
        self._api_key = api_key
        self._open = 0  # requests whose body is read or whose images are fetched
        self._since = int(time.time())
        chat.waiting.places = limits.places

    def stop(self) -> bool:
        """Refuse all but the answers whose turn has come; return whether there are any."""
        self.stopping = True
        for answer in self.answers:
            if not answer.begun:
                answer.cut()
        return bool(self.answers)

    def cut(self) -> None:
        """End every answer where it is."""
        for answer in self.answers:
            answer.cut()

    async def check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        key = b"Bearer " + (self._api_key or "").encode()
        if self._api_key is not None and not hmac.compare_digest(given, key):
            text = 'wrong or missing API key; send "Authorization: Bearer KEY"'
            raise RequestError(401, text, code="invalid_api_key")

    async def health(self) -> Response:
        self._forget()
        begun = sum(answer.begun for answer in self.answers)
        figures = {"status": "stopping" if self.stopping else "ok", "model": self.model_id}
        counts = {"answering": begun, "waiting": len(self.answers) - begun}
        return json_reply(figures | counts | {"answered": self.answered})

    async def models(self) -> Response:
        return json_reply({"object": "list", "data": [self._model()]})

    async def model(self, model_id: str) -> Response:
        self._check_model(model_id)
        return json_reply(self._model())

    async def complete(self, request: Request) -> Response:
        asked = await self._read(request)
        return await _unless_gone(request, self._reply(asked, request))

    def _model(self) -> dict[str, Any]:
        made = {"created": self._since, "owned_by": "minigpt4"}
        return {"id": self.model_id, "object": "model", **made}

    def _check_model(self, model_id: str) -> None:
        if model_id != self.model_id:
            text = f"model: there is no {shown(model_id)} here, only {self.model_id!r}"
            raise RequestError(404, text, "model", "model_not_found")

    async def _read(self, request: Request) -> ChatRequest:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            text = "send the request as JSON, with Content-Type: application/json"
            raise RequestError(415, text, code="unsupported_media_type")
        # Bodies lie in memory: no more of them than could be waiting soon.
        if self._open > 2 * self.limits.places:
            raise BusyError("too many requests at once; please try again in a moment")
        self._open += 1
        try:
            body = _read_body(request, self.limits.body_bytes)
            content = await asyncio.wait_for(body, self.limits.arrival_seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            text = f"the request took more than {self.limits.arrival_seconds:g} seconds to arrive"
            raise RequestError(408, text, code="timeout") from error
        finally:
            self._open -= 1
        asked = await asyncio.to_thread(read_request, content)
        self._check_model(asked.model)
        return asked

    async def _reply(self, asked: ChatRequest, request: Request) -> Response:
        """Return the answer, or a stream once it has begun: until then errors are HTTP errors."""
        order = await self._order(asked)
        if self.stopping:
            raise RequestError(503, STOPPING, code="stopping")
        ticket = self.chat.waiting.join((request.client and request.client.host, asked.user))
        answer = Answer(self.chat, order, ticket, self.limits.seconds)
        self._forget()
        self.answers.add(answer)
        progress = answer.progress()
        item = await anext(progress)
        if asked.stream:
            return _EventStream(self._events(asked, item, progress), answer.cut)
        while item.finish is None:
            item = await anext(progress)
        message = {"role": "assistant", "content": item.text, "refusal": None}
        choice = _choice("message", message, item.finish)
        return json_reply(self._frame("chat.completion") | choice | {"usage": item.usage})

    def _forget(self) -> None:
        """Count the answers that have ended, and keep the others."""
        alive = {answer for answer in self.answers if answer.thread.is_alive()}
        self.answered += len(self.answers) - len(alive)
        self.answers = alive

    async def _order(self, asked: ChatRequest) -> Order:
        dialogue = to_dialogue(asked.messages, self.limits.images)
        options = asked.options()
        most = self.chat.options.max_new_tokens
        tokens = options.get("max_new_tokens", most)
        if tokens > most:
            text = f"max_tokens: {tokens} is above this server's {most}"
            raise RequestError(400, text, "max_tokens", "invalid_value")
        if options.get("min_length", 0) > tokens:
            text = f"min_length: {options['min_length']} is above the longest answer, {tokens}"
            raise RequestError(400, text, "min_length", "invalid_value")
        self._open += 1
        try:
            pictures = {p.place: await self._fetch(p) for p in dialogue.pictures()}
        finally:
            self._open -= 1
        return Order(dialogue, pictures, options, asked.stop or ())

    async def _fetch(self, picture: Picture) -> bytes:
        try:
            return await read_picture(picture.url, self.fetcher)
        except DataError as error:
            text = f"{picture.place}: {error}"
            raise RequestError(400, text, picture.place, "invalid_image_url") from error

    def _frame(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{uuid.uuid4().hex}"
        fields = {"id": name, "object": kind, "created": int(time.time())}
        return fields | {"model": self.model_id}

    async def _events(
        self, asked: ChatRequest, item: Progress, progress: AsyncIterator[Progress]
    ) -> AsyncIterator[bytes]:
        """Yield a streamed answer: the role, what is new each time, its end, what it took."""
        frame = self._frame("chat.completion.chunk")
        counted = asked.stream_options is not None and asked.stream_options.include_usage

        def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
            usage = {"usage": None} if counted else {}
            return _event(frame | _choice("delta", delta, finish) | usage)

        yield chunk({"role": "assistant", "content": ""})
        sent = ""
        try:
            while True:
                if item.text.startswith(sent) and item.text != sent:
                    yield chunk({"content": item.text[len(sent) :]})
                    sent = item.text
                if item.finish is not None:
                    break
                item = await anext(progress)
        except Exception as error:
            yield _event(error_object(as_request_error(error)))
            return
        yield chunk({}, item.finish)
        if counted:
            yield _event(frame | {"choices": [], "usage": item.usage})
        yield b"data: [DONE]\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events; ``end`` is called when they end, or no one reads them any more."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def _choice(name: str, value: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, name: value, "logprobs": None, "finish_reason": finish}
    return {"choices": [choice]}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


async def _read_body(request: Request, most: int) -> bytes:
    """Read the body of a request; one of more than ``most`` bytes is refused."""
    # Many clients read a reply only once they have sent all, so some of what is too much is read.
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


async def _unless_gone(request: Request, reply: Awaitable[_T]) -> _T:
    """Return a reply; cancel it once the client has gone."""

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
        making.cancel()
        leaving.cancel()
        await asyncio.gather(making, leaving, return_exceptions=True)


def build_app(service: Service) -> FastAPI:
    """Build the paths; no pages, no redirects, and every error is JSON."""
    # Without openapi_url there are no pages, whose scripts would come from other hosts.
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for kind in (Exception, HTTPException, MiniGPT4Error, ClientDisconnect):
        app.add_exception_handler(kind, error_reply)
    key = [Depends(service.check_key)]
    add = app.add_api_route
    add("/health", service.health, methods=["GET"])
    add("/v1/models", service.models, methods=["GET"], dependencies=key)
    add("/v1/models/{model_id}", service.model, methods=["GET"], dependencies=key)
    add("/v1/chat/completions", service.complete, methods=["POST"], dependencies=key)
    return app
