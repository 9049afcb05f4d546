"""Waiting: one answer is made at a time; here stands who is next.

Clients come in turn, and each client's questions in the order they were asked: one who asks forty
things at once waits for himself, not the others for him.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from types import TracebackType

from minigpt4.errors import MiniGPT4Error


class BusyError(MiniGPT4Error):
    """As many questions wait already as may wait."""


class FairQueue:
    """Tickets of several clients, of whom one at a time is served.

    Args:
        places: Tickets that may wait; None: any number.
    """

    def __init__(self, places: int | None = None) -> None:
        self.places = places
        self._changed = threading.Condition()
        # In the order in which clients are served next; a client without tickets is not in it.
        self._waiting: OrderedDict[Hashable, deque[Ticket]] = OrderedDict()
        self._served: Ticket | None = None

    def join(self, client: Hashable = None) -> "Ticket":
        """A ticket for a client; an unnamed one is a client of his own.

        Raises:
            BusyError: when all places are taken.
        """
        with self._changed:
            waiting = len(self)
            if self.places is not None and waiting >= self.places:
                raise BusyError(
                    f"too many questions at once: {waiting} are waiting already; "
                    "please try again in a moment"
                )
            ticket = Ticket(self)
            ticket.client = ticket if client is None else client
            self._waiting.setdefault(ticket.client, deque()).append(ticket)
            self._next()
            return ticket

    def __len__(self) -> int:
        """How many wait, without the one that is served."""
        return sum(map(len, self._waiting.values()))

    def _next(self) -> None:
        """Serve the next one, where nobody is served; called with the lock held."""
        if self._served is not None or not self._waiting:
            return
        client, tickets = self._waiting.popitem(last=False)
        self._served = tickets.popleft()
        if tickets:
            self._waiting[client] = tickets  # behind the other clients
        self._changed.notify_all()


class Ticket:
    """A place in the queue; used as a context, it waits for its turn and ends it."""

    client: Hashable = None

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue

    def ahead(self) -> int:
        """How many answers are made before this one's; 0 when it is its turn."""
        with self._queue._changed:
            if self._queue._served is self:
                return 0
            place, before = 0, True
            for client, tickets in self._queue._waiting.items():
                if client == self.client:
                    own, before = tickets.index(self), False
                    place += own
                    break
            else:
                return 0
            for client, tickets in self._queue._waiting.items():
                if client == self.client:
                    before = True
                    continue
                first = 0 if before else 1
                place += min(len(tickets), own + first)
            return place + (self._queue._served is not None)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for one's turn; whether it has come."""
        with self._queue._changed:
            return self._queue._changed.wait_for(lambda: self._queue._served is self, seconds)

    def leave(self) -> None:
        """Give up one's place, or end one's turn; the next one is served."""
        queue = self._queue
        with queue._changed:
            if queue._served is self:
                queue._served = None
            elif self in queue._waiting.get(self.client, ()):
                queue._waiting[self.client].remove(self)
                if not queue._waiting[self.client]:
                    del queue._waiting[self.client]
            queue._next()
            queue._changed.notify_all()

    def __enter__(self) -> "Ticket":
        self.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
