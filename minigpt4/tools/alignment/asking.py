"""Asking: drafts → a server's replies, several at a time, in good time and within a budget."""

import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.alignment.completions import Completions, Endpoint, NoReplyError
from minigpt4.tools.alignment.ledger import Budget, Ledger

_LONGEST_PAUSE = 60.0  # seconds, of our own; a server may ask for more
_PATIENCE = 600.0  # seconds that a server may ask for
_GIVEN_UP = 3  # pictures in a row, of those new to the server, after which it counts as gone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manners:
    """How a server is asked.

    Attributes:
        concurrency: Requests under way at a time.
        requests_per_minute: Of all of them, retries too; no limit without.
        attempts: For one picture, before it is left for the next run.
        first_pause: Seconds before the second attempt; doubled before each one after it.
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    attempts: int = 6
    first_pause: float = 1.0


@dataclass(frozen=True)
class Server:
    """Whom to ask, how, and for how much."""

    endpoint: Endpoint
    manners: Manners
    budget: Budget


class ServerGoneError(MiniGPT4Error):
    """A server that has stopped answering."""


class Asking:
    """One round of questions: those that the ledger has no reply to.

    Args:
        completions: Whom to ask.
        ledger: Where it is written down.
        manners: How.
    """

    def __init__(self, completions: Completions, ledger: Ledger, manners: Manners) -> None:
        self._completions = completions
        self._ledger = ledger
        self._manners = manners
        self._pace = _Pace(manners.requests_per_minute)
        self._stopped = threading.Event()
        self._faults: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._hard = frozenset(ledger.failed)
        self._counting = threading.Lock()
        self._given_up_in_a_row = 0
        self.given_up: dict[str, str] = {}

    def run(self, drafts: Mapping[str, str]) -> None:
        """Ask about all drafts, by picture id; replies are in the ledger.

        What comes to nothing is in ``given_up``, with the reason. However this ends, requests under
        way are waited for: they may be paid.

        Raises:
            MiniGPT4Error: for a reached budget, a server that refuses or has gone, or a full disk.
        """
        waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        todo = [(i, text) for i, text in drafts.items() if i not in self._ledger.replies]
        # Last, and no sign of a server that has gone: it may be these texts that it cannot bear.
        todo.sort(key=lambda item: item[0] in self._hard)
        for item in todo:
            waiting.put(item)
        calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
        with (
            logging_redirect_tqdm(),
            tqdm(
                desc="replies",
                total=len(drafts),
                initial=len(drafts) - len(todo),
                mininterval=calm,
                unit="text",
            ) as bar,
        ):
            workers = [
                threading.Thread(target=self._work, args=(waiting, bar), daemon=True)
                for _ in range(min(self._manners.concurrency, len(todo)))
            ]
            try:
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
            finally:
                self._stopped.set()
                for worker in workers:
                    worker.join()
        if not self._faults.empty():
            raise self._faults.get()

    def _work(self, waiting: "queue.SimpleQueue[tuple[str, str]]", bar: "tqdm[None]") -> None:
        try:
            while not self._stopped.is_set():
                image_id, text = waiting.get_nowait()
                if self._ask(image_id, text):
                    bar.update()
        except queue.Empty:
            return
        except BaseException as error:  # handed over: it belongs to the caller's thread
            self._faults.put(error)
            self._stopped.set()

    def _ask(self, image_id: str, text: str) -> bool:
        """Ask about one draft until there is a reply; whether there is one."""
        reason = ""
        for attempt in range(self._manners.attempts):
            pause = self._manners.first_pause * 2 ** (attempt - 1) if attempt else 0.0
            pause = min(pause, _LONGEST_PAUSE) * random.uniform(0.75, 1.25)
            if self._stopped.wait(pause) or not self._pace.wait(self._stopped):
                return False
            if not self._ledger.begin(image_id, self._completions.most(text), self._stopped):
                return False
            try:
                reply = self._completions.ask(text)
            except NoReplyError as error:
                reason = str(error)
                self._ledger.fail(image_id, reason, error.paid)
                if error.wait > _PATIENCE:
                    text = f"the server asks to wait for {error.wait:.0f} s ({reason})"
                    raise ServerGoneError(f"{text}; the same command goes on then") from error
                self._pace.hold_off(error.wait)
                if not error.passing:
                    break
            except MiniGPT4Error as error:
                self._ledger.fail(image_id, str(error), paid=False)
                raise
            else:
                self._ledger.end(image_id, reply)
                with self._counting:
                    self._given_up_in_a_row = 0
                return True
        self._give_up(image_id, reason)
        return False

    def _give_up(self, image_id: str, reason: str) -> None:
        logger.warning("picture %s: no reply (%s)", image_id, reason)
        with self._counting:
            self.given_up[image_id] = reason
            self._given_up_in_a_row += image_id not in self._hard
            gone = self._given_up_in_a_row >= _GIVEN_UP
        if gone:
            address = self._completions.endpoint.api_base
            text = f"--api-base {address}: no reply to {_GIVEN_UP} texts in a row ({reason})"
            raise ServerGoneError(f"{text}; all replies so far are safe: the same command goes on")


class _Pace:
    """When the next request may be sent, by whichever thread."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def hold_off(self, seconds: float) -> None:
        """Nobody asks for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def wait(self, stopped: threading.Event) -> bool:
        """Wait for one's turn; False where all were stopped meanwhile."""
        while True:
            with self._lock:
                left = self._next - time.monotonic()
                if left <= 0:
                    self._next = time.monotonic() + self._gap
                    return not stopped.is_set()
            if stopped.wait(left):
                return False
