"""The packing benchmark compares what it says, and a batch without waste fails it."""

import json
from pathlib import Path

import pytest

from benchmarks import packing


def test_padded_and_packed_are_the_same_numbers(tmp_path: Path) -> None:
    file = tmp_path / "packing.json"
    small = ["--batch", "4", "--width", "64", "--layers", "1", "--repeats", "1"]
    packing.main([*small, "--json", str(file)])
    figures = json.loads(file.read_text())
    assert figures["loss_difference"] < 1e-5
    assert figures["gradient_difference"] < 1e-5
    assert figures["waste"] > 1


def test_one_row_has_nothing_to_save(capsys: pytest.CaptureFixture[str]) -> None:
    assert packing.main(["--batch", "1", "--width", "64", "--layers", "1", "--repeats", "1"]) == 1
    assert "nothing to save" in capsys.readouterr().out
