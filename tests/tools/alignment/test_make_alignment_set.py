"""The paper's procedure as one command, killed and gone on with in each of its steps."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt4.__main__ import main
from minigpt4.datasets.cc_sbu_align import read_entries
from minigpt4.datasets.samples import RawSample
from tests.helpers.chat_server import (
    GOOD,
    Answer,
    ChatServer,
    chat_server,
    completion,
    failure,
    polished,
)  # fmt: skip
from tests.helpers.data_files import read_rows, write_rows
from tests.helpers.processes import started
from tests.helpers.repo import EntryPoint
from tests.helpers.repo import error_line as one_line
from tests.helpers.training import STAGE2, train

CONFIG = "eval_configs/tiny_eval.yaml"
KEY = "sk-secret-0123456789"
FAST = ["--num-beams", "2", "--max-new-tokens", "20", "--batch-size", "4"]
FILES = {"settings.json", "drafts.jsonl", "verdicts.jsonl", "reviews.jsonl", "requests.jsonl",
         "filter_cap.json", "image"}  # fmt: skip
WAIT = 240.0  # seconds; nothing here takes as long unless it hangs

Make = Callable[..., tuple[int, str]]
Row = dict[str, Any]


def written(folder: Path) -> bytes:
    """All that was written into a folder."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server() as started:
        yield started


@pytest.fixture(scope="module")
def pictures(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 scenes, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(8):
        shutil.copy(scenes / "cc_sbu_align" / "image" / f"{n}.jpg", folder)
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def drafted(pictures: Path, projection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all pictures are described, each in words of its own."""
    folder = tmp_path_factory.mktemp("drafted") / "set"
    arguments = [*common(pictures, folder), *FAST, "--options", f"model.ckpt={projection}"]
    with pytest.raises(SystemExit) as ended:
        main(["make-alignment-set", *arguments])
    assert ended.value.code == 1, "what an untrained model says is not kept"
    rows = read_rows(folder / "drafts.jsonl")
    for row in rows:
        if "draft" in row:
            row["draft"] = f"A draft about {row['image']}"
    write_rows(folder / "drafts.jsonl", rows)
    return folder


@pytest.fixture
def output(drafted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(drafted, tmp_path / "set")


def common(pictures: Path, output: Path) -> list[str]:
    return ["--cfg-path", CONFIG, "--images", str(pictures), "--output", str(output)]


@pytest.fixture
def make(
    run_entry: EntryPoint, pictures: Path, projection: Path, caplog: pytest.LogCaptureFixture
) -> Make:
    """The command in this process; exit code and what it said."""

    def run(output: Path, *arguments: object, options: tuple[str, ...] = ()) -> tuple[int, str]:
        given = [*common(pictures, output), *FAST, *arguments]
        given += ["--options", f"model.ckpt={projection}", *options]
        with caplog.at_level(logging.INFO):
            caplog.clear()
            code, error = run_entry(main, "make-alignment-set", *given)
            return code, "\n".join([error, *caplog.messages])

    return run


def asking(server: ChatServer, *arguments: object) -> list[object]:
    return ["--api-base", server.api_base, "--retry-seconds", "0.01", *arguments]


def test_from_pictures_to_a_set(make: Make, server: ChatServer, output: Path, pictures: Path):
    code, told = make(output, *asking(server))
    assert code == 0, told
    assert {entry.name for entry in output.iterdir()} == FILES
    drafts = read_rows(output / "drafts.jsonl")
    assert [row["image"] for row in drafts] == [*(f"{n}.jpg" for n in range(8)), "bad.png"]
    asked = {f"A draft about {n}.jpg": 1 for n in range(8)}
    assert server.asked == asked
    assert {body["model"] for body in server.requests} == {"gpt-3.5-turbo"}
    entries = read_entries(output)
    assert entries == [
        RawSample(str(n), output / "image" / f"{n}.jpg", GOOD.format(f"A draft about {n}.jpg"))
        for n in range(8)
    ]
    assert "1 pictures cannot be read and are left out (first: bad.png)" in told
    assert "tokens so far: 800 read, 160 written" in told
    assert "filter: 8 of 9 pass (apology 0" in told
    assert f"{output}: 8 pairs" in told
    assert KEY not in told
    assert KEY.encode() not in written(output)
    last = read_rows(output / "verdicts.jsonl")[-1]
    assert (last["kept"], last["reason"]) == (False, "unreadable picture")
    before = written(output)
    code, told = make(output, *asking(server))
    assert code == 0
    assert "loading" not in told
    assert server.asked == asked, "nothing is asked or paid for again"
    assert written(output) == before


def test_each_rule_of_the_filter_is_counted(make: Make, server: ChatServer, output: Path):
    replies = {
        "1": "I apologize for that, here is the paragraph without the error.",
        "2": "The paragraph is incomplete, so that nothing can be said about it.",
        "3": "Too short.",
        "4": "On the left there is a tree, and " * 4 + "so on.",
        "5": "The paragraph is already correct.",
        "6": GOOD.format("all of it") + " ###Human:",
        "7": GOOD.format("all of it"),
    }
    replied = {n: completion(text) for n, text in replies.items()}
    server.answer = lambda text, _: replied.get(text[-5], failure(400))
    code, told = make(output, *asking(server))
    assert code == 0, told
    line = "filter: 1 of 9 pass (apology 1, incomplete 1, control text 1, short 2, repetition 1, "
    assert line + "no reply 1, unreadable picture 1)" in told
    assert "1 texts without a reply: the same command asks again" in told
    assert [row.get("reason") for row in read_rows(output / "verdicts.jsonl")] == [
        *("no reply", "apology", "incomplete", "short", "repetition", "short", "control text"),
        *(None, "unreadable picture"),
    ]
    (entry,) = read_entries(output)
    assert isinstance(entry, RawSample)
    assert (entry.key, entry.text) == ("7", replies["7"])


def test_by_rules_no_server_is_needed(make: Make, output: Path):
    rows = read_rows(output / "drafts.jsonl")
    whole = "A small red circle is on the left of a blue square on a dark background."
    rows[0]["draft"] = f"</Img> {whole} {whole} And then there"
    write_rows(output / "drafts.jsonl", rows)
    code, told = make(output, "--polish", "rules")
    assert code == 0, told
    (entry,) = read_entries(output)
    assert isinstance(entry, RawSample)
    assert entry.text == whole
    assert not (output / "requests.jsonl").exists()


def test_reviews_count_also_without_the_page(make: Make, server: ChatServer, output: Path):
    assert make(output, *asking(server))[0] == 0
    text = GOOD.format("A draft about {}.jpg")
    rows = [
        {"image_id": "0", "verdict": "accept", "text": text.format(0), "polished": text.format(0)},
        {"image_id": "1", "verdict": "reject", "text": text.format(1), "polished": text.format(1)},
        {"image_id": "2", "verdict": "edit", "text": "Mine.", "polished": text.format(2)},
        {"image_id": "3", "verdict": "reject", "text": "old", "polished": "of an older text"},
    ]
    write_rows(output / "reviews.jsonl", rows)
    code, told = make(output, *asking(server))
    assert code == 0
    assert "reviews: 1 accepted, 1 edited, 1 rejected" in told
    texts = {e.key: e.text for e in read_entries(output) if isinstance(e, RawSample)}
    assert list(texts) == ["0", "2", "3", "4", "5", "6", "7"]
    assert texts["2"] == "Mine."
    assert not (output / "image" / "1.jpg").exists()


def test_a_budget_stops_it_and_a_larger_one_goes_on(make: Make, server: ChatServer, output: Path):
    prices = ["--price-in", "1", "--price-out", "2", "--max-cost"]
    code, told = make(output, *asking(server, *prices, "0.0016"))
    assert code == 1
    first = server.asked.total()
    assert 0 < first < 8
    assert "--max-cost 0.0016: the next request could exceed it" in told
    assert "the same command goes on" in told
    assert f"cost {first * 140 / 1e6:.4f}" in told
    assert not (output / "filter_cap.json").exists()
    code, told = make(output, *asking(server, *prices, "1"))
    assert code == 0
    assert "cost 0.0011" in told
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 8


def test_other_settings_are_refused_by_name(make: Make, server: ChatServer, output: Path):
    assert make(output, *asking(server))[0] == 0
    before = written(output)
    for named, arguments, options in (
        ("--num-beams", ["--num-beams", 3], ()),
        ("--max-new-tokens", ["--max-new-tokens", 21], ()),
        ("--sample, --seed, --images", ["--sample", 3], ()),
        ("chat.template", [], ("chat.template=llama_2",)),
        ("--model", [*asking(server), "--model", "another"], ()),
    ):
        code, told = make(output, *arguments, options=options)
        assert code == 2
        text = f"--output {output}: was begun with other settings ({named})"
        assert text in one_line(told)
    assert written(output) == before
    assert make(output, "--batch-size", 1)[0] == 1, "rules may polish the same drafts"
    assert make(output, *asking(server))[0] == 0
    assert server.asked.total() == 8


def test_mistakes_are_one_line(
    make: Make, server: ChatServer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "new"
    mistakes: list[tuple[Any, ...]] = [
        ("--num-beams: 0 must be greater than 0", "--num-beams", 0),
        ("--batch-size: -1 must be greater than 0", "--batch-size", -1),
        ("--timeout: nan must be greater than 0", "--timeout", "nan"),
        ("--retry-seconds: -1 must not be negative", "--retry-seconds", -1),
        ("chat.max_new_tokens: 5000 leaves no room", "--max-new-tokens", 5000),
        ("--polish server: name it with --api-base", "--polish", "server"),
        ("--polish rules: asks no server", "--polish", "rules", "--api-base", "http://a/v1"),
        ("--api-base nowhere: is no address", "--api-base", "nowhere"),
        ("--max-cost: needs --price-in and --price-out", *asking(server, "--max-cost", 1)),
        ("--model: empty", *asking(server, "--model", " ")),
        ("holds something else (notes.txt", "--output", tmp_path / "mine"),
        ("lies in --images", "--output", pictures / "set"),
        ("no such folder", "--images", tmp_path / "none"),
        ("no picture in it", "--images", tmp_path / "empty"),
        ("--sample 10: there are only 9", "--sample", 10),
        ("cannot serve there", "--review", "--port", server.http.server_port),
    ]
    for expected, *arguments in mistakes:
        code, told = make(output, *arguments)
        assert code == 2, told
        assert expected in one_line(told)
        assert "loading" not in told
    assert server.asked.total() == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in make(output)[1]
    assert not (pictures / "set").exists()


# Real processes from here on.


PROGRAM = [sys.executable, "-m", "minigpt4", "make-alignment-set"]


def wait_until(job: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT
    while not reached():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_while_it_describes_no_draft_differs(scenes: Path, projection: Path, tmp_path: Path):
    images = scenes / "cc_sbu_align" / "image"
    few = ["--num-beams", 2, "--max-new-tokens", 20, "--batch-size", 2]
    options = ["--options", f"model.ckpt={projection}"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    with started([*PROGRAM, *common(images, alone), *few, *options]) as job:
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 1, error
    drafts = killed / "drafts.jsonl"
    for rows in (3, 9):
        with started([*PROGRAM, *common(images, killed), *few, *options]) as job:

            def far_enough(rows: int = rows) -> bool:
                return drafts.exists() and drafts.read_bytes().count(b"\n") >= rows

            wait_until(job, far_enough)
            job.send_signal(signal.SIGKILL)
            job.wait()
        assert drafts.read_bytes().count(b"\n") < 24
        assert not (killed / "verdicts.jsonl").exists()
    with started([*PROGRAM, *common(images, killed), *few, *options]) as job:
        job.communicate(timeout=WAIT)
    assert drafts.read_bytes() == (alone / "drafts.jsonl").read_bytes()
    assert [row["image_id"] for row in read_rows(drafts)] == [str(n) for n in range(24)]


@pytest.mark.slow
def test_killed_while_it_polishes_nothing_received_is_asked_again(
    server: ChatServer, output: Path, pictures: Path, projection: Path
):
    """The requests under way at the kill, and no others, are asked twice."""
    arguments = [*common(pictures, output), *FAST, *asking(server, "--concurrency", 2)]
    arguments += ["--options", f"model.ckpt={projection}"]
    server.answer = lambda text, _: Answer(
        body=polished(text).body, after=0.0 if text[-5] in "012" else 3600.0
    )

    def two_under_way() -> bool:
        asked = server.asked.total() == 5  # the journal is there once something was asked
        return asked and (output / "requests.jsonl").read_bytes().count(b"reply") == 3

    with started([*PROGRAM, *arguments]) as job:
        wait_until(job, two_under_way)
        job.send_signal(signal.SIGKILL)
        job.wait()
    server.answer = lambda text, _: polished(text)
    with started([*PROGRAM, *arguments]) as job:
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 0, error
    assert Counter(server.asked.values()) == {1: 6, 2: 2}
    assert len(read_entries(output)) == 8
    assert KEY not in error
    assert KEY.encode() not in written(output)


@pytest.mark.slow
def test_ctrl_c_waits_for_what_is_under_way_and_it_goes_on(
    server: ChatServer, output: Path, pictures: Path, projection: Path
):
    arguments = [*common(pictures, output), *FAST, *asking(server, "--concurrency", 2)]
    arguments += ["--options", f"model.ckpt={projection}"]
    server.answer = lambda text, _: Answer(body=polished(text).body, after=0.3)
    with started([*PROGRAM, *arguments]) as job:
        wait_until(job, lambda: server.asked.total() >= 3)
        job.send_signal(signal.SIGINT)
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 130, error
    assert "Traceback" not in error
    assert server.asked.total() < 8
    with started([*PROGRAM, *arguments]) as job:
        assert job.wait(WAIT) == 0
    assert set(server.asked.values()) == {1}


@pytest.mark.slow
def test_killed_while_it_writes_the_set_is_whole_or_not_there(
    make: Make, output: Path, pictures: Path, projection: Path, tmp_path: Path
):
    """Many pictures under names of their own, so that a kill falls between two of them."""
    many = tmp_path / "many"
    many.mkdir()
    for n in range(3000):
        os.link(pictures / f"{n % 8}.jpg", many / f"{n:04d}.jpg")
    work = tmp_path / "work"
    text = "A small red circle is on the left of a blue square on a dark background."
    arguments = [*common(many, work), *FAST, "--options", f"model.ckpt={projection}"]
    with started([*PROGRAM, *arguments]) as job:  # it settles what it works on
        wait_until(job, (work / "drafts.jsonl").exists)
        job.send_signal(signal.SIGKILL)
        job.wait()
    rows = [{"image_id": str(n), "image": f"{n:04d}.jpg", "draft": text} for n in range(3000)]
    write_rows(work / "drafts.jsonl", rows)
    image = work / "image"
    for linked in (1, 500):
        with started([*PROGRAM, *arguments]) as job:
            wait_until(job, lambda n=linked: image.exists() and len(os.listdir(image)) >= n)  # type: ignore[misc]
            job.send_signal(signal.SIGKILL)
            job.wait()
        if (work / "filter_cap.json").exists():
            assert len(read_entries(work)) == 3000
    with started([*PROGRAM, *arguments]) as job:
        assert job.wait(WAIT) == 0
    entries = read_entries(work)
    assert all(isinstance(entry, RawSample) for entry in entries)
    assert len(entries) == len(os.listdir(image)) == 3000


@pytest.mark.slow
def test_stage_2_trains_on_the_set(
    make: Make, server: ChatServer, output: Path, projection: Path, tmp_path: Path
):
    assert make(output, *asking(server))[0] == 0
    options = [
        f"datasets.cc_sbu_align.build_info.storage={output}",
        f"model.ckpt={projection}",
        f"run.output_dir={tmp_path}/runs",
        *("run.max_epoch=2", "run.iters_per_epoch=null", "run.batch_size_train=4"),
        *("run.warmup_steps=0", "run.num_workers=0"),
    ]
    result = train(*options, config=STAGE2)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    lines = read_rows(run / "log.txt")
    assert lines[-1]["train_loss"] < lines[0]["loss"]
    assert not (run / "bad_samples.jsonl").exists()
