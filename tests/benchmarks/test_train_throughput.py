"""The throughput table measures every mode it names, and bars that were not met are told."""

import json
from pathlib import Path

import pytest

from benchmarks import train_throughput
from minigpt4.errors import ConfigError


def test_every_lever_is_a_row_and_computes_the_same_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    given = ["--size", "tiny", "--batch", "2", "--repeats", "1", "--modes", "sdpa"]
    assert train_throughput.main([*given, "--device", "cpu", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["stage"], row["mode"]) for row in rows] == [
        (stage, mode) for stage in (1, 2) for mode in ("original", "sdpa", "packed")
    ]
    assert all(row["samples_per_second"] > 0 and row["share_of_ceiling"] > 0 for row in rows)
    assert "samples/s" in capsys.readouterr().out


def test_bars_of_modes_that_were_not_measured_are_missed() -> None:
    row = {"stage": 1, "mode": "packed", "samples_per_second": 300.0, "ratio": 1.1}
    lines = train_throughput.missed([row], train_throughput.SIZES["7b"])
    assert lines == [
        "stage 1, packed: ratio 1.10 is below 1.15",
        "stage 1, compiled: not measured",
        "stage 2, packed: not measured",
    ]


def test_nothing_to_measure_is_one_line() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        train_throughput.main(["--repeats", "0"])
