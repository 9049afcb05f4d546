"""A real OpenAI-compatible server on 127.0.0.1 that does what it is told, and counts."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = (
    "The image shows {}; it stands in the middle of the picture, and all around it there is light."
)
USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


@dataclass(frozen=True)
class Answer:
    """What is sent back: a status with headers and a body, after a while."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    drop: bool = False  # the connection, before a word is said


def completion(text: object, usage: object = USAGE, finish_reason: str = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Answer(body=json.dumps({"choices": [choice], "usage": usage}).encode())


def failure(status: int, message: str = "no", **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps({"error": {"message": message}}).encode(), names)


def polished(paragraph: str) -> Answer:
    return completion(GOOD.format(paragraph))


class ChatServer:
    """The server.

    Attributes:
        answer: What is sent back for a paragraph that is asked about for the n-th time (from 1).
        asked: How often each paragraph was.
        requests: Bodies of all of them.
        keys: What stood in their Authorization.
        times: When each came.
        most_at_once: Requests that were under way together.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Answer] = lambda paragraph, _: polished(paragraph)
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._counting = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def api_base(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def serve(self, body: dict[str, Any], path: str, key: str | None) -> Answer:
        paragraph = body["messages"][-1]["content"]
        with self._counting:
            self.asked[paragraph] += 1
            count = self.asked[paragraph]
            self.requests.append(body)
            self.paths.append(path)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        answer = self.answer(paragraph, count)
        time.sleep(answer.after)
        with self._counting:
            self._at_once -= 1
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = server.serve(body, self.path, self.headers["Authorization"])
                if answer.drop:
                    self.close_connection = True
                    return
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)
                except OSError:
                    pass  # whoever asked has gone

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    server.http.daemon_threads = True
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
