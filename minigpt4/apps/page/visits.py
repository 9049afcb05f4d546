"""Visits: the chat of each visitor of the page, and when it is forgotten.

The browser only shows a copy: nothing it sends can put words or images into a chat.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.errors import DataError

if TYPE_CHECKING:
    from minigpt4.chat import ChatSession

MAX_VISITS = 1000  # the one longest unseen makes room
_OPEN = 24 * 3600.0  # seconds that a page left open and unused is remembered
_SETTLE = 60.0  # seconds in which a cancelled answer has to stop


@dataclass
class PageTurn:
    """A question and its answer; ``before`` is the session until then."""

    question: str
    pictures: list[Path]
    before: "ChatSession"
    answer: str


@dataclass(eq=False)
class Visit:
    """One visitor's chat."""

    session: "ChatSession | None" = None  # None before the first answer
    turns: list[PageTurn] = field(default_factory=list)
    asked: list[Path] = field(default_factory=list)  # images of the question that is answered now
    cancelled: threading.Event = field(default_factory=threading.Event)  # ends the current answer
    ended: bool = False  # whether it is forgotten; no answer joins it any more
    forget_at: float = 0.0
    _answering: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def answering(self, pictures: list[Path]) -> Iterator[None]:
        """Hold this while a question about these images is answered; one at a time."""
        if not self._answering.acquire(blocking=False):
            raise DataError("the last answer is still being written; wait for it, or stop it")
        try:
            self.cancelled.clear()
            self.asked = pictures
            if self.ended:
                self.cancelled.set()
            yield
        finally:
            self.asked = []
            self._answering.release()

    def settle(self) -> None:
        """End the current answer where it is, and wait until it has joined."""
        self.cancelled.set()
        if not self._answering.acquire(timeout=_SETTLE):
            raise DataError("the last answer does not stop; please try again in a moment")
        self._answering.release()


class Visits:
    """All visits, and the folder of their uploads, which are deleted when no chat shows them.

    A chat outlives its connection, and a file its upload, by ``keep`` seconds.
    """

    def __init__(self, uploads: Path, keep: float) -> None:
        self.uploads = uploads.resolve()
        self.keep = keep
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}  # the longest unseen first
        self._of_the_page: set[Path] = set()

    def __len__(self) -> int:
        return len(self._visits)

    def keep_files(self) -> None:
        """Keep what is in the folder now: it belongs to the page itself."""
        self._of_the_page = set(self._files())

    def find(self, visitor: str) -> tuple[Visit, bool]:
        """Return the visit, and whether it is new."""
        with self._lock:
            new = visitor not in self._visits
            visit = Visit() if new else self._visits.pop(visitor)
            visit.forget_at = time.monotonic() + _OPEN
            self._visits[visitor] = visit
            if len(self._visits) > MAX_VISITS:
                self._forget(next(iter(self._visits)))
            return visit, new

    def restart(self, visitor: str) -> None:
        """Forget a visitor's chat, once its last answer has ended, and open another."""
        with self._lock:
            visit = self._forget(visitor) if visitor in self._visits else None
        if visit:
            visit.settle()
        self.find(visitor)

    def leave(self, visitor: str) -> None:
        """Forget the chat a while later: the page was closed, or the connection lost."""
        with self._lock:
            if visit := self._visits.get(visitor):
                visit.cancelled.set()
                visit.forget_at = time.monotonic() + self.keep

    def sweep(self) -> None:
        """Forget visits whose time is over, and their files."""
        with self._lock:
            now = time.monotonic()
            for visitor in [name for name, v in self._visits.items() if v.forget_at < now]:
                self._forget(visitor)
            shown = set(self._of_the_page)
            for visit in self._visits.values():
                shown |= {*visit.asked, *(p for turn in visit.turns for p in turn.pictures)}
        uploaded_before = time.time() - self.keep
        for file in self._files():
            with suppress(OSError):  # it may be gone, or another upload fill its folder again
                if file not in shown and file.stat().st_mtime < uploaded_before:
                    file.unlink()
                    file.parent.rmdir()

    def close(self) -> None:
        """End every answer."""
        with self._lock:
            for visit in self._visits.values():
                visit.cancelled.set()

    def _forget(self, visitor: str) -> Visit:
        visit = self._visits.pop(visitor)
        visit.ended = True
        visit.cancelled.set()
        return visit

    def _files(self) -> list[Path]:
        return [path for path in self.uploads.rglob("*") if path.is_file()]
