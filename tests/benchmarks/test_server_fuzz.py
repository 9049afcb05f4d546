"""The fuzz of the server: it passes, and it would see what is wrong."""

import json
from pathlib import Path

import pytest

from benchmarks import server_fuzz
from benchmarks.server_requests import Case


@pytest.mark.slow
def test_a_thousand_senseless_requests_get_json(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    code = server_fuzz.main(["--requests", "1000", "--seed", "5", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert figures["failures"] == []
    assert code == 0
    assert sum(figures["replies"].values()) == 1000


def reply(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ERROR = b'{"error": {"message": "a", "type": "b", "param": null, "code": null}}'
CHUNK = b'data: {"choices": [{"finish_reason": "stop"}]}\n\n'
EVENTS = "text/event-stream"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (reply(400, ERROR), None),
        (reply(200, CHUNK + b"data: [DONE]\n\n", EVENTS), None),
        (reply(500, ERROR), "status 500"),
        (reply(400, server_fuzz.NO_HTTP, "text/plain"), None),
        (reply(400, b"Bad", "text/plain"), "content type 'text/plain'"),
        (reply(400, b"Bad"), "no JSON"),
        (reply(400, b'{"detail": "a"}'), "no error as OpenAI's clients know them"),
        (reply(400, ERROR.replace(b'"a"', b'"a\\nb"')), "the message is not one line"),
        (reply(200, b"{}"), "no answer"),
        (reply(200, CHUNK, EVENTS), "a stream without its end"),
        (reply(200, CHUNK + CHUNK + b"data: [DONE]\n\n", EVENTS), "a stream that does not finish"),
        (b"", "no reply"),
        (b"garbage", "no reply"),
    ],
)
def test_what_counts_as_a_failure(given: bytes, reason: str | None) -> None:
    found = server_fuzz.complaint(Case("any", b"POST / HTTP/1.1"), given)[1]
    assert found is None if reason is None else str(found).startswith(reason)


def test_a_sound_request_must_be_answered() -> None:
    case = Case("sound", b"POST / HTTP/1.1", sound=True)
    assert server_fuzz.complaint(case, reply(400, ERROR))[1] == "a sound request was refused"
    gone = Case("odd http", b"POST / HTTP/1.1", ends_early=True)
    assert server_fuzz.complaint(gone, b"")[1] is None
