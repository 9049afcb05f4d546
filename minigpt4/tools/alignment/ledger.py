"""Ledger: what was asked of a server and what it took, so that nothing is paid twice.

A request is written down before it is sent, and its end before the next one: whatever stands open
after a kill was under way, and counts as paid in full.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.tools.alignment.completions import Reply, Tokens
from minigpt4.tools.alignment.journal import Journal

_GLANCE = 0.2  # seconds between two looks at whether all were stopped


class BudgetReachedError(MiniGPT4Error):
    """The next request could exceed the budget; what was paid for is safe. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Budget:
    """How much may be spent, of all runs on the same folder together.

    Attributes:
        max_tokens: Read and written; no limit without.
        max_cost: In the currency of the prices; no limit without.
        prompt_price: Of a million tokens read.
        completion_price: Of a million tokens written.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def cost(self, tokens: Tokens) -> float:
        read, written = tokens
        return (read * self.prompt_price + written * self.completion_price) / 1e6

    def fault(self, tokens: Tokens) -> str | None:
        """The option whose limit is exceeded by so many tokens."""
        if self.max_tokens is not None and tokens.total > self.max_tokens:
            return f"--max-tokens-total {self.max_tokens}"
        if self.max_cost is not None and self.cost(tokens) > self.max_cost:
            return f"--max-cost {self.max_cost:g}"
        return None


@dataclass
class _Spending:
    """Tokens of what has ended, and of what is under way by picture."""

    ended: Tokens = field(default_factory=Tokens)
    open: dict[str, Tokens] = field(default_factory=dict)

    def total(self, *more: Tokens) -> Tokens:
        parts = [self.ended, *more, *self.open.values()]
        return Tokens(sum(p.prompt for p in parts), sum(p.completion for p in parts))

    def end(self, tokens: Tokens) -> None:
        self.ended = Tokens(self.ended[0] + tokens[0], self.ended[1] + tokens[1])


class Ledger:
    """Requests and replies over a journal; safe to share among threads.

    Args:
        journal: Of this ledger alone.
        budget: What may be spent.

    Attributes:
        replies: By the picture's id.
        failed: Pictures for which a request came to nothing.
        interrupted: Requests that were under way when a process was killed.

    Raises:
        DataError: for a journal of something else.
    """

    def __init__(self, journal: Journal, budget: Budget) -> None:
        self.replies: dict[str, Reply] = {}
        self.failed: set[str] = set()
        self.interrupted = 0
        self._journal = journal
        self._budget = budget
        self._spending = _Spending()
        self._changed = threading.Condition()
        for number, row in enumerate(journal.rows, 1):
            try:
                self._take(row)
            except (KeyError, TypeError, ValueError) as error:
                text = f"{journal.path}:{number}: not a line of this command"
                raise DataError(f"{text}; choose another --output") from error
        for tokens in self._spending.open.values():
            self.interrupted += 1
            self._spending.end(tokens)
        self._spending.open.clear()

    @property
    def spent(self) -> Tokens:
        """Of everything so far; what was not told is counted as the most it can be."""
        with self._changed:
            return self._spending.total()

    @property
    def cost(self) -> float:
        return self._budget.cost(self.spent)

    def begin(self, image_id: str, most: Tokens, stopped: threading.Event) -> bool:
        """Write down that a request is sent, once the budget has room for it.

        Returns:
            False where all were stopped meanwhile: nothing is to be sent.

        Raises:
            BudgetReachedError: where it has none, and no request under way can make some.
        """
        with self._changed:
            while (
                over := self._budget.fault(self._spending.total(most))
            ) is not None and not stopped.is_set():
                if not self._spending.open:
                    text = f"{over}: the next request could exceed it"
                    spent = f"{self._spending.total().total:,} tokens"
                    mend = "all replies are safe: raise it, and the same command goes on"
                    raise BudgetReachedError(f"{text} ({spent} so far); {mend}")
                self._changed.wait(_GLANCE)
            if stopped.is_set():
                return False
            self._spending.open[image_id] = most
            try:
                self._journal.add([{"image_id": image_id, "asked": [*most]}])
            except BaseException:
                del self._spending.open[image_id]
                raise
            return True

    def end(self, image_id: str, reply: Reply) -> None:
        """Write down a reply."""
        row = {"image_id": image_id, "reply": reply.text, "cut_off": reply.cut_off}
        self._end({**row, "tokens": [*reply.tokens]})

    def fail(self, image_id: str, reason: str, paid: bool) -> None:
        """Write down that a request came to nothing; one that may be paid counts in full."""
        tokens = self._spending.open[image_id] if paid else Tokens()
        self._end({"image_id": image_id, "failed": reason, "tokens": [*tokens]})

    def _end(self, row: dict[str, Any]) -> None:
        with self._changed:
            try:
                self._journal.add([row])
            except BaseException:
                self._spending.end(self._spending.open.pop(row["image_id"]))
                raise
            else:
                self._take(row)
            finally:
                self._changed.notify_all()

    def _take(self, row: dict[str, Any]) -> None:
        image_id = str(row["image_id"])
        if "asked" in row:
            if image_id in self._spending.open:  # under way when a process was killed
                self.interrupted += 1
                self._spending.end(self._spending.open[image_id])
            prompt, completion = map(int, row["asked"])
            self._spending.open[image_id] = Tokens(prompt, completion)
            return
        tokens = Tokens(*map(int, row["tokens"]))
        self._spending.open.pop(image_id, None)
        self._spending.end(tokens)
        if "failed" in row:
            self.failed.add(image_id)
        if "reply" in row:
            self.replies[image_id] = Reply(str(row["reply"]), bool(row["cut_off"]), tokens)
