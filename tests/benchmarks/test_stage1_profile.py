"""The profile names every part of a step and takes a step apart rightly."""

import json
from pathlib import Path

import pytest

from benchmarks import stage1_profile


def test_every_part_of_a_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.json"
    monkeypatch.setattr("sys.argv", ["profile", "--steps", "1", "--json", str(file)])
    assert stage1_profile.main() == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {
        "read and decode",
        "frozen towers",
        "language model, forward",
        "backward",
    }
    assert all(figure["ms_per_sample"] > 0 for figure in figures.values())
    assert figures["read and decode"]["of_peak"] == 0  # no arithmetic that counts
    assert all(f["of_peak"] > 0 for name, f in figures.items() if name != "read and decode")
    assert "samples/s without overlap" in capsys.readouterr().out
