"""A real server, in all its moods: what is asked, how often, and what is written down of it."""

import argparse
import importlib.util
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.errors import ConfigError, MiniGPT4Error
from minigpt4.tools.alignment.request_pool import BudgetReachedError, RequestPool, ServerError
from minigpt4.tools.alignment.server import Server, Tokens, add_server_arguments, read_server
from minigpt4.tools.alignment.work_folder import Journal
from tests.helpers.chat_server import (
    GOOD,
    Answer,
    ChatServer,
    chat_server,
    completion,
    failure,
    polished,
)  # fmt: skip
from tests.helpers.messages import one_line

KEY = "sk-secret-0123456789"
DRAFTS = {str(n): f"a thing called {n}" for n in range(6)}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


class Round:
    """One run of the polishing over a journal on disk; attempts are few and quick."""

    def __init__(self, server: ChatServer, folder: Path) -> None:
        self.path = folder / "requests.jsonl"
        quick = {"concurrency": 1, "attempts": 2, "retry_seconds": 0.001, "key": KEY}
        self.quick = Server(server.api_base, "a-model", **quick)  # type: ignore[arg-type]

    def ask(self, drafts: dict[str, str] = DRAFTS, **changes: object) -> RequestPool:
        asked = replace(self.quick, **changes)  # type: ignore[arg-type]
        self.pool = RequestPool(asked, "Fix it.", Journal(self.path), 0.7, 200)
        self.pool.ask(drafts)
        return self.pool


@pytest.fixture
def polishing(server: ChatServer, tmp_path: Path) -> Round:
    return Round(server, tmp_path)


def test_each_text_is_asked_about_once_in_the_authors_words(polishing: Round, server: ChatServer):
    pool = polishing.ask()
    assert {i: reply.text for i, reply in pool.replies.items()} == {
        i: GOOD.format(text) for i, text in DRAFTS.items()
    }
    assert set(server.asked.values()) == {1}
    system, user = server.requests[0].pop("messages")
    assert system == {"role": "system", "content": "Fix it."}
    assert user == {"role": "user", "content": DRAFTS["0"]}
    assert server.requests[0] == {"model": "a-model", "temperature": 0.7, "max_tokens": 200}
    assert set(server.paths) == {"/v1/chat/completions"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert pool.spent == Tokens(600, 120)
    again = polishing.ask()
    assert again.replies == pool.replies
    assert server.asked.total() == 6, "nothing is asked twice"


def test_several_are_under_way_at_once_and_never_more(polishing: Round, server: ChatServer):
    server.answer = lambda text, _: Answer(body=polished(text).body, after=0.05)
    polishing.ask({str(n): f"text {n}" for n in range(12)}, concurrency=3)
    assert server.most_at_once == 3
    assert len(Journal(polishing.path).rows) == 12


def test_requests_keep_their_distance(polishing: Round, server: ChatServer):
    server.answer = lambda text, count: polished(text) if count > 1 else failure(500)
    polishing.ask(concurrency=4, requests_per_minute=2400)
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 11
    assert sum(gaps) >= 11 * 60 / 2400 * 0.9


@pytest.mark.parametrize(
    "mood",
    [
        failure(500),
        failure(503, Retry_After="0.05"),
        failure(429, Retry_After="0.05"),
        failure(408),
        Answer(200, b"not gzip", {"Content-Encoding": "gzip"}),
        Answer(drop=True),
        Answer(after=1.0),
    ],
    ids=str,
)
def test_an_error_that_passes_is_asked_again(polishing: Round, server: ChatServer, mood: Answer):
    server.answer = lambda text, count: mood if count < 2 else polished(text)
    pool = polishing.ask({"0": "a text"}, timeout=0.5)
    assert pool.replies["0"].text == GOOD.format("a text")
    assert server.asked == {"a text": 2}
    assert pool.spent == Tokens(100, 20)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>a page of some proxy</html>",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        completion(None).body,
        completion("").body,
        completion(5).body,
    ],
    ids=lambda body: repr(body[:50]),
)
@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_a_broken_reply_is_paid_and_left_for_the_next_run(
    polishing: Round, server: ChatServer, body: bytes, kind: str
):
    server.answer = lambda *_: Answer(200, body, {"Content-Type": kind})
    pool = polishing.ask({"0": "a text"})
    assert pool.failed == {"0": "200 with something that is no completion"}
    assert pool.spent == Tokens(len("Fix it.a text") + 32, 200)
    server.answer = lambda text, _: polished(text)
    again = polishing.ask({"0": "a text"})
    assert again.replies["0"].text == GOOD.format("a text")
    assert again.failed == {}
    assert again.spent == Tokens(pool.spent.prompt + 100, 220)


@pytest.mark.parametrize(
    ("answer", "mentions"),
    [
        (failure(401, f"Incorrect API key provided: {KEY}"), ("401", "OPENAI_API_KEY")),
        (failure(403, "not you"), ("403", "not you", "OPENAI_API_KEY")),
        (failure(404, "no such model"), ("404", "no such model", "--model a-model")),
        (failure(402, "pay first"), ("402", "pay first")),
        (Answer(307, b"", {"Location": "http://127.0.0.1:1/"}), ("307", "final address")),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_refusal_ends_the_run_at_once(
    polishing: Round, server: ChatServer, answer: Answer, mentions: tuple[str, ...]
):
    server.answer = lambda *_: answer
    with one_line(ServerError, f"--api-base {server.api_base}", *mentions):
        polishing.ask()
    assert server.asked.total() == 1
    assert polishing.path.read_text() == ""
    server.answer = lambda text, _: polished(text)
    assert polishing.ask().spent == Tokens(600, 120)


def test_the_key_is_in_no_message_and_no_file(
    polishing: Round, server: ChatServer, caplog: pytest.LogCaptureFixture
):
    moods = [failure(400, f"bad key {KEY}"), failure(500, f"{KEY}"), completion(GOOD.format(KEY))]
    server.answer = lambda text, _: moods[int(text)]
    with caplog.at_level(logging.DEBUG):
        pool = polishing.ask({str(n): str(n) for n in range(3)})
    assert set(pool.failed) == {"0", "1"}
    assert polishing.path.read_text().count("[key]") == 3
    assert KEY not in polishing.path.read_text() + caplog.text + repr(pool.failed)
    assert KEY not in repr(polishing.quick)


def test_a_server_that_goes_away_ends_the_run_and_the_next_goes_on(
    polishing: Round, server: ChatServer
):
    server.answer = lambda text, _: polished(text) if text == DRAFTS["0"] else failure(500)
    with one_line(ServerError, "--api-base", "500", "the same command goes on"):
        polishing.ask()
    assert set(polishing.pool.replies) == {"0"}
    assert server.asked[DRAFTS["1"]] == 2, "as --attempts says"
    server.answer = lambda text, _: polished(text)
    assert set(polishing.ask().replies) == set(DRAFTS)
    assert server.asked[DRAFTS["0"]] == 1


def test_texts_that_a_server_cannot_process_do_not_block_the_others(
    polishing: Round, server: ChatServer
):
    hard = [DRAFTS[n] for n in "0123"]
    server.answer = lambda text, _: failure(400, "not so") if text in hard else polished(text)
    with one_line(ServerError, "no reply to 3 texts in a row"):
        polishing.ask()
    assert server.asked[hard[0]] == 1, "400 is not asked again by the same run"
    pool = polishing.ask()
    assert set(pool.replies) == {"4", "5"}
    assert set(pool.failed) == set("0123")
    assert "400 - not so" in pool.failed["2"]
    server.answer = lambda text, _: polished(text)
    assert set(polishing.ask().replies) == set(DRAFTS)


def test_an_unreachable_server_is_one_line(polishing: Round):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with one_line(ServerError, f"127.0.0.1:{port}", "Connection error"):
        polishing.ask(api_base=f"http://127.0.0.1:{port}/v1", attempts=1)
    assert polishing.pool.spent == Tokens()


def test_the_token_budget_is_never_exceeded(polishing: Round, server: ChatServer):
    with one_line(BudgetReachedError, "--max-tokens-total 500", "the same command goes on"):
        polishing.ask(max_tokens_total=500)
    first = server.asked.total()
    # Each takes 120; another is asked only while the most that it may take fits, too.
    most = len("Fix it." + DRAFTS["0"]) + 32 + 200
    assert first == (500 - most) // 120 + 1
    assert polishing.pool.spent == Tokens(100 * first, 20 * first)
    with one_line(BudgetReachedError, "--max-tokens-total 500"):
        polishing.ask(max_tokens_total=500)
    assert server.asked.total() == first, "the budget is that of all runs"
    assert polishing.ask(max_tokens_total=5000).spent == Tokens(600, 120)
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_cost_budget_holds_with_several_under_way(
    polishing: Round, server: ChatServer, concurrency: int
):
    server.answer = lambda text, _: Answer(body=polished(text).body, after=0.01)
    drafts = {str(n): f"text {n}" for n in range(40)}
    prices = {"max_cost": 0.002, "price_in": 2.0, "price_out": 6.0}
    with one_line(BudgetReachedError, "--max-cost 0.002"):
        polishing.ask(drafts, concurrency=concurrency, **prices)
    cost = server.asked.total() * (100 * 2.0 + 20 * 6.0) / 1e6
    assert polishing.pool.spent == Tokens(100 * server.asked.total(), 20 * server.asked.total())
    assert 0.0 < cost <= 0.002


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": 3}])
def test_what_a_server_does_not_tell_is_counted_as_the_most(
    polishing: Round, server: ChatServer, usage: object
):
    server.answer = lambda text, _: completion("x" * 77, usage)
    pool = polishing.ask({"0": "a text"})
    assert pool.replies["0"].text == "x" * 77
    assert pool.spent == Tokens(len("Fix it.a text") + 32, 200)


def test_a_journal_of_an_earlier_version_is_read_and_half_a_line_is_asked_again(
    polishing: Round, server: ChatServer
):
    polishing.ask({"0": "a"})
    Journal(polishing.path).add([{"image_id": "1", "asked": [50, 200]}])
    with polishing.path.open("ab") as file:
        file.write(b'{"image_id": "1", "reply": "half a li')
    assert polishing.ask({"0": "a", "1": "b"}).spent == Tokens(200, 40)
    assert server.asked == {"a": 1, "b": 1}


@pytest.mark.parametrize("content", ["mine\n", '{"image_id": "0"}\n', '{"tokens": [1, 2]}\n'])
def test_a_journal_of_something_else_is_one_line(polishing: Round, content: str):
    polishing.path.write_text(content)
    with one_line(MiniGPT4Error, f"{polishing.path}:1", "not a line of this command"):
        polishing.ask()
    assert polishing.path.read_text() == content


# What a user can get wrong


def read(*arguments: str) -> Server | None:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser.add_argument_group())
    return read_server(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("api_base", "mention"),
    [
        ("127.0.0.1:8000/v1", "is no address"),
        ("ftp://127.0.0.1/v1", "is no address"),
        ("http://", "is no address"),
        ("http://127.0.0.1:99999/v1", "is no address"),
        ("http://[::1/v1", "is no address"),
        ("http://127.0.0.1/v1\x00", "is no address"),
        (f"http://me:{KEY}@127.0.0.1/v1", "OPENAI_API_KEY"),
        (f"http://127.0.0.1/v1?key={KEY}", "OPENAI_API_KEY"),
    ],
)
def test_an_address_that_is_none_is_one_line(api_base: str, mention: str):
    with one_line(ConfigError, "--api-base", mention) as error:
        read("--api-base", api_base)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nb", "sk-schlüssel"])
def test_a_key_that_no_header_takes_is_reported_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with one_line(ConfigError, "$OPENAI_API_KEY: holds characters") as error:
        read("--api-base", "http://127.0.0.1/v1")
    assert "sk-" not in str(error.value)


def test_without_the_openai_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert read() is None
    with one_line(ConfigError, "--api-base: needs openai", "pip install -e '.[alignment]'"):
        read("--api-base", "http://127.0.0.1/v1")


def test_without_a_key_none_is_sent(polishing: Round, server: ChatServer):
    polishing.ask({"0": "a"}, key="")
    assert server.keys == [None]
