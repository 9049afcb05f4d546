"""Terminal: one chat by keyboard, or by lines from a pipe.

Answers go to stdout and everything else to stderr, so that a pipe carries answers alone.
"""

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

from minigpt4.apps.transcript import Turn, as_json, as_markdown
from minigpt4.chat import Chat, ChatSession, open_image
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.files import write_atomically

HELP = """\
/image PATH   show a picture with the next question; several times for several pictures
/retry        answer the last question again
/undo         take back the last question; its pictures go with the next one
/clear        start a new chat
/save FILE    write the conversation, as .json or .md
/help         this list
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer where it is. A question that begins with / takes a space before it."""
_SIGN = "> "
_FORMATS = {".json": as_json, ".md": as_markdown}


class Terminal:
    """A chat and its turns; ``pictures`` are shown with the first question.

    If ``watched``, someone sees the answers grow, and may stop them with Ctrl-C.
    """

    def __init__(
        self, chat: Chat, pictures: Sequence[Path] = (), watched: bool = False, end: str = "\n"
    ) -> None:
        self.turns: list[Turn] = []
        self._chat = chat
        self._session = chat.start()
        self._pictures = [str(picture) for picture in pictures]
        self._watched = watched
        self._end = end
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: tell(HELP),
        }

    def follow(self, lines: Iterable[str]) -> None:
        """Take line by line, to the end or ``/quit``; a mistake ends it only if no one watches."""
        for line in lines:
            if line.strip() == "/quit":
                return
            try:
                self.take(line)
            except MiniGPT4Error as error:
                if not self._watched:
                    raise
                tell(f"error: {error}")

    def take(self, line: str) -> None:
        """Take one line: a command, a question, or nothing."""
        line = printable_text(line).rstrip()
        word, _, rest = line.lstrip().partition(" ")
        if line.startswith("/"):
            command = self._commands.get(word)
            if command is None:
                raise DataError(f"{word}: no such command; /help lists them")
            command(rest.strip())
        elif word:
            self.ask(line.lstrip())

    def ask(self, question: str) -> None:
        turn = Turn(question, "", self._pictures)
        self.turns.append(replace(turn, answer=self._answer(turn, self._session.copy())))
        self._pictures = []

    def _answer(self, turn: Turn, session: ChatSession) -> str:
        """Print the answer; the session with it becomes the chat's."""
        answer, dropped = "", session.dropped
        cancelled = threading.Event()
        guard: AbstractContextManager[list[int]] = nullcontext([])
        if self._watched:
            guard = stopped_by_ctrl_c(cancelled)
        with guard as pressed:
            for text in self._chat.stream(turn.question, turn.images, session, cancelled=cancelled):
                if self._watched:
                    write_grown(printable_text(answer), printable_text(text))
                answer = text
        if not self._watched:
            sys.stdout.write(printable_text(answer))
        sys.stdout.write(self._end)
        sys.stdout.flush()
        self._session = session
        if pressed:
            tell("(stopped)")
        if session.dropped > dropped:
            count = session.dropped - dropped
            tell(f"(the context is full: {count} of the oldest turns can no longer be seen)")
        return answer

    def _show(self, name: str) -> None:
        if not name:
            raise DataError("/image: name the file")
        picture = _as_typed(name)
        open_image(picture)
        self._pictures.append(str(picture))

    def _retry(self, _: str) -> None:
        turn, session = self._last(), self._session.copy()
        session.undo()
        self.turns[-1] = replace(turn, answer=self._answer(turn, session))

    def _undo(self, _: str) -> None:
        turn = self._last()
        self._pictures = [*turn.images, *self._pictures]
        self.turns.pop()
        self._session.undo()
        tell(f"taken back: {turn.question}")

    def _last(self) -> Turn:
        if not self.turns:
            raise DataError("nothing was asked yet")
        return self.turns[-1]

    def _clear(self, _: str) -> None:
        self._session, self.turns, self._pictures = self._chat.start(), [], []
        tell("a new conversation, without a picture so far")

    def _save(self, name: str) -> None:
        self._last()
        file = _as_typed(name)
        if file.suffix.lower() not in _FORMATS:
            raise DataError("/save: name a file that ends in .json or .md")
        text = _FORMATS[file.suffix.lower()](self.turns)
        write_atomically(file, lambda opened: opened.write(text.encode("utf-8", "replace")))
        tell(f"saved: {file}")


def typed_lines() -> Iterator[str]:
    """Yield lines from the keyboard, with a history for the arrow keys that is not saved."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    while True:
        try:
            yield input(_SIGN)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            raise


def tell(text: str) -> None:
    """Print anything but an answer, to stderr."""
    sys.stdout.flush()
    sys.stderr.write(printable_text(text) + "\n")
    sys.stderr.flush()


def printable_text(text: str) -> str:
    """Return text that cannot control the terminal: without control characters but new lines."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def write_grown(shown: str, text: str) -> None:
    """Write the new part of a growing text; all of it if the shown part has changed."""
    new = text[len(shown) :] if text.startswith(shown) else "\n" + text
    sys.stdout.write(new)
    sys.stdout.flush()


@contextlib.contextmanager
def stopped_by_ctrl_c(cancelled: threading.Event) -> Iterator[list[int]]:
    """Let Ctrl-C set ``cancelled`` and add to the list; a second one interrupts as always."""
    pressed: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)
        cancelled.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _as_typed(name: str) -> Path:
    """Return a file as people type or drag it: in quotes, with escaped spaces or a tilde."""
    with contextlib.suppress(ValueError):  # quotes that do not close
        words = shlex.split(name)
        if len(words) == 1 and not os.path.exists(name):
            (name,) = words
    return Path(os.path.expanduser(name))
