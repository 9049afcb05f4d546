"""Parts of the server by themselves: what is read, fetched, cut and refused."""

import asyncio
from typing import Any

import pytest

from minigpt4.__main__ import main
from minigpt4.apps.arguments import open_socket
from minigpt4.apps.server.answering import Answer, Order
from minigpt4.apps.server.replies import RequestError, as_request_error, encode, error_object
from minigpt4.apps.server.requests import ChatRequest, Dialogue, Picture, read_request, to_dialogue
from minigpt4.chat import BusyError, Chat, NonFiniteLogitsError, load_chat
from minigpt4.chat.generation import before_stops, hold_back
from minigpt4.cli.serve import KEY_VARIABLE, is_loopback, read_key
from minigpt4.errors import ConfigError, DataError
from tests.helpers.messages import one_line
from tests.helpers.repo import EntryPoint

TINY = "eval_configs/tiny_eval.yaml"


def body(*messages: Any, **fields: Any) -> bytes:
    return encode({"model": "m", "messages": messages} | fields)


def request(*messages: Any, **fields: Any) -> ChatRequest:
    return read_request(body(*messages, **fields))


def message(role: str, *content: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": part[0]}}
        if isinstance(part, tuple)
        else {"type": "text", "text": part}
        for part in content
    ]
    return {"role": role, "content": parts}


# Messages


def test_messages_become_turns():
    asked = request(
        message("system", "S"),
        message("user", ("a",), "A", ("b",)),
        message("user", "B"),
        {"role": "assistant", "content": "1"},
        message("assistant", "2"),
        message("developer", "T"),
        {"role": "user", "content": "C"},
    )
    place = "messages[1].content[{}].image_url.url"
    first, second = Picture("a", place.format(0)), Picture("b", place.format(2))
    dialogue = to_dialogue(asked.messages, 2)
    assert dialogue == Dialogue([([first, "S", "A", second, "B"], "1\n2")], ["T", "C"])
    assert dialogue.pictures() == [first, second]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([message("assistant", "1"), message("user", "A")], "messages[0]"),
        ([message("user", "A"), message("assistant", "1")], "messages"),
        ([message("user", "A"), message("system", "S")], "messages"),
        ([message("system", ("a",)), message("user", "A")], "messages[0].content[0]"),
        ([message("user", ("a",), ("b",), ("c",), "A")], "messages"),
    ],
)
def test_messages_that_are_no_dialogue(messages: list[dict[str, Any]], param: str):
    with one_line(RequestError, param):
        to_dialogue(request(*messages).messages, 2)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff", None),
        (b'{"model": NaN}', None),
        (b'{"model": "\\ud800"}', None),
        (b"[" * 10_000, None),
        (b'"text"', None),
        (b"{}", "model"),
        (body(), "messages"),
        (body({"role": "tool", "content": "A"}), "messages[0].role"),
        (body({"role": "user"}), "messages[0].content"),
        (body({"role": "user", "content": 1}), "messages[0].content"),
        (body({"role": "user", "content": [{"type": "audio"}]}), "messages[0].content[0]"),
        (body(message("user", (5,))), "messages[0].content[0].image_url.url"),
    ],
)
def test_bodies_that_are_no_request(sent: bytes, param: str | None):
    with pytest.raises(RequestError) as caught:
        read_request(sent)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "1"},
        {"temperature": True},
        {"top_p": 0},
        {"max_tokens": 1.5},
        {"seed": 2**63},
        {"seed": 10**400},
        {"stop": [""]},
        {"stop": 1},
        {"stop": ["a"] * 5},
        {"response_format": {"type": "json_object"}},
        {"repetition_penalty": 1e-300},
        {"logit_bias": {"1": 5}},
        {"logprobs": True},
        {"stream": "yes"},
    ],
)
def test_values_that_cannot_be(fields: dict[str, Any]):
    (name,) = fields
    with pytest.raises(RequestError) as caught:
        request(message("user", "A"), **fields)
    assert str(caught.value.param).startswith(name)


def test_fields_that_ask_for_nothing_are_ignored():
    nothing: dict[str, Any] = {
        "logit_bias": None,
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "tools": [],
    }
    nothing |= {"presence_penalty": 0.0, "response_format": {"type": "text"}, "stop": None}
    assert request(message("user", "A"), **nothing).options() == {}


def test_options():
    asked = request(message("user", "A"), temperature=0.7, max_tokens=5, max_completion_tokens=6)
    assert asked.options() == {"do_sample": True, "temperature": 0.7, "max_new_tokens": 6}
    assert request(message("user", "A"), temperature=0).options() == {"do_sample": False}
    assert request(message("user", "A"), temperature=1e-300).options() == {"do_sample": False}


def test_an_error_of_ours_is_not_told():
    told = as_request_error(KeyError("/secret/path"))
    assert told.status == 500
    assert "secret" not in str(told)
    assert encode(error_object(RequestError(400, "half a \ud800")))


def test_errors_of_the_core_have_their_status():
    overflow = as_request_error(NonFiniteLogitsError("Inf: use bf16"))
    assert (overflow.status, str(overflow)) == (500, "Inf: use bf16")
    assert as_request_error(DataError("the question is empty")).status == 400
    assert error_object(as_request_error(BusyError("busy")))["error"]["type"] == "rate_limit_error"


# Answers


def test_what_may_become_a_stop_text_is_held_back():
    assert hold_back("one tw", ["two"]) == "one"
    assert hold_back("one", []) == "one"
    assert before_stops("one two three", ["three", "two"]) == "one "
    assert before_stops("one", ["two"]) == "one"


def test_time_and_disconnects_cut_an_answer():
    chat = load_chat(TINY, ["model.ckpt=", "chat.max_new_tokens=7000", "chat.max_length=7400"])
    order = Order(Dialogue([], ["Go on."]), {}, {"repetition_penalty": 0.1})

    async def run(chat: Chat) -> None:
        answer = Answer(chat, order, chat.waiting.join(), seconds=0.5)
        *_, last = [item async for item in answer.progress()]
        assert last.finish == "length"
        assert last.usage is not None
        assert 0 < last.usage["completion_tokens"] < 7000
        left = Answer(chat, order, chat.waiting.join(), seconds=600)
        progress = left.progress()
        await anext(progress)
        await progress.aclose()
        await asyncio.to_thread(left.thread.join)
        assert not left.thread.is_alive()

    asyncio.run(run(chat))


# The command


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--max-waiting", "0"], "--max-waiting 0: must be a number greater than 0"),
        (["--max-seconds", "nan"], "--max-seconds nan: must be"),
        (["--api-key", " "], "--api-key: a key is ASCII"),
        (["--port", "70000"], "--port 70000: cannot serve there"),
        (["--host", "no.such.host.invalid"], "cannot serve there"),
        (["--device", "mps"], "--device mps"),
    ],
)
def test_mistakes_end_in_one_line(run_entry: EntryPoint, arguments: list[str], mentions: str):
    given = ["serve", "--cfg-path", TINY, "--port", "0", "--options", "model.ckpt=", *arguments]
    assert mentions in run_entry.refused(main, *given)


def test_a_port_in_use_is_found_before_the_model_loads(run_entry: EntryPoint):
    with open_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        given = ["serve", "--cfg-path", TINY, "--options", "model.ckpt=", "--port", port]
        code, stderr = run_entry(main, *given)
    assert code == 2
    assert f"--port {port}: cannot serve there" in stderr
    assert "loading" not in stderr


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert read_key(None) == "secret"
    assert read_key("other") == "other"
    monkeypatch.setenv(KEY_VARIABLE, "")
    with one_line(ConfigError, KEY_VARIABLE):
        read_key(None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_who_can_reach_a_host(host: str, expected: bool):
    assert is_loopback(host) is expected
