"""Streaming: an answer is generated in a thread of its own, and yielded as it grows."""

import queue
import threading
from collections.abc import Callable, Generator

from minigpt4.chat.waiting import Ticket

_POLL = 0.2  # seconds between two looks at whether one who waits has given up

Show = Callable[[str | None], None]  # takes the answer so far; None after the whole answer


def stream_in_turn(
    generate: Callable[[Show], None], ticket: Ticket, cancelled: threading.Event
) -> Generator[str, None, None]:
    """Yield an answer as it grows, generated when its turn has come.

    The turn belongs to the thread: one who reads slowly keeps nobody waiting. Closing the
    generator cancels, and waits for the thread.

    Args:
        generate: Passes the answer so far to the function that it receives.
        ticket: A place in the queue, which is left at the end.
        cancelled: When set, nothing is generated any more; set at the end.

    Raises:
        Exception: what ``generate`` raises.
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
