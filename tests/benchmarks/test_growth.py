"""The growth benchmark measures and draws every axis, and costs that grow too fast fail it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import growth

TINY = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--batch", "3"]


def point(padded: float = 2.0, packed: float = 1.0, memory: float = 1e6) -> dict[str, Any]:
    seconds = {"padded": padded, "packed": packed}
    return {curve: {"seconds": taken, "bytes": memory} for curve, taken in seconds.items()}


def test_batches_and_captions_are_measured_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, given = tmp_path / "figures.json", ["--batches", "1", "3", "--captions", "8", "150"]
    given += ["--processes", "--plots", str(tmp_path), "--json", str(file)]
    growth.main([*TINY, *given])  # how quick it is, is nothing to test
    figures = json.loads(file.read_text())
    assert {"size", "device", "date"} <= set(figures)
    assert list(figures["batch"]) == ["1", "3"]
    short, long = (figures["caption"][tokens] for tokens in ("8", "150"))
    assert short["padded"]["bytes"] < long["packed"]["bytes"] < long["padded"]["bytes"]
    assert "processes" not in figures
    printed = capsys.readouterr().out
    for axis in ("batch", "caption"):
        assert growth.AXES[axis] in printed
        with Image.open(tmp_path / f"growth_{axis}.png") as picture:
            assert min(picture.size) > 400
    assert not (tmp_path / "growth_processes.png").exists()


@pytest.mark.slow
def test_two_processes_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    given = ["--batches", "--captions", "--processes", "1", "2"]
    growth.main([*TINY, *given, "--plots", str(tmp_path), "--json", str(file)])
    points = json.loads(file.read_text())["processes"]
    assert list(points) == ["1", "2"]
    assert all(point["packed"]["seconds"] > 0 for point in points.values())
    assert (tmp_path / "growth_processes.png").is_file()


def test_only_costs_out_of_proportion_are_told() -> None:
    found = {
        "batch": {size: point(memory=5 + size) for size in (4, 8, 16)},
        "caption": {8: point(1.0, 1.1), 64: point(2.0, 1.9)},
        "processes": {1: point(), 2: point(2.2, 1.1)},
    }
    assert growth.missed(found) == []
    found = {
        "batch": {size: point(memory=size**2) for size in (4, 8, 16)},
        "caption": {8: point(), 64: point(2.0, 2.1)},
        "processes": {1: point(), 2: point(3.9, 2.0)},
    }
    found["caption"][64]["packed"]["bytes"] = 2e6
    assert growth.missed(found) == [
        "batch, padded: memory grows more than linearly",
        "batch, packed: memory grows more than linearly",
        "caption 64: packed needs more memory than padded",
        "caption 64: packed takes longer than padded",
        "processes, packed: more of them train no more samples a second",
    ]


def test_a_missed_bar_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "measure", lambda *_: point(1.0, 2.0))
    given = ["--batches", "--captions", "8", "16", "--processes", "--plots", str(tmp_path)]
    assert growth.main([*TINY, *given]) == 1
    assert "caption 16: packed takes longer than padded" in capsys.readouterr().out
