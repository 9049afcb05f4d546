"""dataset/download_*.sh: links that answer in every way become shards that train, kills or not.

The long tests run img2dataset itself against a server of this machine; in the others a stand-in
writes what it can leave behind.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.samples import BadSample
from tests.helpers.data_files import samples_in, write_tar
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT
from tests.helpers.training import stage1_options, train

LAION = ROOT / "dataset" / "download_laion.sh"
CC_SBU = ROOT / "dataset" / "download_cc_sbu.sh"

# Of each number in PLAN: "whole" shards, "empty" ones, those cut in "half" and those whose stats
# tell more pictures than there are ("short"). Then it waits where WAIT names a file to be made.
STAND_IN = """\
import io, json, os, sys, tarfile, time
given = dict(word.split("=", 1) for word in sys.argv[1:])
folder = given["--output_folder"]
for number, kind in enumerate(os.environ["PLAN"].split()):
    stats = f"{folder}/{number:05d}_stats.json"
    if os.path.exists(stats):
        continue
    with open(os.environ["ASKED"], "a") as file:
        file.write(f"{number}\\n")
    tar = tarfile.open(f"{folder}/{number:05d}.tar", "w")
    for index in range(0 if kind == "empty" else 2):
        for suffix, content in ((".jpg", b"x" * 5000), (".json", b"{}")):
            entry = tarfile.TarInfo(f"{number:05d}{index}{suffix}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    if kind == "half":
        tar.fileobj.flush()
        break
    tar.close()
    pictures = {"whole": 2, "empty": 0, "short": 3}[kind]
    told = {"count": 3, "successes": pictures, "failed_to_download": 3 - pictures}
    told |= {"failed_to_resize": 0, "status_dict": {"success": 2, "HTTP Error 404": 1}}
    open(stats, "w").write(json.dumps(told))
if "WAIT" in os.environ:
    open(os.environ["WAIT"], "w").close()
    time.sleep(600)
"""


def links_folder(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Links as convert_links.py writes them."""
    file = folder.with_suffix(".list.json")
    file.write_text(json.dumps(rows))
    program = [sys.executable, str(ROOT / "dataset" / "convert_links.py"), str(file)]
    subprocess.run([*program, "--output", str(folder)], check=True, capture_output=True)
    return folder


def script(
    program: Path, *arguments: object, **environment: Any
) -> subprocess.CompletedProcess[str]:
    return finished(["bash", program, *arguments], **environment)


@pytest.fixture
def nine(tmp_path: Path) -> dict[str, Any]:
    """Nine links for three shards, and an environment with the stand-in."""
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "img2dataset").write_text(f"#!{sys.executable}\n{STAND_IN}")
    (programs / "img2dataset").chmod(0o755)
    rows = [{"url": f"http://127.0.0.1/{number}", "caption": "x"} for number in range(9)]
    return {
        "DATASET_ENV": programs.parent,
        "LINKS": links_folder(tmp_path / "links", rows),
        "SHARDS": tmp_path / "shards",
        "ASKED": tmp_path / "asked",
    }


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def tars(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*.tar"))


def test_what_is_missing_is_one_line(nine: dict[str, Any], tmp_path: Path):
    bare = tmp_path / "bare" / "bin"
    bare.mkdir(parents=True)
    assert "run 'make dataset-env' first" in one_line(script(LAION, DATASET_ENV=tmp_path))
    (bare / "python").symlink_to(sys.executable)
    line = one_line(script(LAION, DATASET_ENV=bare.parent))
    assert "img2dataset: not there; run 'make dataset-env' first" in line

    line = one_line(script(LAION, **nine | {"LINKS": tmp_path / "no"}))
    assert f"{tmp_path}/no: no links" in line
    assert not (tmp_path / "shards").exists()
    (nine["LINKS"] / "00000.jsonl").unlink()
    assert "00000.jsonl: missing" in one_line(script(LAION, **nine))
    (nine["LINKS"] / "summary.json").write_text("{}")
    assert "was not written by" in one_line(script(LAION, **nine))
    for arguments, told in (
        (["--output_format", "files"], "--output_format: is given by this program"),
        (["--url_list=x"], "--url_list=x: is given by this program"),
        (["--output", tmp_path / "a[b]"], "img2dataset cannot read a path"),
    ):
        assert told in one_line(script(LAION, *arguments, **nine))
    wrong = script(LAION, "--threads", "0", **nine)
    assert wrong.returncode == 2
    assert "0 is less than 1" in wrong.stderr


def test_the_defaults_are_two_folders_each(nine: dict[str, Any]):
    for program, name in ((LAION, "laion"), (CC_SBU, "cc_sbu")):
        line = one_line(script(program, DATASET_ENV=nine["DATASET_ENV"]))
        assert f"data/{name}_links: no links" in line


def test_only_whole_shards_arrive_and_the_same_command_goes_on(nine: dict[str, Any]):
    shards = nine["SHARDS"]
    first = script(LAION, "--shard-size", 3, **nine, PLAN="whole short half")
    assert first.returncode == 2
    assert "2 of 3 shards are not there" in first.stderr
    assert tars(shards) == ["00000.tar"]
    second = script(LAION, "--shard-size", 3, **nine, PLAN="whole whole empty")
    assert second.returncode == 2
    assert "1 of 3 shards are not there; img2dataset ended with exit code 0" in second.stderr
    assert tars(shards) == ["00000.tar", "00001.tar"]
    assert not (shards / "summary.json").exists()
    last = script(LAION, "--shard-size", 3, **nine, PLAN="whole whole whole")
    assert last.returncode == 0, last.stderr
    assert "9 links gave 6 pictures (66.7%) in 3 shard(s)" in last.stdout
    assert "3  HTTP Error 404" in last.stdout
    assert json.loads((shards / "summary.json").read_text())["successes"] == 6
    assert nine["ASKED"].read_text().split() == [*"012", *"12", *"2"]
    assert not list(shards.glob(".*"))

    assert script(LAION, "--shard-size", 3, **nine, PLAN="").stdout == last.stdout
    other = script(LAION, "--shard-size", 2, **nine, PLAN="")
    assert "was begun with another shard_size" in one_line(other)


def test_a_folder_of_something_else_is_refused(nine: dict[str, Any]):
    nine["SHARDS"].mkdir()
    write_tar(nine["SHARDS"] / "00000.tar")
    assert "holds other files already" in one_line(script(LAION, **nine, PLAN="whole"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_whole_at_a_kill_is_kept(nine: dict[str, Any], tmp_path: Path, number: int):
    waits = tmp_path / "waits"
    environment = {name: str(value) for name, value in nine.items()} | {"WAIT": str(waits)}
    process = subprocess.Popen(
        ["bash", str(LAION), "--shard-size", "3"],
        env=os.environ | environment | {"PLAN": "whole half"},
        stderr=subprocess.PIPE,
    )
    while not waits.exists():
        assert process.poll() is None
        time.sleep(0.01)
    writer = child_of(process.pid)
    process.send_signal(number)
    code = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)]
    try:
        assert process.wait(20) == code
        if number == signal.SIGKILL:  # nobody could end the writer, who still may write
            assert tars(nine["SHARDS"]) == ["00000.tar", "00001.tar"]
            assert list_shards(str(nine["SHARDS"])) == []
            line = one_line(script(LAION, "--shard-size", 3, **nine, PLAN=""))
            assert "another process is writing there" in line
            os.kill(writer, signal.SIGKILL)
            time.sleep(0.2)
        else:
            assert tars(nine["SHARDS"]) == ["00000.tar"]
            assert not Path(f"/proc/{writer}").exists()
    finally:
        if Path(f"/proc/{writer}").exists():
            os.kill(writer, signal.SIGKILL)
    again = script(LAION, "--shard-size", 3, **nine, PLAN="whole whole whole")
    assert again.returncode == 0, again.stderr
    assert nine["ASKED"].read_text().split() == [*"01", *"12"]
    assert tars(nine["SHARDS"]) == ["00000.tar", "00001.tar", "00002.tar"]


def child_of(process: int) -> int:
    """The one child of a process."""
    return int(Path(f"/proc/{process}/task/{process}/children").read_text())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"PYTHON": "false"}, "img2dataset needs Python 3.11 or 3.12, 'false' is not"),
        pytest.param(
            {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
            "is there a network?",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(
    tmp_path: Path, given: dict[str, str], told: str
):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "dataset").mkdir()
    shutil.copy(ROOT / "dataset" / "requirements.txt", tmp_path / "dataset")
    result = finished(["make", "--no-print-directory", "dataset-env"], tmp_path, **given)
    assert result.returncode != 0
    assert told in result.stdout
    assert not (tmp_path / ".dataset-env" / "installed").exists()


# With img2dataset itself


def encoded(form: str, number: int = 0) -> bytes:
    """A picture larger than the shards', in colours of its own."""
    file = io.BytesIO()
    Image.new("RGB", (400, 300), (number * 7 % 256, number * 13 % 256, 90)).save(file, form)
    return file.getvalue()


class _Answers(BaseHTTPRequestHandler):
    """``/<what>/<number>``: pictures, and what a link may give besides."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        _, what, number = self.path.split("/")
        self.server.asked[self.path] += 1
        if what == "gone":
            self.send_error(404)
            return
        if what == "moved":
            self.send_response(302)
            self.send_header("Location", f"/jpeg/{number}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if what == "late":
            time.sleep(5)  # more than --timeout
        if what == "slow":
            time.sleep(0.3)
        time.sleep(self.server.delay)
        kind, content = "image/jpeg", encoded("JPEG", int(number))
        if what in ("png", "webp"):
            kind, content = f"image/{what}", encoded(what)
        if what == "page":
            kind, content = "text/html", b"<html>This picture has moved.</html>"
        if what == "mislabelled":
            kind = "text/plain"
        if what in ("broken", "empty"):
            content = content[:30] if what == "broken" else b""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) + (what == "cut") * 999))
        if what == "forbidden":
            self.send_header("X-Robots-Tag", "noai")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: Counter[str] = Counter()
        self.delay = 0.0

    def handle_error(self, *_: object) -> None:
        """Those who ask give up on late answers."""

    def link(self, what: str, number: int) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_port}/{what}/{number}"
        return {"url": url, "caption": f'{what} no. {number},\n"quoted"\tand é \U0001f600'}


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield opened
        opened.shutdown()


GOOD = ("jpeg", "png", "webp", "moved", "slow", "mislabelled")
BAD = ("gone", "late", "page", "broken", "empty", "cut", "forbidden")


def checked(folder: Path) -> dict[str, Any]:
    """What check-shards counts."""
    file = folder.with_suffix(".check.json")
    command = [sys.executable, "-m", "minigpt4", "check-shards", str(folder), "--json", str(file)]
    done = subprocess.run([*command, "--workers", "0"], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout
    return json.loads(file.read_text())


@pytest.mark.slow
def test_links_become_shards_that_train(dataset_env: Path, server: _Server, tmp_path: Path):
    kinds = [*GOOD, *BAD] * 4
    rows = [server.link(what, number) for number, what in enumerate(kinds)]
    links = links_folder(tmp_path / "links", rows)
    # Of the same option twice, img2dataset takes the last; so does this program with its own.
    options = ["--shard-size", 20, "--timeout", 2, "--processes", 2, "--threads", 16]
    for program, name in ((LAION, "laion"), (CC_SBU, "cc_sbu")):
        result = script(program, *options, LINKS=links, SHARDS=tmp_path / name, PROCESSES=1)
        assert result.returncode == 0, result.stderr
        assert "52 links gave 24 pictures (46.2%) in 3 shard(s)" in result.stdout

        figures = checked(tmp_path / name)
        assert (figures["good"], figures["samples"], figures["shards"]) == (24, 24, 3)
        assert (figures["bad"], figures["repeated_keys"]) == ({}, 0)
        samples = samples_in(tmp_path / name)
        assert sorted(str(sample.text) for sample in samples) == sorted(
            row["caption"] for row, what in zip(rows, kinds, strict=True) if what in GOOD
        )
        for sample in samples:  # no border, nothing cut off
            assert isinstance(sample.image, bytes)
            with Image.open(io.BytesIO(sample.image)) as image:
                assert image.size == (299, 224)
                assert all(abs(a - b) < 9 for a, b in zip(*ends_of(image), strict=True))

    summary = json.loads((tmp_path / "laion" / "summary.json").read_text())
    assert summary["reasons"]["HTTP Error 404: Not Found"] == 4
    assert summary["failed_to_resize"] == 12  # pages, broken ones and empty ones
    run = train(*stage1_options(tmp_path, tmp_path / "out"))
    assert run.returncode == 0, run.stderr


def ends_of(image: Image.Image) -> list[tuple[int, int, int]]:
    """The colours of two corners that lie across."""
    found = [image.getpixel(place) for place in ((0, 0), (image.width - 1, image.height - 1))]
    return [value for value in found if isinstance(value, tuple)]  # type: ignore[misc]


@pytest.mark.slow
def test_nothing_is_lost_or_double_after_a_kill(dataset_env: Path, server: _Server, tmp_path: Path):
    rows = [server.link("jpeg", number) for number in range(60)]
    links = links_folder(tmp_path / "links", rows)
    shards = tmp_path / "shards"
    command = ["bash", str(LAION), "--shard-size", "20", "--processes", "1", "--threads", "2"]
    environment = {"LINKS": str(links), "SHARDS": str(shards)}
    server.delay = 0.2
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # In the middle of the second shard.
    end = time.monotonic() + 120
    while server.asked.total() < 30:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    writers = os.getpgid(child_of(process.pid))
    process.kill()
    os.killpg(writers, signal.SIGKILL)
    process.wait()
    (half,) = shards.glob(".attempt-*/00001.tar")
    assert any(isinstance(read, BadSample) for read in ShardSource([str(half)], 1).read(0))
    assert list_shards(str(shards)) == []
    assert server.asked.total() < 60

    server.delay = 0.0
    result = script(LAION, *command[2:], **environment)
    assert result.returncode == 0, result.stderr
    assert "60 links gave 60 pictures (100.0%) in 3 shard(s)" in result.stdout
    assert checked(shards)["good"] == 60
    samples = samples_in(shards)
    assert sorted(str(sample.text) for sample in samples) == sorted(row["caption"] for row in rows)
    assert len({sample.key for sample in samples}) == 60
    # What was whole at the kill was kept.
    assert all(server.asked[f"/jpeg/{number}"] == 1 for number in range(20))
    assert not list(shards.glob(".*"))
