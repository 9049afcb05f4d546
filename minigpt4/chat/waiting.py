"""Waiting: one answer is made at a time; who is next, and how an answer grows in its turn.

Clients take turns, and each client's questions keep their order: one who asks forty things at once
does not delay the others.
"""

import queue
import threading
from collections.abc import Callable, Generator, Hashable
from itertools import chain, zip_longest

from minigpt4.errors import MiniGPT4Error

_POLL = 0.2  # seconds between two looks at whether one who waits has given up

Show = Callable[[str | None], None]  # takes the answer so far; None after the whole answer


class BusyError(MiniGPT4Error):
    """As many questions wait already as may wait."""


class FairQueue:
    """Tickets of several clients, of which one is served; ``places`` limits how many may wait."""

    def __init__(self, places: int | None = None) -> None:
        self.places = places
        self._lock = threading.Lock()
        # In the order in which clients are served next; a client without tickets is not in it.
        self._waiting: dict[Hashable, list[Ticket]] = {}
        self._served: Ticket | None = None

    def join(self, client: Hashable = None) -> "Ticket":
        """Return a ticket for a client; an unnamed one is a client of its own.

        Raises:
            BusyError: when all places are taken.
        """
        with self._lock:
            waiting = len(self)
            if self.places is not None and waiting >= self.places:
                raise BusyError(
                    f"too many questions at once: {waiting} are waiting already; "
                    "please try again in a moment"
                )
            ticket = Ticket(self, client)
            self._waiting.setdefault(ticket.client, []).append(ticket)
            self._serve_next()
            return ticket

    def __len__(self) -> int:
        """How many wait, without the one that is served."""
        return sum(map(len, self._waiting.values()))

    def order(self) -> list["Ticket | None"]:
        """Return the ticket that is served, and the others in the order in which they will be."""
        with self._lock:
            rounds = chain.from_iterable(zip_longest(*self._waiting.values()))
            return [self._served, *filter(None, rounds)]

    def remove(self, ticket: "Ticket") -> None:
        with self._lock:
            own = self._waiting.get(ticket.client, [])
            if self._served is ticket:
                self._served = None
            elif ticket in own:
                own.remove(ticket)
                if not own:
                    del self._waiting[ticket.client]
            self._serve_next()

    def _serve_next(self) -> None:
        """Serve the next ticket if none is served; called with the lock held."""
        if self._served is None and self._waiting:
            client = next(iter(self._waiting))
            first, *others = self._waiting.pop(client)
            if others:
                self._waiting[client] = others  # after the other clients
            self._served = first
            first.turn.set()


class Ticket:
    """A place in the queue; used as a context, it waits for its turn and ends it."""

    def __init__(self, queue: FairQueue, client: Hashable) -> None:
        self.client = self if client is None else client
        self.turn = threading.Event()
        self._queue = queue

    def ahead(self) -> int:
        """Return how many answers are made before this one's; 0 when it is its turn."""
        order = self._queue.order()
        return order.index(self) if self in order else 0

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the turn; return whether it has come."""
        return self.turn.wait(seconds)

    def leave(self) -> None:
        """Give up the place, or end the turn; the next one is served."""
        self._queue.remove(self)

    def __enter__(self) -> "Ticket":
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def stream_in_turn(
    generate: Callable[[Show], None], ticket: Ticket, cancelled: threading.Event
) -> Generator[str, None, None]:
    """Yield an answer as it grows, generated in a thread of its own when its turn has come.

    The turn belongs to the thread: one who reads slowly keeps no one waiting. Closing the
    generator cancels, and waits for the thread. What ``generate`` raises is raised here.
    """
    texts: queue.Queue[str | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            while not ticket.wait(_POLL):
                if cancelled.is_set():
                    return
            generate(texts.put)
        except BaseException as error:  # handed over: it belongs to the caller's thread
            texts.put(error)
        finally:
            ticket.leave()
            texts.put(None)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    answer = ""
    try:
        while (item := texts.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if item != answer:
                answer = item
                yield answer
    finally:
        cancelled.set()
        worker.join()
