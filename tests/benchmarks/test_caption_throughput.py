"""The benchmark of captions in batches: it sees a caption that differs, and a bar not reached."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import caption_throughput
from benchmarks.caption_throughput import BAR, held
from tests.helpers.repo import EntryPoint


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"ratio": BAR - 0.01}, False), ({"equal_captions": 31}, False)],
)
def test_what_misses_is_seen(change: dict[str, Any], expected: bool):
    figures = {"pictures": 32, "equal_captions": 32, "ratio": BAR, "bar": BAR, **change}
    assert held(figures) == expected


def test_batches_say_what_single_pictures_say(
    run_entry: EntryPoint, projection: Path, tmp_path: Path
):
    file = tmp_path / "figures.json"
    options = ["--options", f"model.ckpt={projection}", "chat.max_new_tokens=6"]
    run_entry(caption_throughput.main, "--images", 18, "--repeats", 1, "--json", file, *options)
    figures = json.loads(file.read_text())
    assert figures["equal_captions"] == figures["pictures"] == 18
    assert len(figures["ratios"]) == 1
