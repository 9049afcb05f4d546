"""The loader benchmark compares what it says, and tells when pixels are not the same."""

import json
from pathlib import Path

import pytest

from benchmarks import loader

SMALL = ["--size", "48x64", "--batch", "3", "--repeats", "1"]


def test_three_modes_lead_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "BARS", {})
    file = tmp_path / "loader.json"
    assert loader.main([*SMALL, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {"float", "uint8", "torchvision"}
    assert figures["uint8"]["unequal_to_float"] == 0
    assert figures["torchvision"]["levels_off"] <= 2
    for found in figures.values():
        assert found["worker_ms"] > 0
        assert found["images_per_second"] > 0


def test_other_pixels_and_a_missed_bar_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "PIXEL_STD", (0.5, 0.5, 0.5))
    monkeypatch.setattr(loader, "BARS", {"uint8": 1e6})
    assert loader.main(SMALL) == 1
    told = capsys.readouterr().out
    assert "uint8 below 1000000.0 times float" in told
    assert "uint8 gives other pixels than float" in told
