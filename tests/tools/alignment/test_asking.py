"""A real server, in all its moods: what is asked, how often, and what is written down of it."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from minigpt4.errors import ConfigError, MiniGPT4Error
from minigpt4.tools.alignment.asking import Asking, Manners, ServerGoneError
from minigpt4.tools.alignment.completions import Completions, Endpoint, ServerRefusalError, Tokens
from minigpt4.tools.alignment.journal import Journal
from minigpt4.tools.alignment.ledger import Budget, BudgetReachedError, Ledger
from tests.helpers.chat_server import (
    GOOD,
    Answer,
    ChatServer,
    chat_server,
    completion,
    failure,
    polished,
)
from tests.helpers.messages import one_line

KEY = "sk-secret-0123456789"
DRAFTS = {str(n): f"a thing called {n}" for n in range(6)}
QUICK = Manners(concurrency=1, attempts=4, first_pause=0.001)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


class Round:
    """One run of the polishing over a journal on disk."""

    def __init__(self, server: ChatServer, folder: Path) -> None:
        self.server = server
        self.path = folder / "requests.jsonl"

    def ask(
        self,
        drafts: dict[str, str] = DRAFTS,
        manners: Manners = QUICK,
        budget: Budget = Budget(),  # noqa: B008 -- frozen
        timeout: float = 20.0,
        api_base: str | None = None,
    ) -> tuple[Ledger, Asking]:
        endpoint = Endpoint(api_base or self.server.api_base, "a-model", KEY, timeout)
        with Journal(self.path) as journal:
            self.ledger = Ledger(journal, budget)
            completions = Completions(endpoint, "Fix it.")
            asking = Asking(completions, self.ledger, manners)
            try:
                asking.run(drafts)
            finally:
                completions.close()
                self.given_up = asking.given_up
        return self.ledger, asking

    @property
    def rows(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def polishing(server: ChatServer, tmp_path: Path) -> Round:
    return Round(server, tmp_path)


def test_each_text_is_asked_about_once_in_the_authors_words(polishing: Round, server: ChatServer):
    ledger, _ = polishing.ask()
    assert {i: reply.text for i, reply in ledger.replies.items()} == {
        i: GOOD.format(text) for i, text in DRAFTS.items()
    }
    assert set(server.asked.values()) == {1}
    assert server.requests[0] == {
        "model": "a-model",
        "messages": [
            {"role": "system", "content": "Fix it."},
            {"role": "user", "content": DRAFTS["0"]},
        ],
        "temperature": 0.7,
        "max_tokens": 200,
    }
    assert set(server.paths) == {"/v1/chat/completions"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert ledger.spent == Tokens(600, 120)
    again, _ = polishing.ask()
    assert again.replies == ledger.replies
    assert server.asked.total() == 6, "nothing is asked twice"


def test_several_are_under_way_at_once_and_never_more(polishing: Round, server: ChatServer):
    server.answer = lambda text, _: Answer(body=polished(text).body, after=0.05)
    polishing.ask({str(n): f"text {n}" for n in range(12)}, Manners(concurrency=3))
    assert server.most_at_once == 3


def test_requests_keep_their_distance(polishing: Round, server: ChatServer):
    polishing.ask(manners=Manners(concurrency=4, requests_per_minute=1200))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 5 * 60 / 1200 * 0.9


@pytest.mark.parametrize(
    ("mood", "paid"),
    [
        (failure(500), False),
        (failure(503, Retry_After="0.05"), False),
        (failure(429, Retry_After="0.05"), False),
        (failure(408), False),
        (Answer(200, b"<html>a page of some proxy</html>"), True),
        (Answer(200, b""), True),
        (Answer(200, b"\xff\xfe"), True),
        (Answer(200, b"[" * 100_000), True),
        (Answer(200, b"{}"), True),
        (Answer(200, b'{"choices": []}'), True),
        (Answer(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'), True),
        (Answer(200, b" " * (1 << 20) + b"{}"), True),
        (completion(None), True),
        (completion(""), True),
        (completion(5), True),
        (Answer(200, b"not gzip", {"Content-Encoding": "gzip"}), True),
        (Answer(drop=True), True),
        (Answer(after=1.0), True),
    ],
    ids=str,
)
def test_what_passes_is_asked_again_and_what_may_be_paid_is_counted(
    polishing: Round, server: ChatServer, mood: Answer, paid: bool
):
    server.answer = lambda text, count: mood if count < 3 else polished(text)
    ledger, _ = polishing.ask({"0": "a text"}, timeout=0.5)
    assert ledger.replies["0"].text == GOOD.format("a text")
    assert server.asked == {"a text": 3}
    failed = [row for row in polishing.rows if "failed" in row]
    assert len(failed) == 2
    most = Tokens(len("Fix it.a text") + 32, 200)
    extra = 2 if paid else 0
    assert ledger.spent == Tokens(100 + extra * most.prompt, 20 + extra * most.completion)
    with Journal(polishing.path) as journal:
        assert Ledger(journal, Budget()).spent == ledger.spent


def test_a_reply_that_trickles_in_is_given_up_in_time(tmp_path: Path):
    """Each byte comes in time; the whole would take for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    for _ in range(1000):
                        connection.sendall(b" ")
                        stopped.wait(0.05)
                except OSError:
                    pass

        stopped = threading.Event()
        threading.Thread(target=trickle, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        round_ = Round(None, tmp_path)  # type: ignore[arg-type]
        manners = Manners(concurrency=1, attempts=1)
        round_.ask({"0": "a"}, manners, timeout=0.4, api_base=address)
        stopped.set()
    assert round_.given_up == {"0": "no whole reply in time"}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_wait_for_as_long_as_the_server_asks(polishing: Round, server: ChatServer, form: str):
    def limited(text: str, count: int) -> Answer:
        if server.asked.total() > 1:
            return polished(text)
        soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
        return failure(429, Retry_After="0.6" if form == "seconds" else soon)

    server.answer = limited
    polishing.ask(manners=Manners(concurrency=1, first_pause=0.0))
    assert server.asked.total() == 7
    assert server.times[1] - server.times[0] > 0.5


def test_a_server_that_asks_for_hours_ends_the_run(polishing: Round, server: ChatServer):
    server.answer = lambda *_: failure(429, Retry_After="7200")
    with one_line(ServerGoneError, "wait for 7200 s", "the same command goes on"):
        polishing.ask()
    assert server.asked.total() == 1


@pytest.mark.parametrize(
    ("answer", "mentions"),
    [
        (failure(401, f"Incorrect API key provided: {KEY}"), ("401", "OPENAI_API_KEY")),
        (failure(403, "not you"), ("403", "not you", "OPENAI_API_KEY")),
        (failure(404, "no such model"), ("404", "no such model", "--model a-model")),
        (failure(402, "pay first"), ("402", "pay first")),
        (failure(429, "You have none left", code="insufficient_quota"), ("429", "none left")),
        (Answer(307, b"", {"Location": "http://127.0.0.1:1/"}), ("307", "final address")),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_refusal_ends_the_run_at_once(
    polishing: Round, server: ChatServer, answer: Answer, mentions: tuple[str, ...]
):
    server.answer = lambda *_: answer
    with one_line(ServerRefusalError, server.api_base, *mentions):
        polishing.ask()
    assert server.asked.total() == 1
    assert KEY not in polishing.path.read_text()
    server.answer = lambda text, _: polished(text)
    ledger, _ = polishing.ask()
    assert len(ledger.replies) == 6
    assert ledger.spent == Tokens(600, 120)


def test_the_key_is_in_no_message_and_no_file(
    polishing: Round, server: ChatServer, caplog: pytest.LogCaptureFixture
):
    moods = [
        failure(400, f"bad key {KEY}"),
        failure(500, f"{KEY}"),
        Answer(503, f"<p>{KEY}</p>".encode()),
        completion(GOOD.format(KEY)),
    ]
    server.answer = lambda text, count: moods[3 if (text, count) == ("1", 2) else int(text)]
    with caplog.at_level(logging.DEBUG):
        polishing.ask({str(n): str(n) for n in range(4)}, Manners(1, attempts=2, first_pause=0.0))
    assert "[key]" in polishing.path.read_text()
    assert set(polishing.given_up) == {"0", "2"}
    told = polishing.path.read_text() + caplog.text + repr(polishing.given_up)
    assert KEY not in told
    assert KEY not in repr(Endpoint("http://127.0.0.1/v1", "m", KEY))


def test_a_text_without_a_reply_is_left_and_asked_about_by_the_next_run(
    polishing: Round, server: ChatServer
):
    bad = DRAFTS["2"]
    server.answer = lambda text, _: failure(400, "no such text") if text == bad else polished(text)
    ledger, asking = polishing.ask()
    assert set(ledger.replies) == set(DRAFTS) - {"2"}
    assert "400 (no such text)" in asking.given_up["2"]
    assert server.asked[bad] == 1, "400 is not asked again"
    server.answer = lambda text, _: polished(text)
    assert set(polishing.ask()[0].replies) == set(DRAFTS)
    assert server.asked == {text: 1 + (text == bad) for text in DRAFTS.values()}


def test_a_server_that_goes_away_ends_the_run_and_the_next_goes_on(
    polishing: Round, server: ChatServer
):
    server.answer = lambda text, _: polished(text) if text == DRAFTS["0"] else failure(500)
    with one_line(ServerGoneError, "--api-base", "500", "the same command goes on"):
        polishing.ask()
    assert set(polishing.ledger.replies) == {"0"}
    assert server.asked[DRAFTS["1"]] == QUICK.attempts
    server.answer = lambda text, _: polished(text)
    polishing.ask()
    assert server.asked[DRAFTS["0"]] == 1


def test_texts_that_a_server_cannot_bear_hold_up_nothing_for_ever(
    polishing: Round, server: ChatServer
):
    hard = [DRAFTS[n] for n in "0123"]
    server.answer = lambda text, _: failure(500) if text in hard else polished(text)
    with one_line(ServerGoneError, "no reply to 3 texts in a row"):
        polishing.ask()
    ledger, asking = polishing.ask()
    assert set(ledger.replies) == {"4", "5"}
    assert set(asking.given_up) == set("0123")


def test_where_nobody_listens_it_is_one_line(polishing: Round):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with one_line(ServerGoneError, f"127.0.0.1:{port}", "no connection"):
        polishing.ask(api_base=f"http://127.0.0.1:{port}/v1")
    assert polishing.ledger.spent == Tokens()


def test_the_token_budget_is_never_exceeded(polishing: Round, server: ChatServer):
    budget = Budget(max_tokens=500)
    with one_line(BudgetReachedError, "--max-tokens-total 500", "the same command goes on"):
        polishing.ask(budget=budget)
    first = server.asked.total()
    # Each takes 120; another is asked only while the most that it may take fits, too.
    most = len("Fix it." + DRAFTS["0"]) + 32 + 200
    assert first == (500 - most) // 120 + 1
    assert polishing.ledger.spent.total == 120 * first
    with one_line(BudgetReachedError, "--max-tokens-total 500"):
        polishing.ask(budget=budget)
    assert server.asked.total() == first, "the budget is that of all runs"
    ledger, _ = polishing.ask(budget=Budget(max_tokens=5000))
    assert ledger.spent.total == 720
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_cost_budget_holds_with_several_under_way(
    polishing: Round, server: ChatServer, concurrency: int
):
    server.answer = lambda text, _: Answer(body=polished(text).body, after=0.01)
    budget = Budget(max_cost=0.002, prompt_price=2.0, completion_price=6.0)
    drafts = {str(n): f"text {n}" for n in range(40)}
    with one_line(BudgetReachedError, "--max-cost 0.002"):
        polishing.ask(drafts, Manners(concurrency=concurrency), budget)
    spent = server.asked.total() * (100 * 2.0 + 20 * 6.0) / 1e6
    assert polishing.ledger.cost == pytest.approx(spent)
    assert 0.0 < spent <= 0.002


@pytest.mark.parametrize(
    "usage", [None, {}, "many", {"prompt_tokens": -1, "completion_tokens": True}]
)
def test_what_a_server_does_not_tell_is_counted_as_the_most(
    polishing: Round, server: ChatServer, usage: object
):
    server.answer = lambda text, _: completion("x" * 77, usage)
    ledger, _ = polishing.ask({"0": "a text"})
    assert ledger.spent == Tokens(len("Fix it.a text") + 32, 77)


def test_a_request_under_way_at_a_kill_counts_in_full_and_is_asked_again(
    polishing: Round, server: ChatServer
):
    polishing.ask({"0": "a"})
    with Journal(polishing.path) as journal:
        journal.add([{"image_id": "1", "asked": [50, 200]}])
    with polishing.path.open("ab") as file:
        file.write(b'{"image_id": "1", "reply": "half a li')
    ledger, _ = polishing.ask({"0": "a", "1": "b"})
    assert ledger.interrupted == 1
    assert ledger.spent == Tokens(100 + 50 + 100, 20 + 200 + 20)
    assert server.asked == {"a": 1, "b": 1}


def test_a_journal_of_something_else_is_one_line(polishing: Round):
    for content in ("mine\n", '{"image_id": "0"}\n', '{"image_id": "0", "asked": 5}\n'):
        polishing.path.write_text(content)
        with one_line(MiniGPT4Error, f"{polishing.path}:1", "not a line of this command"):
            polishing.ask()
        assert polishing.path.read_text() == content


@pytest.mark.parametrize(
    ("api_base", "mention"),
    [
        ("127.0.0.1:8000/v1", "is no address"),
        ("ftp://127.0.0.1/v1", "is no address"),
        ("http://", "is no address"),
        ("http://127.0.0.1:99999/v1", "is no address"),
        ("http://[::1/v1", "is no address"),
        (f"http://me:{KEY}@127.0.0.1/v1", "OPENAI_API_KEY"),
        (f"http://127.0.0.1/v1?key={KEY}", "OPENAI_API_KEY"),
    ],
)
def test_an_address_that_is_none_is_one_line(api_base: str, mention: str):
    with one_line(ConfigError, "--api-base", mention):
        Endpoint(api_base, "m")
    with pytest.raises(ConfigError) as error:
        Endpoint(api_base, "m")
    assert KEY not in str(error.value)


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nb", "sk-schlüssel", "sk-\x00"])
def test_a_key_that_no_header_takes_is_told_without_showing_it(key: str):
    with one_line(ConfigError, "$OPENAI_API_KEY"):
        Endpoint("http://127.0.0.1/v1", "m", key)
    with pytest.raises(ConfigError) as error:
        Endpoint("http://127.0.0.1/v1", "m", key)
    assert key not in str(error.value)
    assert "sk-" not in str(error.value)


def test_without_a_key_none_is_sent(server: ChatServer):
    Completions(Endpoint(server.api_base, "m"), "Fix it.").ask("a")
    assert server.keys == [None]
