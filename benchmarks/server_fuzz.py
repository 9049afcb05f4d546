"""Send a server a thousand sound, damaged and senseless requests: it must answer each in JSON.

    python benchmarks/server_fuzz.py --requests 1000 --seed 0 --json output/server_fuzz.json

Starts ``python -m minigpt4 serve`` with the embedded tiny model. Every reply must be an answer of
the right shape or an error as OpenAI's clients know them (uvicorn's own line for what is not HTTP),
with a status that fits and never 500; a sound request must be answered, and one asked before must
get the same answer afterwards; the process must stay alive, write no traceback, and end with 130 on
Ctrl-C.
"""

import argparse
import contextlib
import http.client
import io
import json
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.server_requests import (  # noqa: E402
    CASES,
    Case,
    as_json,
    http_request,
    image_part,
    picture,
)
from minigpt4.errors import NothingCheckedError, run_guarded  # noqa: E402
from tests.helpers.server_process import ServerProcess, running_server  # noqa: E402

STATUSES = {200, 400, 404, 405, 413, 415}
NO_HTTP = b"Invalid HTTP request received."  # uvicorn's own reply
_PATIENCE = 120  # seconds, for liveness only
_AT_ONCE = 4


@dataclass(frozen=True)
class Failure:
    """What a request was replied that it must not be."""

    kind: str
    reason: str
    sent: str
    reply: str


def send(port: int, case: Case) -> bytes:
    """Everything the server replies until it closes the connection; empty for who has left."""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
        with contextlib.suppress(OSError):  # it closed early; what it said may still be there
            connection.sendall(case.data)
            if case.ends_early:
                connection.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            while not case.hang_up and (part := connection.recv(65536)):
                reply += part
        return reply


class _Bytes:
    """Bytes in the form in which ``http.client`` reads from a socket."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def makefile(self, *_: Any) -> io.BytesIO:
        return self._file


def complaint(case: Case, reply: bytes) -> tuple[int, str | None]:
    """The status, and what is wrong with a reply."""
    method = case.data.partition(b" ")[0].decode("latin-1")
    response = http.client.HTTPResponse(_Bytes(reply), method=method)  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ValueError) as error:
        # A client that ends in the middle of its request has gone: it may get nothing.
        gone = not reply and case.ends_early
        return 0, None if gone else f"no reply ({type(error).__name__})"
    status, kind = response.status, response.headers.get("content-type", "")
    if (status, body) == (400, NO_HTTP) and not case.sound:
        return status, None
    if status not in STATUSES:
        return status, f"status {status}"
    if case.sound and status != 200:
        return status, "a sound request was refused"
    if method == "HEAD":
        return status, None  # replies to it have no body
    if kind.startswith("text/event-stream"):
        return status, _stream_complaint(body)
    if kind != "application/json":
        return status, f"content type {kind!r}"
    try:
        value = json.loads(body)
    except ValueError:
        return status, "no JSON"
    return status, _object_complaint(status, value)


def _object_complaint(status: int, value: Any) -> str | None:
    if status != 200:
        error = value.get("error") if isinstance(value, dict) else None
        if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
            return "no error as OpenAI's clients know them"
        message = error["message"]
        return None if message and "\n" not in message else "the message is not one line"
    if value.get("object") == "chat.completion":
        (choice,) = value["choices"]
        right = isinstance(choice["message"]["content"], str) and value["usage"]["total_tokens"]
        return None if right and choice["finish_reason"] in ("stop", "length") else "no answer"
    return None if value.get("object") in ("list", "model") or "status" in value else "no answer"


def _stream_complaint(body: bytes) -> str | None:
    *events, done, end = body.split(b"\n\n")
    if done != b"data: [DONE]" or end:
        return "a stream without its end"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    finished = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    right = finished[-1] in ("stop", "length") and not any(finished[:-1])
    return None if right else "a stream that does not finish once"


def fuzz(server: ServerProcess, requests: int, seed: int) -> tuple[Counter[str], list[Failure]]:
    """Counts of kinds and statuses, and failures."""
    rng = random.Random(seed)
    weights, makers = zip(*CASES, strict=True)
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    before = known_answer(server)

    def try_one(case: Case) -> None:
        reply = send(server.port, case)
        if case.hang_up:
            counts[f"{case.kind}: left"] += 1
            return
        status, reason = complaint(case, reply)
        counts[f"{case.kind}: {status or 'closed'}"] += 1
        if reason:
            sent = f"{case.data[:1500]!r}"
            failures.append(Failure(case.kind, reason, sent, f"{reply[:500]!r}"))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        drawn = (rng.choices(makers, weights)[0](rng) for _ in range(requests))
        list(pool.map(try_one, drawn))
    if server.process.poll() is not None:
        failures.append(Failure("server", f"it ended with {server.process.returncode}", "", ""))
    elif (after := known_answer(server)) != before:
        failures.append(Failure("server", "another answer than before", before, after))
    return counts, failures


def known_answer(server: ServerProcess) -> str:
    """The answer to a question that is always the same."""
    content = [image_part(picture(random.Random(0))), {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    request = {"model": "minigpt4", "max_tokens": 12, "messages": messages}
    reply = send(server.port, Case("known", http_request(as_json(request)), sound=True))
    body = json.loads(reply.partition(b"\r\n\r\n")[2])
    return str(body["choices"][0]["message"]["content"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args(argv)
    if arguments.requests < 1:
        raise NothingCheckedError("--requests: nothing to check; give at least 1")
    # The address of a picture is looked at, and none that the cases name is a public one.
    with running_server(["--max-body-mb", "1", "--allow-urls"]) as server:
        counts, failures = fuzz(server, arguments.requests, arguments.seed)
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
            if (code := server.wait()) != 130:
                failures.append(Failure("server", f"Ctrl-C ends it with {code}", "", ""))
        if "Traceback" in (log := server.log()):
            failures.append(Failure("server", "a traceback in its log", "", log[-2000:]))
    report(counts, failures)
    if arguments.json:
        figures = {"seed": arguments.seed, "requests": counts.total(), "replies": counts}
        figures["failures"] = [asdict(failure) for failure in failures]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if failures else 0


def report(counts: Counter[str], failures: Sequence[Failure]) -> None:
    """A row for each kind of request, a column for each status."""
    kinds = sorted({name.partition(": ")[0] for name in counts})
    ends = sorted({name.partition(": ")[2] for name in counts})
    print(f"{'request':<16}" + "".join(f"{end:>8}" for end in ends))
    for kind in kinds:
        print(f"{kind:<16}" + "".join(f"{counts[f'{kind}: {end}'] or '-':>8}" for end in ends))
    for failure in failures[:10]:
        print(f"FAILED {failure.kind}: {failure.reason}\n{failure.sent}\n{failure.reply}\n")
    print(f"{counts.total()} requests, {len(failures)} failures")


if __name__ == "__main__":
    run_guarded(main)
