"""dataset/convert_links.py: a list of links, whatever its state, becomes all of the links, or none.

And LLaVA's pictures become shards that are read as a training reads them.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from dataset import convert_links
from minigpt4.errors import run_guarded
from tests.helpers.data_files import picture, read_rows, samples_in
from tests.helpers.repo import ROOT

PROGRAM = [sys.executable, str(ROOT / "dataset" / "convert_links.py")]
ODD = 'a "dog",\n\ta cat\r\nand é \u2028 \U0001f600 \\ '


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it in this process, as an entry point."""
    stdout, stderr = io.StringIO(), io.StringIO()
    given = [*map(str, arguments)]
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as exit_:
        run_guarded(lambda: convert_links.main(given))
    code = int(exit_.value.code or 0)
    return subprocess.CompletedProcess(given, code, stdout.getvalue(), stderr.getvalue())


def converted(*arguments: object) -> str:
    """What it prints when it succeeds."""
    result = convert(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def convert_within(
    limit: Callable[[], None], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, which has less than others."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=limit,
    )


def refused(folder: Path, result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a mistake, which left nothing but the input."""
    errors = [line for line in result.stderr.splitlines() if not line.endswith("rows so far")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert not [file for file in folder.iterdir() if file.is_dir()]
    return errors[0]


def link(number: int, caption: str = ODD) -> dict[str, Any]:
    return {"url": f"https://example.com/{number}.jpg", "caption": caption}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def links_in(folder: Path) -> list[dict[str, Any]]:
    """The links of all parts, each of which is as long as the summary says."""
    summary = json.loads((folder / "summary.json").read_text())
    parts = {file.name: file.read_text().split("\n")[:-1] for file in folder.glob("*.jsonl")}
    assert {name: len(lines) for name, lines in parts.items()} == summary["parts"]
    return [json.loads(line) for name in sorted(parts) for line in parts[name]]


def long_list(file: Path, rows: int, words: int = 30) -> Path:
    """A list in one line, as the published ones are."""
    caption = "dog, " * words
    with open(file, "w") as opened:
        opened.write("[")
        opened.write(", ".join(json.dumps(link(number, caption)) for number in range(rows)))
        opened.write("]")
    return file


def test_a_list_becomes_parts_of_bounded_size_and_nothing_of_it_changes(tmp_path: Path):
    file = write(tmp_path / "list.json", [link(number) for number in range(25)])
    stdout = converted(file, file, "--output", tmp_path / "links", "--rows-per-part", 10)
    assert links_in(tmp_path / "links") == [link(number) for number in range(25)] * 2
    assert "50 rows, 50 of them written" in stdout
    assert "in 5 part(s); 0 bad" in stdout
    assert sorted(os.listdir(tmp_path)) == ["links", "list.json"]


def test_bad_rows_are_counted_told_and_left_out(tmp_path: Path):
    rows = [
        link(1),
        {"caption": "no url"},
        {"url": None, "caption": "no url"},
        5,
        {"url": "ftp://example.com/1.jpg", "caption": "x"},
        {"url": "http://", "caption": "x"},
        {"url": "http://example.com/1.jpg", "caption": " \n"},
        {"url": "http://example.com/1.jpg", "caption": ["x"]},
        {"url": "http://example.com/1.jpg", "caption": "half a pair \ud800"},
        link(2, "too long " * 20_000),
        {"url": "HTTP://example.com/1.jpg", "caption": "also good", "more": 1},
    ]
    file = tmp_path / "list.json"
    file.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
    listing = tmp_path / "bad.jsonl"
    stdout = converted(file, "--output", tmp_path / "links", "--bad", listing)
    assert "11 rows, 2 of them written" in stdout
    line = next(line for line in stdout.splitlines() if line.startswith("  no url "))
    assert line.split(maxsplit=2)[2].split() == ["2", *f"e.g. {file}:2 (row 2): None".split()]
    told = read_rows(listing)
    assert [row["kind"] for row in told] == [
        *("no url", "no url", "unreadable row", "url that is not http", "url that is not http"),
        *("no caption", "no caption", "broken characters", "too long"),
    ]
    assert told[2]["place"] == f"{file}:4 (row 4)"
    assert [row["caption"] for row in links_in(tmp_path / "links")] == [ODD, "also good"]
    summary = json.loads((tmp_path / "links" / "summary.json").read_text())
    assert summary["bad"]["no caption"] == {
        "rows": 2,
        "for example": [f"{file}:7 (row 7): ' \\n'", f"{file}:8 (row 8): ['x']"],
    }


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("list.json", '[{"url": "http://a/1", "caption": "x"},\n{"url": "http:', ":2: breaks off"),
        ("list.json", "[]", ": 0 rows"),
        ("list.json", '[{"url": "x"}]', "no row is of use; 1 times url that is not http, first"),
        ("list.csv", "URL,TEXT\nhttp://a/1,x\n", ":1: no column 'url'; its columns are URL, TEXT"),
    ],
)
def test_what_is_no_whole_list_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, content: str, told: str
):
    file = tmp_path / name
    file.write_text(content)
    arguments = [file, "--output", tmp_path / "links", "--bad", tmp_path / "bad.jsonl"]
    line = refused(tmp_path, convert(*arguments, "--rows-per-part", 1))
    assert f"error: {file}{told}" in line or told in line
    assert os.listdir(tmp_path) == [name]


def test_nothing_that_exists_is_overwritten(tmp_path: Path):
    file = write(tmp_path / "list.json", [link(1)])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine").write_text("kept")
    result = convert(file, "--output", tmp_path / "links")
    assert result.returncode == 2
    assert "exists already" in result.stderr
    for other in (["--output", file], ["--output", tmp_path / "new", "--bad", file]):
        result = convert(file, *other)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert f"{file}: exists already" in result.stderr
    assert json.loads(file.read_text()) == [link(1)]
    assert sorted(os.listdir(tmp_path)) == ["links", "list.json"]


def test_a_full_disk_is_one_line(tmp_path: Path):
    file = long_list(tmp_path / "list.json", 2000)

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = convert_within(small_disk, file, "--output", tmp_path / "links")
    assert f"{tmp_path}/links: cannot be written" in refused(tmp_path, result)
    assert os.listdir(tmp_path) == ["list.json"]


def test_memory_does_not_grow_with_the_list(tmp_path: Path):
    """Under a limit on its address space under which the list itself cannot be loaded."""
    file = long_list(tmp_path / "list.json", 60_000, words=200)
    assert file.stat().st_size > 60_000_000

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (110_000_000, 110_000_000))

    loading = [sys.executable, "-c", f"import json; json.load(open({str(file)!r}))"]
    loaded = subprocess.run(loading, preexec_fn=little_memory, capture_output=True, check=False)
    assert b"MemoryError" in loaded.stderr
    result = convert_within(little_memory, file, "--output", tmp_path / "links")
    assert result.returncode == 0, result.stderr
    assert "60,000 rows, 60,000 of them written" in result.stdout


def killed_when(file: Path, arguments: Sequence[object]) -> None:
    """Run the program and kill it as soon as a file is there."""
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None, "it was done too early"
            assert time.monotonic() < end
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()


def test_a_kill_leaves_nothing_that_looks_whole_and_the_same_command_works(tmp_path: Path):
    file = long_list(tmp_path / "list.json", 30_000)
    arguments = [file, "--output", tmp_path / "links", "--rows-per-part", 1000]
    arguments += ["--bad", tmp_path / "bad.jsonl"]
    killed_when(tmp_path / ".links.writing" / "00002.jsonl", arguments)
    assert not (tmp_path / "links").exists()
    assert not (tmp_path / "bad.jsonl").exists()
    converted(*arguments)
    assert [row["url"] for row in links_in(tmp_path / "links")] == [
        link(number)["url"] for number in range(30_000)
    ]
    assert sorted(os.listdir(tmp_path)) == ["bad.jsonl", "links", "list.json"]


def test_two_at_once_do_not_mix(tmp_path: Path):
    file = long_list(tmp_path / "list.json", 30_000)
    arguments = [file, "--output", tmp_path / "links", "--rows-per-part", 1000]
    first = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL)
    while not (tmp_path / ".links.writing" / "00000.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    second = convert(*arguments)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "another process is writing there" in second.stderr
    assert first.wait() == 0
    assert len(links_in(tmp_path / "links")) == 30_000


# LLaVA's 558K pairs


def llava(number: int, image: object, caption: object = "a dog") -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"from": "human", "value": "What is this?\n<image>"}]
    turns += [{"from": "gpt", "value": caption}]
    return {"id": f"{number:09d}", "image": image, "conversations": turns}


@pytest.fixture
def llava_images(tmp_path: Path) -> Path:
    """Thirteen pictures, as images.zip unpacks them, one of them empty."""
    folder = tmp_path / "images"
    for number in range(12):
        file = folder / f"{number % 3:05d}" / f"{number:09d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture("jpg"))
    (folder / "00000" / "empty.jpg").touch()
    (folder / "00000" / "a.PNG").write_bytes(picture("png"))
    return folder


def test_llavas_pictures_become_shards_that_are_read(tmp_path: Path, llava_images: Path):
    rows = [llava(n, f"{n % 3:05d}/{n:09d}.jpg", f"caption {n}") for n in range(12)]
    rows += [llava(12, "00000/a.PNG", "caption 12")]
    file = write(tmp_path / "blip_laion_cc_sbu_558k.json", rows)
    arguments = [file, "--from", "llava-pretrain", "--images", llava_images]
    arguments += ["--output", tmp_path / "shards", "--shard-size", 5]
    stdout = converted(*arguments)
    assert "13 rows, 13 of them in 3 shard(s)" in stdout
    samples = samples_in(tmp_path / "shards")
    assert [sample.text for sample in samples] == [f"caption {n}" for n in range(13)]
    assert len({sample.key.rsplit("/")[-1] for sample in samples}) == 13
    assert samples[0].image == picture("jpg")
    assert samples[12].image == picture("png")

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*.tar")}
    assert convert(*arguments).stdout == stdout  # all of it is there already
    assert {file: file.stat().st_mtime_ns for file in before} == before
    other = convert(*arguments[:-1], 4)
    assert other.returncode == 2
    assert "was begun with another shard_size" in other.stderr


def test_pictures_that_are_missing_or_lie_elsewhere_are_counted(tmp_path: Path, llava_images: Path):
    (tmp_path / "secret.jpg").write_bytes(picture())
    rows = [
        llava(0, "00000/000000000.jpg"),
        llava(1, "00000/gone.jpg"),
        llava(2, "../secret.jpg"),
        llava(3, str(tmp_path / "secret.jpg")),
        llava(4, "00000/empty.jpg"),
        llava(5, "00001/000000001.jpg", caption=""),
        llava(6, None),
        llava(7, "00001/words.txt"),
        {"image": "00001/000000001.jpg", "blip_caption": "of the meta file"},
        llava(9, "00001"),
    ]
    file = write(tmp_path / "list.json", rows)
    arguments = [file, "--from", "llava-pretrain", "--images", llava_images]
    arguments += ["--output", tmp_path / "shards", "--bad", tmp_path / "bad.jsonl"]
    stdout = converted(*arguments, "--shard-size", 2)
    assert "10 rows, 2 of them in 2 shard(s)" in stdout
    assert [sample.text for sample in samples_in(tmp_path / "shards")] == [
        *("a dog", "of the meta file")
    ]
    told = read_rows(tmp_path / "bad.jsonl")
    assert [row["kind"] for row in told] == [
        *("missing picture", "path that leaves --images", "path that leaves --images"),
        *("empty picture", "no caption", "no image", "picture of another type"),
        "picture of another type",
    ]
    assert told[0]["place"] == f"{file}:1 (row 2)"
    # A shard without a sample would be a fault to a training.
    names = {path.name for path in (tmp_path / "shards").glob("*.tar")}
    assert names == {"00000.tar", "00004.tar"}


def test_pictures_that_come_later_are_packed_by_the_same_command(
    tmp_path: Path, llava_images: Path
):
    rows = [llava(n, f"{n:05d}.jpg", f"caption {n}") for n in range(4)]
    file = write(tmp_path / "list.json", rows)
    arguments = [file, "--from", "llava-pretrain", "--images", llava_images, "--shard-size", 2]
    arguments += ["--output", tmp_path / "shards"]
    result = convert(*arguments)
    assert result.returncode == 2
    assert "no row is of use; 4 times missing picture" in result.stderr
    for come, there in ((0, 1), (3, 2), (1, 3)):
        (llava_images / f"{come:05d}.jpg").write_bytes(picture())
        result = convert(*arguments)
        assert f"4 rows, {there} of them" in result.stdout
        assert len(samples_in(tmp_path / "shards")) == there


def test_packing_goes_on_after_a_kill_with_the_same_shards(tmp_path: Path, llava_images: Path):
    rows = [llava(n, f"{n % 12 % 3:05d}/{n % 12:09d}.jpg", f"caption {n}") for n in range(600)]
    file = write(tmp_path / "list.json", rows)
    arguments = [file, "--from", "llava-pretrain", "--images", llava_images, "--shard-size", 10]
    whole = [*arguments, "--output", tmp_path / "whole"]
    killed = [*arguments, "--output", tmp_path / "killed"]
    assert convert(*whole).returncode == 0
    killed_when(tmp_path / "killed" / "00005_stats.json", killed)
    assert len(samples_in(tmp_path / "killed")) < 600  # what is there is whole
    assert convert(*killed).returncode == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_llavas_meta_file_becomes_links(tmp_path: Path):
    rows = [
        {"id": "1", "image": "0/1.jpg", "blip_caption": "a dog", "url": "http://a/1.jpg"},
        {"id": "2", "image": "0/2.jpg", "blip_caption": "a cat", "url": None},
    ]
    meta = write(tmp_path / "blip_laion_cc_sbu_558k_meta.json", rows)
    converted(meta, "--from", "llava-pretrain", "--output", tmp_path / "links")
    assert links_in(tmp_path / "links") == [{"url": "http://a/1.jpg", "caption": "a dog"}]


def test_llavas_options_that_do_not_fit_are_one_line(tmp_path: Path):
    file = write(tmp_path / "list.json", [llava(1, "0/1.jpg")])
    output = ["--output", tmp_path / "out"]
    for arguments, told in (
        (["--from", "llava-pretrain"], "1 times no url"),
        (["--images", tmp_path], "--images goes with --from llava-pretrain"),
        (["--from", "llava-pretrain", "--images", tmp_path / "no"], "no such folder; --images is"),
        (["--from", "llava-pretrain", "--images", tmp_path, "--shard-size", 0], "at least 1"),
    ):
        assert told in refused(tmp_path, convert(file, *output, *arguments))
