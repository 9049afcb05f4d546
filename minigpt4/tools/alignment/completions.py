"""Completions: one question to an OpenAI-compatible server → its reply, or what went wrong."""

import email.utils
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import httpx

from minigpt4.datasets.samples import printable
from minigpt4.errors import ConfigError, MiniGPT4Error, one_line

KEY = "OPENAI_API_KEY"  # the environment's; other users of a machine see command lines
_MOST_BYTES = 1 << 20  # of a reply
_PER_MESSAGE = 16  # tokens around a message's text, more than any server is known to add
_SHORTEST_KEY = 8  # what is shorter is a stand-in such as "EMPTY", and a word that texts may hold
_PASSING = (408, 409, 425, 429)  # beside 5xx: the same request may do later


class Tokens(NamedTuple):
    """What a request takes: tokens read, and tokens written."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class Reply(NamedTuple):
    """What a server wrote; ``cut_off`` at the most tokens it may write."""

    text: str
    cut_off: bool
    tokens: Tokens


class ServerRefusalError(MiniGPT4Error):
    """The server will not answer this user at all; asking again is of no use."""


class NoReplyError(Exception):
    """One request came to nothing.

    Attributes:
        passing: The same request may do later.
        paid: It may have been answered all the same, and paid.
        wait: Seconds that the server asks to wait for.
    """

    def __init__(
        self, reason: str, passing: bool = True, paid: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.passing = passing
        self.paid = paid
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's chat completions.

    Attributes:
        api_base: Its address, up to and with ``/v1``.
        model: As the server calls it.
        key: Sent as a bearer token; shown nowhere. Empty for a server that asks for none.
        timeout: Seconds for one reply.
    """

    api_base: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.api_base)
            sound = address.scheme in ("http", "https") and address.hostname
            secret = address.username or address.password or address.query or address.fragment
            address.port  # noqa: B018 -- raises where it is none
        except ValueError:
            sound, secret = None, None
        if secret:
            text = "an address alone, without user, password or ?query; a key comes from"
            raise ConfigError(f"--api-base: write {text} ${KEY}")
        if not sound:
            text = "is no address such as http://127.0.0.1:8000/v1"
            raise ConfigError(f"--api-base {printable(self.api_base)}: {text}")
        # A header takes nothing else, and its library's complaint would show the key.
        if not (self.key.isascii() and all("!" <= c <= "~" for c in self.key)):
            raise ConfigError(f"${KEY}: holds characters that no key has; set it again")

    def hide_key(self, text: str) -> str:
        """A text of the server's without the key, should it repeat it."""
        return text.replace(self.key, "[key]") if len(self.key) >= _SHORTEST_KEY else text


class Completions:
    """Asks an endpoint; safe to share among threads.

    Args:
        endpoint: Whom.
        system: Said before each question.
        temperature: Of the sampling.
        max_tokens: Longest reply.
    """

    def __init__(
        self, endpoint: Endpoint, system: str, temperature: float = 0.7, max_tokens: int = 200
    ) -> None:
        self.endpoint = endpoint
        self.max_tokens = max_tokens
        self._system = system
        self._temperature = temperature
        # A proxy cannot reach this machine's own servers.
        local = urlsplit(endpoint.api_base).hostname in ("127.0.0.1", "localhost", "::1")
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._http = httpx.Client(
            headers=headers, timeout=endpoint.timeout, trust_env=not local, follow_redirects=False
        )
        self._url = endpoint.api_base.rstrip("/") + "/chat/completions"

    def close(self) -> None:
        self._http.close()

    def most(self, text: str) -> Tokens:
        """At most what a question takes: no tokenizer makes more tokens than there are bytes."""
        read = len((self._system + text).encode("utf-8", "replace")) + 2 * _PER_MESSAGE
        return Tokens(read, self.max_tokens)

    def ask(self, text: str) -> Reply:
        """The reply to one question, asked once.

        Raises:
            ServerRefusalError: where nobody needs to ask again.
            NoReplyError: where this request came to nothing.
        """
        status, headers, body = self._send(
            {
                "model": self.endpoint.model,
                "messages": [
                    {"role": "system", "content": self._system},
                    {"role": "user", "content": text},
                ],
                "temperature": self._temperature,
                "max_tokens": self.max_tokens,
            }
        )
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not 200 <= status < 300:
            self._refuse(status, headers, self._message(content, body), content)
        return self._read_reply(content, text)

    def _send(self, request: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        body, end = b"", time.monotonic() + self.endpoint.timeout
        content = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream("POST", self._url, content=content, headers=headers) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise NoReplyError(f"a reply longer than {_MOST_BYTES:,} bytes", paid=True)
                    if time.monotonic() > end:  # httpx counts from each part anew
                        raise NoReplyError("no whole reply in time", paid=True)
                return response.status_code, response.headers, body
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoReplyError(f"no connection ({one_line(error)})") from error
        except httpx.TimeoutException as error:
            raise NoReplyError(f"no reply within {self.endpoint.timeout:g} s", paid=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise NoReplyError(f"no whole reply ({one_line(error)})", paid=True) from error

    def _message(self, content: Any, body: bytes) -> str:
        """What a server says about its refusal, fit for a line."""
        error = content.get("error") if isinstance(content, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        text = said if isinstance(said, str) else body.decode("utf-8", "replace")
        return printable(" ".join(self.endpoint.hide_key(text).split())[:200])

    def _refuse(self, status: int, headers: httpx.Headers, message: str, content: Any) -> NoReturn:
        said = f"answers {status} ({message})"
        where = f"--api-base {self.endpoint.api_base}: {said}"
        if status in (401, 403):
            has = "is refused" if self.endpoint.key else "is not set"
            raise ServerRefusalError(f"{where}; ${KEY} {has}: set it to a key of this server")
        if status == 404:
            text = f"is the address right up to /v1, and --model {self.endpoint.model} served there"
            raise ServerRefusalError(f"{where}; {text}?")
        if status < 400:
            text = "it sends elsewhere, where no key is sent along; name the final address"
            raise ServerRefusalError(f"{where}; {text}")
        error = content.get("error") if isinstance(content, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if status == 402 or code == "insufficient_quota":
            raise ServerRefusalError(f"{where}; the same command goes on once that is paid")
        passing = status in _PASSING or status >= 500
        raise NoReplyError(said, passing, wait=_retry_after(headers) if passing else 0.0)

    def _read_reply(self, content: Any, asked: str) -> Reply:
        try:
            choice = content["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str) or not text.strip():
                raise ValueError("no text in it")
            text.encode()  # half a character cannot be trained on
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoReplyError("200 with something that is no completion", paid=True) from error
        used = content.get("usage")
        used = used if isinstance(used, dict) else {}
        # What a server does not tell is counted as the most it can be.
        tokens = Tokens(
            _count(used.get("prompt_tokens"), self.most(asked).prompt),
            _count(used.get("completion_tokens"), len(text.encode())),
        )
        cut_off = choice.get("finish_reason") == "length"
        return Reply(self.endpoint.hide_key(text.strip()), cut_off, tokens)


def _count(told: Any, most: int) -> int:
    sound = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 10**9
    return told if sound else most


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds, of a header that says them or a date."""
    given = headers.get("Retry-After", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
