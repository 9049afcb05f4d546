"""Pictures of requests: which addresses are asked, and what comes back from them."""

import asyncio
import http.server
import ipaddress
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minigpt4.apps.server.pictures import Fetcher, is_public, read_data_url, resolve
from minigpt4.errors import DataError
from tests.helpers.messages import one_line


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2001:0:7f00:1::1"),
    ],
)
def test_addresses_that_are_never_asked(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "0x7f000001", "017700000001", "2130706433", "[::1]", "0"]
)
def test_however_a_host_is_written_its_address_is_looked_at(host: str):
    try:
        found = asyncio.run(resolve(host.strip("[]"), 80))
    except OSError:
        return  # this machine has no IPv6
    assert not any(map(is_public, found))


class Site(http.server.BaseHTTPRequestHandler):
    """A small site: a file, a redirect to it, one that never ends, one that is too large."""

    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(str(self.headers["Host"]))
        if self.path == "/slow":
            self.server.ended.wait(60)  # type: ignore[attr-defined]
        status, target = 200, ""
        if self.path.startswith("/to/"):
            status, target = 302, self.path.removeprefix("/to/")
        if self.path == "/missing":
            status = 404
        self.send_response(status)
        if target:
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(b"x" * (2000 if self.path == "/large" else 5))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(certificate: ssl.SSLContext | None = None) -> Iterator[int]:
    """The site on a port."""
    Site.hosts = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        server.ended = threading.Event()  # type: ignore[attr-defined]
        if certificate:
            server.socket = certificate.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.ended.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


@pytest.fixture
def site() -> Iterator[int]:
    with serving() as port:
        yield port


async def names(host: str, port: int) -> list[str]:
    """Names of a small internet, all on this machine; a literal address is itself."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return ["127.0.0.1"]


def only_loopback(address: str) -> bool:
    return address == "127.0.0.1"


def fetch(url: str, seconds: float = 30, allowed: Any = only_loopback) -> bytes:
    return asyncio.run(Fetcher(seconds, 1000, names, allowed).fetch(url))


def test_a_picture_is_fetched_from_the_address_that_was_checked(site: int):
    assert fetch(f"http://pictures.example:{site}/a.png") == b"xxxxx"
    assert Site.hosts == [f"pictures.example:{site}"]
    there = f"http://other.example:{site}/a.png"
    assert fetch(f"http://pictures.example:{site}/to/{there}") == b"xxxxx"
    assert Site.hosts[-1] == f"other.example:{site}"
    assert fetch(f"http://pictures.example:{site}/to//a.png") == b"xxxxx"


@pytest.mark.parametrize(
    ("path", "mentions"),
    [
        ("/to/http://10.0.0.1/a.png", "not a public one"),
        ("/to/file:///etc/passwd", "must be an http or https address"),
        ("/to//to//to//to//to//a.png", "more than 3 other addresses"),
        ("/missing", "replies 404"),
        ("/large", "larger than 1,000 bytes"),
    ],
)
def test_what_is_not_fetched(site: int, path: str, mentions: str):
    with one_line(DataError, mentions):
        fetch(f"http://pictures.example:{site}{path}")


def test_no_fetch_takes_for_ever(site: int):
    with one_line(DataError, "nothing came within 0.2 seconds"):
        fetch(f"http://pictures.example:{site}/slow", seconds=0.2)


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example:{}/a.png",
        "http://127.0.0.1:{}/a.png",
        "http://me:word@8.8.8.8:{}/",
        "http://:{}/",
        "http://[::1/",
        "http://a..b:{}/",
        "ftp://8.8.8.8/",
    ],
)
def test_private_and_odd_addresses_are_never_asked(site: int, url: str):
    with one_line(DataError):
        fetch(url.format(site), allowed=is_public)
    assert Site.hosts == []


def test_data_urls():
    assert read_data_url("data:image/png;base64,AAAA") == b"\0\0\0"
    assert read_data_url("DATA:image/svg+xml;charset=utf-8;base64,") == b""
    for url in ("data:image/png,AAAA", "data:;base64,AAAA", "data:image/png;base64,AA A"):
        with one_line(DataError):
            read_data_url(url)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_is_checked_against_the_name(tmp_path: Path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.example"
    files = ["-keyout", str(key), "-out", str(certificate)]
    name = ["-addext", "subjectAltName=DNS:pictures.example"]
    subprocess.run([*command.split(), *files, *name], check=True, capture_output=True)
    offered = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    offered.load_cert_chain(certificate, key)
    known = ssl.create_default_context(cafile=certificate)
    with serving(offered) as port:
        fetcher = Fetcher(30, 1000, names, only_loopback, known)
        assert asyncio.run(fetcher.fetch(f"https://pictures.example:{port}/")) == b"xxxxx"
        for host in ("other.example", "127.0.0.1"):
            with one_line(DataError, "certificate verify failed"):
                asyncio.run(fetcher.fetch(f"https://{host}:{port}/"))
