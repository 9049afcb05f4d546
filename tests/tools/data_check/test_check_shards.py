"""check-shards on real shards, in this process and in workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt4.__main__ import main
from tests.helpers.data_files import pair, picture, read_rows, write_shards, write_tar
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, EntryPoint, error_line

BAD = {"bad.jpg": b"no picture", "bad.json": b'{"caption": "x"}'}


def test_good_shards_pass(tmp_path: Path, run_entry: EntryPoint) -> None:
    write_shards(tmp_path, 3, 4)
    figures = tmp_path / "deep" / "figures.json"
    shards = f"{tmp_path}/{{00000..00002}}.tar"
    run_entry.ok(main, "check-shards", shards, "--workers", 0, "--json", figures)
    told = json.loads(figures.read_text())
    assert told.pop("seconds") > 0
    assert told.pop("samples_per_second") > 0
    counted = {"shards": 3, "missing_shards": 0, "samples": 12, "good": 12, "repeated_keys": 0}
    assert told == counted | {"bad": {}}


def test_workers_count_every_cause_and_list_every_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pair("a"), BAD, {"c.jpg": picture()}, pair("d", ".!"), pair("a"))
    cut = write_tar(tmp_path / "1.tar", pair("e"), pair("f"))
    cut.write_bytes(cut.read_bytes()[:3000])
    listed, figures = tmp_path / "bad.jsonl", tmp_path / "figures.json"
    listed.write_text("from an earlier check\n")
    command = [sys.executable, "-m", "minigpt4", "check-shards", f"{tmp_path}/{{0..2}}.tar"]
    result = finished([*command, "--workers", 2, "--json", figures, "--output", listed])
    assert result.returncode == 1, result.stderr
    assert "3 shards, 1 of them missing; 6 samples, 3 of them good" in result.stdout
    assert "1 good samples have the key of an earlier one" in result.stdout
    assert result.stderr == ""  # no bar where nobody watches
    told = json.loads(figures.read_text())
    causes = ["unreadable image", "no json", "empty caption", "broken shard", "missing shard"]
    assert told["bad"] == dict.fromkeys(causes, 1)
    rows = read_rows(listed)
    assert {(Path(row["shard"]).name, row.get("key", ""), row["cause"]) for row in rows} == {
        ("0.tar", "bad", "unreadable image"),
        ("0.tar", "c", "no json"),
        ("0.tar", "d", "empty caption"),
        ("1.tar", "", "broken shard"),
        ("2.tar", "", "missing shard"),
    }


def test_shards_without_a_sample_do_not_pass(tmp_path: Path, run_entry: EntryPoint) -> None:
    write_tar(tmp_path / "0.tar")
    assert run_entry(main, "check-shards", tmp_path, "--workers", 0)[0] == 1


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("/nowhere/{0..9}.tar", "none of the 10 shards exists"),
        ("/nowhere/*.tar", "names no shard"),
        ("/nowhere/{0..9.tar", "unbalanced braces"),
        ("/path/to/laion/{00000..10488}.tar", "is a placeholder"),
    ],
)
def test_a_pattern_that_names_no_shard_is_a_mistake(
    run_entry: EntryPoint, pattern: str, complaint: str
) -> None:
    assert complaint in run_entry.refused(main, "check-shards", pattern)


def test_other_mistakes_are_one_line(tmp_path: Path, run_entry: EntryPoint) -> None:
    (shard,) = write_shards(tmp_path, 1, 1)
    for mistake in (("--workers", "-1"), ("--output", tmp_path), ("--json", tmp_path)):
        run_entry.refused(main, "check-shards", shard, "--workers", 0, *mistake)


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["check-shards", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit code: 0 when every sample is good" in text
    assert '"status"' in text


def start_on_an_endless_shard(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """check-shards in a process group of its own, reading; and the open end of what it reads."""
    write_shards(folder, 1, 1)
    os.mkfifo(folder / "1.tar")
    command = [sys.executable, "-m", "minigpt4", "check-shards", str(folder), "--workers", "1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    while True:
        assert process.poll() is None
        try:
            return process, os.open(folder / "1.tar", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    process, end = start_on_an_endless_shard(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=100)
    os.close(end)
    assert (process.returncode, error) == (130, "interrupted\n")


def reader_of(file: Path) -> int:
    """The one other process that has a file open; it may be about to."""
    found: set[int] = set()
    while not found:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):  # closed meanwhile, or of another user
                if os.readlink(link) == str(file):
                    found.add(int(link.parts[2]))
        found -= {os.getpid()}
    (process,) = found
    return process


@pytest.mark.slow
def test_a_worker_that_dies_is_told_in_one_line(tmp_path: Path) -> None:
    process, end = start_on_an_endless_shard(tmp_path)
    worker = reader_of(tmp_path / "1.tar")
    os.kill(worker, signal.SIGKILL)
    _, error = process.communicate(timeout=100)
    os.close(end)
    assert process.returncode == 2
    assert error_line(error).startswith("error: a worker died")
