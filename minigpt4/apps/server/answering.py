"""Answering: the chat writes an answer in a thread; the event loop reads it as it grows."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from minigpt4.apps.server.replies import RequestError
from minigpt4.apps.server.requests import Dialogue, Picture, Words
from minigpt4.chat import Chat, Part, Ticket
from minigpt4.chat.generation import before_stops, hold_back
from minigpt4.datasets.images import load_image
from minigpt4.errors import DataError

STOPPING = "the server is stopping; please ask again in a moment"
_GLANCE = 0.2  # seconds between two looks at whether one who waits has given up


@dataclass(frozen=True)
class Order:
    """What is to be answered, and how."""

    dialogue: Dialogue
    pictures: dict[str, bytes]  # encoded image at each place in the dialogue
    options: dict[str, Any]  # changes of the chat's options
    stops: Sequence[str] = ()  # texts at which the answer is cut


@dataclass(frozen=True)
class Progress:
    """The part of the answer that can no longer change; the last one says how it ended."""

    text: str
    finish: Literal["stop", "length"] | None = None
    usage: dict[str, Any] | None = None  # as OpenAI counts tokens


class Answer:
    """One answer that is being written, or waits to be.

    It gives up its ticket of the chat's queue at the end, and is cut after ``seconds`` of writing.
    """

    def __init__(self, chat: Chat, order: Order, ticket: Ticket, seconds: float) -> None:
        self._chat = chat
        self._order = order
        self._ticket = ticket
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Progress | Exception] = asyncio.Queue()
        self._cancelled = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    @property
    def begun(self) -> bool:
        """Whether its turn has come."""
        return self._ticket.turn.is_set()

    def cut(self) -> None:
        """End it where it is; while it waits, that is an error."""
        self._cancelled.set()

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Yield the answer as it grows; closing this ends it."""
        try:
            finish = None
            while finish is None:
                item = await self._items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                finish = item.finish
        finally:
            self.cut()

    def _work(self) -> None:
        timer = threading.Timer(self._seconds, self.cut)
        timer.daemon = True
        try:
            while not self._ticket.wait(_GLANCE) and not self._cancelled.is_set():
                pass
            if self._cancelled.is_set():
                raise RequestError(503, STOPPING, code="stopping")
            timer.start()
            self._make()
        except Exception as error:  # handed over: the event loop tells the client
            self._tell(error)
        finally:
            timer.cancel()
            self._ticket.leave()

    def _make(self) -> None:
        order = self._order
        history = [(self._parts(words), answer) for words, answer in order.dialogue.turns]
        question = self._parts(order.dialogue.question)
        session = self._chat.start(history)
        given = order.options | {"ticket": self._ticket, "cancelled": self._cancelled}
        text, found = "", False
        for grown in self._chat.stream(question, session=session, **given):
            text = before_stops(grown, order.stops)
            if found := text != grown:
                self.cut()  # and read on: what it took is known at its end
            else:
                self._tell(Progress(hold_back(text, order.stops)))
        usage = session.usage
        assert usage is not None  # an answer has ended
        counts = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.answer,
            "total_tokens": usage.prompt + usage.answer,
            "prompt_tokens_details": {"cached_tokens": usage.kept},
        }
        stopped = found or usage.end == "stop"
        self._tell(Progress(text, "stop" if stopped else "length", counts))

    def _parts(self, words: Words) -> list[Part]:
        """Open images only when their turn has come: all that wait may take too much memory."""
        return [self._open(part) if isinstance(part, Picture) else part for part in words]

    def _open(self, picture: Picture) -> Image.Image:
        try:
            return load_image(self._order.pictures[picture.place], shown=True)
        except DataError as error:
            text = f"{picture.place}: {error}"
            raise RequestError(400, text, picture.place, "invalid_image") from error

    def _tell(self, item: Progress | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: no one listens any more
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
