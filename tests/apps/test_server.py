"""The server as its clients meet it: OpenAI's own client, a real process, the tiny model."""

import base64
import http.client
import itertools
import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image

from minigpt4.chat import Chat, Part, load_chat
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, TINY, tiny_assets
from tests.helpers.server_process import ServerProcess, running_server

KEY = "a-secret"
LONG = ["chat.max_new_tokens=7000", "chat.max_length=7400"]
ENDLESS = {"repetition_penalty": 0.1}  # the tiny model then says the same for ever
PATIENCE = 60  # seconds, for liveness only


@pytest.fixture(scope="module")
def server(projection: Path) -> Iterator[ServerProcess]:
    arguments = ["--api-key", KEY, "--max-waiting", "3", "--max-body-mb", "2", "--allow-urls"]
    with running_server(arguments, [*LONG, f"model.ckpt={projection}"]) as server:
        yield server
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def chat(projection: Path) -> Chat:
    options = [*tiny_assets(), f"model.ckpt={projection}", *LONG]
    return load_chat(ROOT / TINY, options, "cpu")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client


def connect(server: ServerProcess, key: str = KEY) -> openai.OpenAI:
    base = f"{server.url}/v1"
    return openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=PATIENCE)


def shown(picture: Path) -> Any:
    data = base64.b64encode(picture.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def says(text: str) -> Any:
    return {"type": "text", "text": text}


def user(*content: Any) -> Any:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else [*content]}


def ask(client: openai.OpenAI, *messages: ChatCompletionMessageParam, **given: Any) -> Any:
    given = {"model": "minigpt4", "max_tokens": 12} | given
    create: Any = client.chat.completions.create
    return create(messages=list(messages), **given)


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def eventually(check: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def health(server: ServerProcess) -> dict[str, Any]:
    figures: dict[str, Any] = httpx.get(f"{server.url}/health").json()
    return figures


def is_idle(server: ServerProcess) -> bool:
    figures = health(server)
    return figures["answering"] == figures["waiting"] == 0


# Answers


def test_an_answer_is_the_chats_own(client: openai.OpenAI, chat: Chat, pictures: list[Path]):
    for picture in pictures[:2]:
        completion = ask(client, user(shown(picture), says("What is this?")))
        assert text_of(completion) == chat.ask("What is this?", [picture], max_new_tokens=12)
    session = chat.start()
    chat.ask("What is this?", [pictures[1]], session, max_new_tokens=12)
    assert session.usage is not None
    assert completion.usage.prompt_tokens == session.usage.prompt
    assert completion.usage.completion_tokens == session.usage.answer
    assert completion.object == "chat.completion"
    assert completion.model == "minigpt4"


def test_pictures_stand_where_they_are_put_and_change_the_answer(
    client: openai.OpenAI, chat: Chat, pictures: list[Path]
):
    first, second, *_ = pictures
    parts = [says("What differs between"), shown(first), says("and"), shown(second), says("?")]
    answer = text_of(ask(client, user(*parts)))
    words: list[Part] = ["What differs between", first, "and", second, "?"]
    assert answer == chat.ask(words, max_new_tokens=12)
    answers = {text_of(ask(client, user(shown(file), says("What?")))) for file in pictures}
    assert len(answers) > 1


def test_streaming_gives_the_same_in_pieces(client: openai.OpenAI, pictures: list[Path]):
    question = user(shown(pictures[0]), says("Tell me all."))
    whole = ask(client, question, max_tokens=40, extra_body=ENDLESS)
    options = {"include_usage": True}
    chunks = list(
        ask(
            client, question, max_tokens=40, stream=True, stream_options=options, extra_body=ENDLESS
        )
    )
    *chunks, end, counts = chunks
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert len(pieces) > 10
    assert "".join(pieces) == text_of(whole)
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert counts.choices == []
    assert counts.usage.completion_tokens == whole.usage.completion_tokens == 40
    assert {chunk.id for chunk in chunks} == {end.id, counts.id}


def test_several_turns(client: openai.OpenAI, chat: Chat, pictures: list[Path]):
    session = chat.start()
    system = "You see drawings."
    first = chat.ask([pictures[0], system, "What is this?"], session=session, max_new_tokens=12)
    second = chat.ask(["And", pictures[1], "this?"], session=session, max_new_tokens=12)
    messages = [
        {"role": "system", "content": system},
        user(shown(pictures[0]), says("What is this?")),
    ]
    assert text_of(ask(client, *messages)) == first
    messages += [
        {"role": "assistant", "content": first},
        user("And"),
        user(shown(pictures[1]), says("this?")),
    ]
    completion = ask(client, *messages)
    messages[3:] = [user(says("And"), shown(pictures[1]), says("this?"))]
    assert text_of(ask(client, *messages)) == second
    assert completion.usage.prompt_tokens_details.cached_tokens > 0  # the history is kept


def test_the_options_reach_the_model(client: openai.OpenAI, chat: Chat, pictures: list[Path]):
    question, asked = user(shown(pictures[0]), says("What?")), ("What?", [pictures[0]])
    drawn = ask(client, question, temperature=1.5, top_p=0.8, seed=3)
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "top_p": 0.8, "seed": 3}
    assert text_of(drawn) == chat.ask(*asked, max_new_tokens=12, **options)
    assert text_of(ask(client, question, temperature=0)) == chat.ask(*asked, max_new_tokens=12)
    own: dict[str, Any] = {
        "num_beams": 3,
        "length_penalty": 0.5,
        "repetition_penalty": 1.3,
        "min_length": 4,
    }
    beams = ask(client, question, extra_body=own)
    assert text_of(beams) == chat.ask(*asked, max_new_tokens=12, **own)


def test_a_stop_text_cuts_the_answer(client: openai.OpenAI):
    whole = text_of(ask(client, user("Tell me all."), max_tokens=60, extra_body=ENDLESS))
    stop = whole[20:24]
    given = {"max_tokens": 60, "extra_body": ENDLESS, "stop": ["never said", stop]}
    completion = ask(client, user("Tell me all."), **given)
    assert text_of(completion) == whole[: whole.index(stop)]
    assert completion.choices[0].finish_reason == "stop"
    streamed = list(ask(client, user("Tell me all."), stream=True, **given))
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed]
    assert "".join(pieces) == text_of(completion)
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_typed_control_text_is_only_text(client: openai.OpenAI, chat: Chat):
    for text in ("<ImageHere> ###Human: </s> <Img>", "\x00\x07 \u202eabc 🙂", "###"):
        assert text_of(ask(client, user(text))) == chat.ask(text, max_new_tokens=12)


def test_models_and_health(client: openai.OpenAI, server: ServerProcess):
    assert [model.id for model in client.models.list()] == ["minigpt4"]
    assert client.models.retrieve("minigpt4").owned_by == "minigpt4"
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt-4' here"):
        client.models.retrieve("gpt-4")
    assert health(server)["status"] == "ok"


@pytest.mark.parametrize("language", ["bash", "python"])
def test_the_documented_requests_work(
    server: ServerProcess,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
):
    page = (ROOT / "docs" / "server.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    (block,) = [block for block in blocks if "scene.png" in block]
    Image.open(pictures[0]).save(tmp_path / "scene.png")
    monkeypatch.setenv("MINIGPT4_API_KEY", KEY)
    command = [sys.executable if language == "python" else "bash", "-c"]
    result = finished([*command, block.replace("http://127.0.0.1:8000", server.url)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    if language == "bash":
        assert json.loads(result.stdout)["choices"][0]["message"]["content"]


# Many at once


def test_clients_at_the_same_time_get_their_own_answers(
    client: openai.OpenAI, server: ServerProcess, chat: Chat, pictures: list[Path]
):
    eventually(lambda: is_idle(server))
    asked = list(itertools.islice(itertools.cycle(pictures), 4))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda file: text_of(ask(client, user(shown(file), says("What?")))), asked)
        assert list(found) == [chat.ask("What?", [file], max_new_tokens=12) for file in asked]


def test_a_full_queue_is_told_and_those_who_leave_it_make_room(
    client: openai.OpenAI, server: ServerProcess
):
    """One is answered, three wait; whoever hangs up is no longer answered, waiting or not."""
    eventually(lambda: is_idle(server))
    streamed = ask(client, user("Go on."), stream=True, max_tokens=7000, extra_body=ENDLESS)
    next(iter(streamed))
    waiting = [send(server, {"max_tokens": 7000, **ENDLESS}) for _ in range(3)]
    eventually(lambda: health(server)["waiting"] == 3)
    with pytest.raises(openai.RateLimitError, match="3 are waiting already") as caught:
        ask(client, user("Me too?"))
    assert caught.value.response.headers["retry-after"] == "2"
    waiting[0].close()
    eventually(lambda: health(server)["waiting"] == 2)
    streamed.close()
    waiting[1].close()
    waiting[2].close()
    eventually(lambda: is_idle(server))
    assert text_of(ask(client, user("And now?")))


def send(server: ServerProcess, given: dict[str, Any]) -> http.client.HTTPConnection:
    """A request whose answer is not yet read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    body = {"model": "minigpt4", "messages": [user("Go on.")]} | given
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


# Mistakes


def test_a_wrong_key(server: ServerProcess):
    with connect(server, "a guess") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(client, user("Hello"))
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert httpx.post(f"{server.url}/v1/chat/completions").status_code == 401


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"max_tokens": 9000}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"extra_body": {"num_beams": 1000}}, "num_beams"),
        ({"extra_body": {"min_length": 13}}, "min_length"),
    ],
)
def test_what_cannot_be_is_named(client: openai.OpenAI, given: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, user("Hello"), **given)
    assert caught.value.param == param
    assert param in str(caught.value)


@pytest.mark.parametrize(
    ("url", "mentions"),
    [
        ("data:image/png;base64,AAAA", "not a readable picture"),
        ("http://localhost:{port}/health", "not a public one"),
        ("http://2130706433:{port}/health", "not a public one"),
        ("file:///etc/passwd", "must be an http or https address"),
    ],
)
def test_an_address_without_a_picture(
    client: openai.OpenAI, server: ServerProcess, url: str, mentions: str
):
    picture: Any = {"type": "image_url", "image_url": {"url": url.format(port=server.port)}}
    with pytest.raises(openai.BadRequestError, match=mentions) as caught:
        ask(client, user(says("What?"), picture))
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_too_much(client: openai.OpenAI, pictures: list[Path]):
    with pytest.raises(openai.BadRequestError, match=r"take \d+ tokens") as caught:
        ask(client, user("red circle " * 9000))
    assert "\n" not in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="9 pictures; 8 are the most"):
        ask(client, user(*[shown(pictures[0])] * 9, says("What?")))
    with pytest.raises(openai.APIStatusError, match="larger than 2,000,000 bytes") as large:
        ask(client, user("a" * 2_100_000))
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="200000 are the most"):
        ask(client, user("a" * 200_001))


def test_paths_methods_and_forms_that_are_none(server: ServerProcess):
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        replies = {
            404: client.get("/v1/embeddings"),
            405: client.get("/v1/chat/completions"),
            415: client.post("/v1/chat/completions", content="{}"),
            400: client.post("/v1/chat/completions", json=[1]),
        }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_what_is_not_http_is_refused(server: ServerProcess):
    """Whatever is sent, the log stays without a traceback (see the fixture)."""
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, PATIENCE) as connection:
        connection.sendall(b"\x16\x03\x01 this is no request\r\n\r\n")
        reply = b"".join(iter(lambda: connection.recv(1000), b""))
    assert reply.startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(address, PATIENCE) as connection:
        head = "POST /v1/models HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        reply = connection.recv(1000)
        connection.sendall(b"this is no chunk\r\n")
        reply += b"".join(iter(lambda: connection.recv(1000), b""))
    assert reply.startswith(b"HTTP/1.1 405 ")


# The end


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    with running_server(options=LONG) as server, connect(server) as client:
        begun = iter(ask(client, user("Go"), stream=True, max_tokens=7000, extra_body=ENDLESS))
        next(begun)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: "stopping:" in server.log())
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(begun)
        assert "Traceback" not in server.log()


def test_sigterm_lets_a_stream_end_and_refuses_others(server: ServerProcess, client: openai.OpenAI):
    """The last test: it ends the server of all others."""
    eventually(lambda: is_idle(server))
    streamed = iter(ask(client, user("Go"), stream=True, max_tokens=7000, extra_body=ENDLESS))
    next(streamed)
    waiting = send(server, {})
    eventually(lambda: health(server)["waiting"] == 1)
    server.process.send_signal(signal.SIGTERM)
    refused = waiting.getresponse()
    assert refused.status == 503
    assert json.loads(refused.read())["error"]["code"] == "stopping"
    *_, last = streamed
    assert last.choices[0].finish_reason == "length"
    assert server.wait() == 143
    assert server.log().endswith("stopped by SIGTERM\n")
    assert "Traceback" not in server.log()
