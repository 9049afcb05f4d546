import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minigpt4.errors import CheckpointError
from minigpt4.weights.download import cache_folder, fetch
from tests.helpers.messages import one_line

CONTENT = bytes(range(256)) * 300


@dataclass
class Site:
    """What the server holds and how it misbehaves; what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {"/weights.pth": CONTENT})
    cut_after: int | None = None  # bytes of the body, after which the connection is closed
    ranges: bool = True
    tells_size: bool = True
    asked: list[str] = field(default_factory=list)  # the Range of each request


def handler_of(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            site.asked.append(asked)
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if not site.ranges:
                start = 0
            elif asked and start >= len(content):
                self.send_error(416)
                return
            body = content[start:]
            self.send_response(206 if start else 200)
            if site.tells_size:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if site.cut_after is None else body[: site.cut_after])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(found))
    found.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MINIGPT4_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for another process looks again at once."""
    wait = time.sleep
    monkeypatch.setattr("minigpt4.weights.download.time.sleep", lambda _: wait(0.005))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_fetched_once(site: Site, cache: Path) -> None:
    file = fetch(site.url)
    assert file == cache / "weights.pth"
    assert file.read_bytes() == CONTENT
    assert fetch(site.url) == file
    assert site.asked == [""]
    assert names(cache) == ["weights.pth", "weights.pth.url"]


def test_a_path_and_a_file_put_there_by_hand_are_used_as_they_are(site: Site, cache: Path) -> None:
    assert fetch("some//weights.pth") == Path("some/weights.pth")
    assert not cache.exists()
    cache.mkdir()
    (cache / "weights.pth").write_bytes(b"by hand")
    assert fetch(site.url).read_bytes() == b"by hand"
    assert site.asked == []


def test_a_cut_download_goes_on_where_it_stopped(site: Site, cache: Path) -> None:
    site.cut_after = 50_000
    with one_line(CheckpointError, site.url, f"50000 of {len(CONTENT)} bytes", "run again"):
        fetch(site.url)
    assert names(cache) == ["weights.pth.part"]
    site.cut_after = 20_000
    with one_line(CheckpointError, site.url, cache / "weights.pth", f"70000 of {len(CONTENT)}"):
        fetch(site.url)
    site.cut_after = None
    assert fetch(site.url).read_bytes() == CONTENT
    assert site.asked == ["", "bytes=50000-", "bytes=70000-"]
    assert names(cache) == ["weights.pth", "weights.pth.url"]


@pytest.mark.parametrize("length", [1, len(CONTENT), len(CONTENT) + 1])
def test_a_part_that_cannot_be_continued_is_fetched_again(
    site: Site, cache: Path, length: int
) -> None:
    site.ranges = length >= len(CONTENT)
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(bytes(length))
    assert fetch(site.url).read_bytes() == CONTENT


def test_a_server_that_reports_no_size_is_believed(site: Site) -> None:
    site.tells_size = False
    assert fetch(site.url).read_bytes() == CONTENT


def test_a_file_that_the_server_lacks_is_one_line(site: Site, cache: Path) -> None:
    url = site.url.replace("weights", "none")
    with one_line(CheckpointError, url, "404", cache / "none.pth"):
        fetch(url)
    assert names(cache) == []


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "127.0.0.1:x", "127.0.0.1:{port}/my files"])
def test_an_unreachable_server_is_one_line_that_says_what_to_do(cache: Path, host: str) -> None:
    url = f"http://{host.format(port=closed_port())}/eva_vit_g.pth"
    with one_line(CheckpointError, url, cache / "eva_vit_g.pth", "put it at"):
        fetch(url, timeout=2)
    assert names(cache) == []


def test_a_server_that_does_not_speak_http_is_one_line(cache: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/w.pth"
    try:
        with one_line(CheckpointError, url, cache / "w.pth"):
            fetch(url, timeout=2)
    finally:
        thread.join()
        listener.close()
    assert names(cache) == []


def test_a_cache_that_cannot_be_made_is_one_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGPT4_CACHE", str(tmp_path / "file" / "cache"))
    with one_line(CheckpointError, site.url, tmp_path / "file"):
        fetch(site.url)


def test_a_query_is_no_part_of_the_name(site: Site, cache: Path) -> None:
    site.files["/weights.pth?download=true"] = CONTENT
    assert fetch(f"{site.url}?download=true") == cache / "weights.pth"


# Where the cache is


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == cache
    monkeypatch.setenv("MINIGPT4_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "minigpt4"
    monkeypatch.delenv("MINIGPT4_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "minigpt4"


# Several processes


def test_a_stale_lock_is_taken_over(site: Site, cache: Path) -> None:
    cache.mkdir()
    lock = cache / "weights.pth.lock"
    lock.write_text("")
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    assert fetch(site.url).read_bytes() == CONTENT
    assert names(cache) == ["weights.pth", "weights.pth.url"]


def test_who_finds_a_lock_waits_for_the_file(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / "weights.pth.lock").write_text("")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (cache / "weights.pth").write_bytes(b"by the other one")

    monkeypatch.setattr("minigpt4.weights.download.time.sleep", wait)
    assert fetch(site.url).read_bytes() == b"by the other one"
    assert len(waits) == 3
    assert site.asked == []
    # The other one gives up.
    (cache / "weights.pth").unlink()
    lock = cache / "weights.pth.lock"
    monkeypatch.setattr(
        "minigpt4.weights.download.time.sleep", lambda _: lock.unlink(missing_ok=True)
    )
    assert fetch(site.url).read_bytes() == CONTENT


def test_of_several_at_once_only_one_downloads(site: Site) -> None:
    fetched: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: fetched.append(fetch(site.url).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [CONTENT] * 4
    assert len(site.asked) == 1


def test_a_file_of_the_same_name_from_elsewhere_is_refused(site: Site, cache: Path) -> None:
    file = fetch(site.url)
    with one_line(CheckpointError, "from another address", str(file)):
        fetch("http://127.0.0.1:9/weights.pth")
    assert fetch(site.url) == file
