"""The journal and the folder around it: what is in them stays, whatever happens."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from minigpt4.errors import ConfigError, MiniGPT4Error
from minigpt4.tools.alignment.pictures import digest_of, find_pictures
from minigpt4.tools.alignment.work_folder import Journal, locked, settle
from tests.helpers.data_files import picture
from tests.helpers.messages import one_line


def test_half_a_line_at_the_end_is_removed(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    rows = [{"n": n, "text": "é\n\udc80"} for n in range(3)]
    Journal(path).add(rows)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        journal = Journal(path)
        assert journal.rows == rows[: whole[:end].count(b"\n")]
        journal.add([{"n": 9}])
        assert [json.loads(line) for line in path.read_text().splitlines()][-1] == {"n": 9}


def test_a_full_disk_is_one_line_and_leaves_no_half_line(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal(tmp_path / "a.jsonl")
    journal.add([{"n": 0}])
    try:
        # The largest file that may be written stands for a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with one_line(MiniGPT4Error, "a.jsonl: cannot be written", "free space"):
            journal.add([{"n": 1, "text": "x" * 200}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"n": 0}\n'
    journal.add([{"n": 2}])
    assert journal.rows == [{"n": 0}, {"n": 2}]


def test_a_folder_is_locked_until_its_work_ends(tmp_path: Path):
    busy = one_line(ConfigError, "--output", "another process is working on it")
    with locked(tmp_path), busy, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_settings_are_settled_once(tmp_path: Path):
    settle(tmp_path, "describe", {"a": 1, "b": {"c": [1], "d": None}})
    settle(tmp_path, "polish", {"--model": "m"})
    settle(tmp_path, "describe", {"a": 1, "b": {"c": [1], "d": None}})
    with one_line(ConfigError, "other settings (b.c, b.d)"):
        settle(tmp_path, "describe", {"a": 1, "b": {"c": [2], "d": 0}})
    with one_line(ConfigError, "other settings (--model)"):
        settle(tmp_path, "polish", {"--model": "n"})
    (tmp_path / "settings.json").write_text("[")
    with one_line(ConfigError, "settings.json"):
        settle(tmp_path, "polish", {})


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "filter_cap.json").write_text("mine")
    texts = ("holds something else (filter_cap.json", "name a new folder")
    with one_line(ConfigError, *texts), locked(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["filter_cap.json"]
    with one_line(ConfigError, "--output"), locked(tmp_path / "filter_cap.json"):
        pass


def test_pictures_of_all_kinds_and_none_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("b/z.PNG", "a.jpg", "A.webp", "c.gif", ".hidden/x.jpg", ".y.jpg", "t.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    found = find_pictures(tmp_path)
    assert [(p.image_id, p.name, p.file_name) for p in found] == [
        ("0", "A.webp", "0.webp"),
        ("1", "a.jpg", "1.jpg"),
        ("2", "b/z.PNG", "2.png"),
    ]
    assert "1 pictures of other kinds are left out" in caplog.text
    drawn = find_pictures(tmp_path, sample=2, seed=3)
    assert len(drawn) == 2
    assert set(drawn) < set(found)
    assert drawn == find_pictures(tmp_path, sample=2, seed=3)
    digest = digest_of(found)
    (tmp_path / "a.jpg").write_bytes(b"another")
    assert digest_of(found) != digest
    os.unlink(tmp_path / "a.jpg")
    with one_line(ConfigError, "--images", "a.jpg"):
        digest_of(found)
