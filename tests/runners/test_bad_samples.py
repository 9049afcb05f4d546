"""The list of bad samples: each once, however often it is met, over kills and resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from minigpt4.datasets.samples import BadSample
from minigpt4.errors import MiniGPT4Error
from minigpt4.runners import bad_samples
from minigpt4.runners.bad_samples import BadSampleLog
from minigpt4.runners.distributed import Distributed
from tests.helpers.messages import one_line

ALONE = Distributed(Accelerator(cpu=True), 60)
IN_A_SHARD = BadSample("/x/0.tar/000012", "unreadable image", "cut", "/x/0.tar")
WHOLE_SHARD = BadSample("/x/1.tar", "empty shard", shard="/x/1.tar")
PAIR = BadSample("17", "no image", "none in /x/image")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bad_samples.jsonl"


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_names_data_set_shard_key_and_cause(file: Path) -> None:
    BadSampleLog(file, ALONE).add([("laion", IN_A_SHARD), ("laion", WHOLE_SHARD), ("align", PAIR)])
    image = {"shard": "/x/0.tar", "key": "000012", "cause": "unreadable image", "detail": "cut"}
    assert rows(file) == [
        {"dataset": "laion", **image},
        {"dataset": "laion", "shard": "/x/1.tar", "cause": "empty shard"},
        {"dataset": "align", "key": "17", "cause": "no image", "detail": "none in /x/image"},
    ]


def test_an_endless_stream_lists_a_sample_once(file: Path) -> None:
    log = BadSampleLog(file, ALONE)
    other_cause = BadSample(IN_A_SHARD.key, "no json", shard="/x/0.tar")
    other_words = BadSample(IN_A_SHARD.key, IN_A_SHARD.cause, "other words", "/x/0.tar")
    for _ in range(3):
        log.add([("laion", IN_A_SHARD), ("laion", other_words)])
        log.add([("laion", other_cause), ("cc_sbu", IN_A_SHARD)])
    assert len(rows(log.path)) == 3
    assert log.causes == {"unreadable image": 2, "no json": 1}


def test_the_summary_counts_by_cause_in_one_line(file: Path) -> None:
    log = BadSampleLog(file, ALONE)
    log.add([])
    assert log.summary() == ""
    assert not log.path.exists()
    log.add([("laion", BadSample(f"0.tar/{n}", "no json", shard="0.tar")) for n in range(3)])
    log.add([("laion", IN_A_SHARD)])
    assert log.summary() == (
        f"4 bad samples skipped: no json 3, unreadable image 1; listed in {log.path}"
    )


@pytest.mark.parametrize("cut", [0, 9])
def test_a_resumed_run_goes_on_with_its_list_after_its_last_whole_line(
    file: Path, cut: int
) -> None:
    BadSampleLog(file, ALONE).add([("laion", PAIR), ("laion", IN_A_SHARD)])
    file.write_bytes(file.read_bytes()[: -cut or None])
    log = BadSampleLog(file, ALONE)
    log.add([("laion", WHOLE_SHARD), ("laion", IN_A_SHARD)])
    causes = ["no image", "empty shard", "unreadable image"]
    assert [row["cause"] for row in rows(file)] == (causes if cut else [causes[0], *causes[:0:-1]])
    assert log.causes.total() == 3


def test_lines_of_another_hand_do_no_harm(file: Path) -> None:
    file.write_bytes(b'\xff\xfe\n[1]\n{"cause": 3}\nnote to myself\n\n')
    log = BadSampleLog(file, ALONE)
    log.add([("laion", PAIR)])
    assert file.read_bytes().startswith(b"\xff\xfe\n[1]\n")
    assert log.causes["no image"] == 1


def test_any_key_can_be_listed(file: Path) -> None:
    log = BadSampleLog(file, ALONE)
    names = ["\u4f60\n\0", "\udcff", "\U0001f600" * 1000, ""]
    log.add([("laion", BadSample(name, "no image")) for name in names])
    again = BadSampleLog(log.path, ALONE)
    again.add([("laion", BadSample(name, "no image")) for name in names])
    assert [row.get("key", "") for row in rows(log.path)] == names


def test_the_list_has_an_end(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bad_samples, "MOST_LINES", 10)
    log = BadSampleLog(file, ALONE)
    for number in range(30):
        log.add([("laion", BadSample(str(number), "no image"))])
    assert len(rows(log.path)) == 10
    assert log.summary().startswith("at least 10 bad samples")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("file", "reason"), [("none/bad.jsonl", "cannot be written"), ("/dev/full", "No space left")]
)
def test_a_list_that_cannot_be_written_is_one_line(tmp_path: Path, file: str, reason: str) -> None:
    with one_line(MiniGPT4Error, tmp_path / file, reason):
        BadSampleLog(tmp_path / file, ALONE).add([("laion", PAIR)])
