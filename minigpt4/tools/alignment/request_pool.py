"""Request pool: texts → a server's replies, several at a time, within a budget.

The openai client sends, waits and tries again. A reply is written to the journal with its tokens
at once, so that nothing that was received is paid for twice.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from minigpt4.datasets.samples import printable
from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.tools.alignment.server import KEY, Server, Tokens
from minigpt4.tools.alignment.work_folder import Journal, progress_bar

if TYPE_CHECKING:
    import openai

_MAX_FAILED_IN_A_ROW = 3  # texts new to the server, after which it counts as gone
_AROUND_MESSAGES = 32  # tokens around both messages, more than any server is known to add
_MIN_KEY = 8  # characters; what is shorter is a stand-in such as "EMPTY", which texts may hold

logger = logging.getLogger(__name__)


class ServerError(MiniGPT4Error):
    """A server that refuses this user, or that has stopped answering."""


class BudgetReachedError(MiniGPT4Error):
    """The next request could exceed the budget."""

    exit_code = 1


class Reply(NamedTuple):
    """What a server wrote; ``cut_off`` at the most tokens it may write."""

    text: str
    cut_off: bool


class RequestPool:
    """Asks a server about texts, after a system ``prompt``, and keeps its replies in a journal."""

    def __init__(
        self, server: Server, prompt: str, journal: Journal, temperature: float, max_tokens: int
    ) -> None:
        self.replies: dict[str, Reply] = {}  # of all runs, by text id
        self.failed: dict[str, str] = {}  # why a text has no reply, by its id
        self.spent = Tokens()  # of all runs
        self._server, self._journal, self._prompt = server, journal, prompt
        self._temperature, self._max_tokens = temperature, max_tokens
        self._failed_in_a_row = 0
        self._turn, self._next_turn = threading.Lock(), 0.0
        self._stopped = threading.Event()
        journal.replay(self._take)

    def ask(self, texts: Mapping[str, str]) -> None:
        """Ask about all texts, by id, that have no reply yet.

        However this ends, requests under way are waited for: they may be paid.
        """
        hard = frozenset(self.failed)
        # Asked last, and no sign of a server that has gone: the texts may be the cause.
        left = sorted((i for i in texts if i not in self.replies), key=hard.__contains__)
        if not left:
            return
        under_way: dict[Future[dict[str, Any]], Tokens] = {}
        with (
            progress_bar("replies", len(texts), len(texts) - len(left), "text") as bar,
            self._connect() as client,
            ThreadPoolExecutor(self._server.concurrency) as executor,
        ):
            try:
                while left or under_way:
                    most = self._most(texts[left[0]]) if left else Tokens()
                    if left and self._has_room(most, under_way.values()):
                        text_id = left.pop(0)
                        future = executor.submit(self._complete, client, text_id, texts[text_id])
                        under_way[future] = most
                    else:
                        future = next(as_completed(under_way))
                        del under_way[future]
                        row = future.result()
                        self._keep(row)
                        bar.update("reply" in row)
                        self._check_alive(row, hard)
            finally:
                self._stopped.set()
                for future in as_completed(under_way):
                    if not future.exception():
                        self._keep(future.result())
                self._stopped.clear()

    def _connect(self) -> "openai.OpenAI":
        import openai

        for name in ("openai", "httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a line for each request
        # A proxy cannot reach this machine's own servers; a key is sent to no other address.
        local = urlsplit(self._server.api_base).hostname in ("127.0.0.1", "localhost", "::1")
        return openai.OpenAI(
            api_key=self._server.key or "none",
            base_url=self._server.api_base,
            timeout=self._server.timeout,
            max_retries=self._server.attempts - 1,
            http_client=openai.DefaultHttpxClient(
                trust_env=not local,
                follow_redirects=False,
                event_hooks={"request": [self._before_request], "response": [self._after_response]},
            ),
        )

    def _before_request(self, request: Any) -> None:
        """Wait for the turn of a request, a repeated one too."""
        if not self._server.key:
            del request.headers["Authorization"]
        rate = self._server.requests_per_minute
        with self._turn:
            if self._stopped.wait(max(0.0, self._next_turn - time.monotonic())):
                raise KeyboardInterrupt  # the client takes an Exception for a lost connection
            self._next_turn = time.monotonic() + (60.0 / rate if rate else 0.0)

    def _after_response(self, response: Any) -> None:
        """Set the client's pause after a server error, where the server asks for none."""
        if response.is_error and "Retry-After" not in response.headers:
            retries = int(response.request.headers.get("x-stainless-retry-count", 0))
            pause = min(self._server.retry_seconds * 2**retries, 60.0)
            response.headers["Retry-After-Ms"] = str(1000 * pause)

    def _most(self, text: str) -> Tokens:
        """Return the most that a request takes: no tokenizer makes more tokens than bytes."""
        read = len((self._prompt + text).encode("utf-8", "replace"))
        return Tokens(read + _AROUND_MESSAGES, self._max_tokens)

    def _has_room(self, most: Tokens, under_way: Collection[Tokens]) -> bool:
        """Whether another request may be sent now; raise BudgetReachedError if it never may."""
        limit = self._server.exceeded_limit([self.spent, most, *under_way])
        if limit and not under_way:
            text = f"{limit}: the next request could exceed it ({sum(self.spent):,} tokens so far);"
            raise BudgetReachedError(
                f"{text} all replies are safe: raise it, and the same command goes on"
            )
        return limit is None and len(under_way) < self._server.concurrency

    def _complete(self, client: "openai.OpenAI", text_id: str, text: str) -> dict[str, Any]:
        """Return the reply to a text, or the reason for its absence, as the journal has it."""
        import openai

        failed, tokens = "200 with something that is no completion", self._most(text)
        try:
            completion = client.chat.completions.create(
                model=self._server.model,
                messages=[
                    {"role": "system", "content": self._prompt},
                    {"role": "user", "content": text.encode("utf-8", "replace").decode()},
                ],
                temperature=self._temperature,
                max_tokens=self._max_tokens,
            )
            choice = completion.choices[0]
            said = self._hide_key((choice.message.content or "").strip())
            said.encode()  # half a character cannot be trained on
            if said:
                tokens = _read_usage(completion.usage, tokens)
                cut_off = choice.finish_reason == "length"
                return {"image_id": text_id, "reply": said, "cut_off": cut_off, "tokens": tokens}
        except openai.APIStatusError as error:
            failed, tokens = self._read_refusal(error), Tokens()
        except openai.APIConnectionError as error:  # a time-out, too
            failed = f"{str(error).rstrip('.')}: {one_line(error.__cause__ or error)}"
            tokens = Tokens()
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            pass  # not a completion
        return {"image_id": text_id, "failed": failed, "tokens": tokens}

    def _read_refusal(self, error: "openai.APIStatusError") -> str:
        """Return why a text is refused; raise ServerError if every text would be."""
        said = printable(" ".join(self._hide_key(str(error)).split())[:300])
        key = f"${KEY} {'is refused' if self._server.key else 'is not set'}"
        hints = {
            401: f"{key}: set it to a key of this server",
            402: "the same command goes on once that is paid",
            403: f"{key}: set it to a key that may ask this model",
            404: f"is the address right up to /v1, and --model {self._server.model} served there?",
        }
        hint = hints.get(error.status_code)
        if error.status_code < 400:
            hint = "it sends elsewhere, where no key is sent along; name the final address"
        if hint:
            raise ServerError(f"--api-base {self._server.api_base}: {said}; {hint}")
        return said

    def _hide_key(self, text: str) -> str:
        key = self._server.key
        return text.replace(key, "[key]") if len(key) >= _MIN_KEY else text

    def _keep(self, row: Mapping[str, Any]) -> None:
        self._journal.add([row])
        self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        if "asked" in row:  # a request before it was sent, as earlier versions wrote
            return
        text_id, (read, written) = str(row["image_id"]), row["tokens"]
        self.spent = Tokens(self.spent.prompt + int(read), self.spent.completion + int(written))
        if "reply" in row:
            self.replies[text_id] = Reply(str(row["reply"]), bool(row["cut_off"]))
            self.failed.pop(text_id, None)
            self._failed_in_a_row = 0
        else:
            self.failed[text_id] = str(row["failed"])

    def _check_alive(self, row: Mapping[str, Any], hard: Collection[str]) -> None:
        if "reply" in row:
            return
        logger.warning("picture %s: no reply (%s)", row["image_id"], row["failed"])
        self._failed_in_a_row += row["image_id"] not in hard
        if self._failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            where = f"--api-base {self._server.api_base}"
            text = f"{where}: no reply to {_MAX_FAILED_IN_A_ROW} texts in a row ({row['failed']})"
            raise ServerError(f"{text}; all replies so far are safe: the same command goes on")


def _read_usage(usage: Any, most: Tokens) -> Tokens:
    """Return the tokens of a reply, or ``most`` if the server does not report them."""
    try:
        return Tokens(int(usage.prompt_tokens), int(usage.completion_tokens))
    except (AttributeError, TypeError, ValueError):
        return most
