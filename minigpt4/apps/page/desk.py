"""Desk: what the page's events do.

Values come as the browser sent them (``preprocess=False``): gradio would open files first, and fail
without a reason. It passes the request to annotated parameters.
"""

import html
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from minigpt4.apps import transcript
from minigpt4.apps.page.messages import (
    asked,
    check_question,
    from_text,
    place_of,
    read_message,
    read_options,
    says,
    show,
)
from minigpt4.apps.page.visits import PageTurn, Visit, Visits
from minigpt4.errors import DataError, MiniGPT4Error

if TYPE_CHECKING:
    from minigpt4.chat import Chat, ChatSession, GenerationOptions, Ticket

logger = logging.getLogger(__name__)

_GLANCE = 0.5  # seconds between two looks at the queue
_FRAME = 0.05  # seconds between two states of a growing answer

View = tuple[Any, Any, Any]  # values of chat box, question box and status line
SAME: View = (gr.skip(), gr.skip(), gr.skip())


@dataclass(eq=False)
class Desk:
    """Answers the page's events, once there is a chat."""

    visits: Visits
    options: "GenerationOptions"
    places: int  # for questions that wait
    _chat: "Chat | None" = None
    _since: float = field(default_factory=time.monotonic)

    def open(self, chat: "Chat") -> None:
        chat.waiting.places = self.places
        self._chat = chat

    def arrive(self, request: gr.Request) -> tuple[Any, Any]:
        self.visits.find(_key(request))
        return self.loading()

    def leave(self, request: gr.Request) -> None:
        self.visits.leave(_key(request))

    def loading(self) -> tuple[Any, Any]:
        """Return the status line, and the timer that polls it until there is a chat."""
        if self._chat is not None:
            return status(), gr.Timer(active=False)
        return status(f"Loading the model: {time.monotonic() - self._since:.0f} s"), gr.skip()

    def ask(self, request: gr.Request, message: object, *settings: object) -> Iterator[View]:
        """Answer the question in the box, which is emptied once that begins."""
        visit = self._visit(request)
        try:
            question, pictures = read_message(message, self.visits.uploads)
        except DataError as error:
            complain(error)
            yield SAME
            return
        yield from self._answer(visit, len(visit.turns), question, pictures, settings)

    def retry(self, request: gr.Request, *settings: object) -> Iterator[View]:
        """Answer the last question once more."""
        yield from self._again(self._visit(request), None, None, settings)

    def edit(self, request: gr.Request, event: gr.EditData, *settings: object) -> Iterator[View]:
        """Ask an earlier question differently; the chat continues from there."""
        visit = self._visit(request)
        yield from self._again(visit, place_of(event.index, visit.turns), event.value, settings)

    def undo(self, request: gr.Request) -> View:
        """Take the last question back into the question box."""
        visit = self._visit(request)
        try:
            visit.settle()
        except DataError as error:
            complain(error)
            return SAME
        if not visit.turns:
            return [], ready(), status()
        turn = visit.turns.pop()
        visit.session = turn.before
        return show(visit.turns), ready(turn.question, turn.pictures), status()

    def stop(self, request: gr.Request) -> None:
        """End the answer where it is; the model remembers it so."""
        self.visits.find(_key(request))[0].cancelled.set()

    def restart(self, request: gr.Request) -> View:
        try:
            self.visits.restart(_key(request))
        except DataError as error:
            complain(error)
            return SAME
        return [], ready(""), status()

    def suggest(
        self, message: object, question: str | None = None, picture: Path | None = None
    ) -> Any:
        """Add an example to the question box."""
        try:
            text, pictures = read_message(message, self.visits.uploads)
        except DataError:
            text, pictures = "", []
        files = [*map(str, pictures), *([str(picture)] if picture else [])]
        return gr.update(value={"text": text if question is None else question, "files": files})

    def save(self, request: gr.Request, kind: str) -> str:
        """Return the conversation as text; images by name."""
        turns = [
            transcript.Turn(turn.question, turn.answer, [picture.name for picture in turn.pictures])
            for turn in self._visit(request).turns
        ]
        return transcript.as_json(turns) if kind == "json" else transcript.as_markdown(turns)

    def _visit(self, request: gr.Request) -> Visit:
        visit, new = self.visits.find(_key(request))
        if new:
            gr.Info("This is a new chat: an earlier one is not remembered any more.")
        return visit

    def _again(
        self, visit: Visit, place: int | None, shown: object, settings: Sequence[object]
    ) -> Iterator[View]:
        try:
            visit.settle()
            place = len(visit.turns) - 1 if place is None else place
            if not 0 <= place < len(visit.turns):
                raise DataError("that question is not there any more")
        except DataError as error:
            complain(error)
            yield show(visit.turns), gr.skip(), gr.skip()
            return
        turn = visit.turns[place]
        question = from_text(shown) if isinstance(shown, str) else turn.question
        yield from self._answer(visit, place, question, turn.pictures, settings, from_box=False)

    def _answer(
        self,
        visit: Visit,
        place: int,
        question: str,
        pictures: list[Path],
        settings: Sequence[object],
        from_box: bool = True,
    ) -> Iterator[View]:
        """Answer a question as the turn at ``place``; if that works, later turns are dropped."""
        # A question that is not answered goes back to the box that it was taken from.
        back = (question, pictures) if from_box else ()
        words, earlier, began = question.strip(), visit.turns[:place], False
        try:
            if self._chat is None:
                raise DataError("the model is still loading; please wait a moment")
            with visit.answering(pictures):
                check_question(words, pictures, earlier, self.options.max_length)
                changes = read_options(settings, self.options)
                followed = visit.turns[place:]
                before = (followed[0].before if followed else visit.session) or self._chat.start()
                session = before.copy()
                ticket = self._chat.waiting.join(visit)
                began = True
                shown = [*show(earlier), *asked(words, pictures)]
                yield shown, running(emptied=from_box), status()
                parts = [*pictures, words]
                answer = yield from grow(self._chat, visit, ticket, parts, session, shown, changes)
                if answer or not visit.cancelled.is_set():
                    visit.turns = [*earlier, PageTurn(words, pictures, before, answer)]
                    visit.session, back = session, ()
                    tell_dropped(session.dropped - before.dropped)
            if not visit.ended:
                yield show(visit.turns), ready(*back), status()
        except Exception as error:  # whatever happens, the page stays usable
            complain(error)
            lost = not began or visit.ended
            yield SAME if lost else (show(visit.turns), ready(*back), status())


def _key(request: gr.Request) -> str:
    """Return the random key that the browser has given its page."""
    return str(request.session_hash)


def grow(
    chat: "Chat",
    visit: Visit,
    ticket: "Ticket",
    parts: Sequence[Any],
    session: "ChatSession",
    shown: list[dict[str, Any]],
    changes: dict[str, Any],
) -> Generator[View, None, str]:
    """Yield views while a question waits and its answer grows; return the session's new answer."""
    answer, last, told = "", 0.0, -1
    try:
        while not (visit.cancelled.is_set() or ticket.wait(_GLANCE)):
            if (ahead := ticket.ahead()) != told:
                told = ahead
                before = "1 answer comes" if ahead == 1 else f"{ahead} answers come"
                yield gr.skip(), gr.skip(), status(f"{before} before yours")
        yield gr.skip(), gr.skip(), status("Looking and thinking")
        stream = chat.stream(
            parts, (), session, ticket=ticket, cancelled=visit.cancelled, **changes
        )
        for answer in stream:
            if time.monotonic() - last > _FRAME:
                yield [*shown, says(answer)], gr.skip(), status("Writing")
                last = time.monotonic()
    finally:
        ticket.leave()
    return answer


def status(text: str = "") -> str:
    """Return the line above the question box, which pulses."""
    return f'<p role="status">{html.escape(text)} …</p>' if text else ""


def ready(question: str | None = None, pictures: Sequence[Path] = ()) -> Any:
    """Return the question box for use, with a question that replaces its content."""
    value = {"text": question, "files": [str(picture) for picture in pictures]}
    changes = {} if question is None else {"value": value}
    return gr.update(submit_btn=True, stop_btn=False, **changes)


def running(emptied: bool) -> Any:
    """Return the question box for the time of an answer."""
    changes = {"value": {"text": "", "files": []}} if emptied else {}
    return gr.update(submit_btn=False, stop_btn=True, **changes)


def tell_dropped(turns: int) -> None:
    if turns:
        what = "the oldest turn" if turns == 1 else f"the {turns} oldest turns"
        gr.Info(f"The context was full: the model does not remember {what} any more.")


def complain(error: Exception) -> None:
    """Show a user's mistake as one line; an error of the server is logged."""
    text = str(error)
    if not isinstance(error, MiniGPT4Error):
        logger.error("an answer failed", exc_info=error)
        text = "the answer failed inside the server, whose log says why; please ask again"
    if text.split(" ")[0].isalpha():  # a word, and no file's or option's name
        text = text[:1].upper() + text[1:]
    gr.Warning(html.escape(f"{text}.", quote=False))
