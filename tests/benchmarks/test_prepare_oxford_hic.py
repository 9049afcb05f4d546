"""The benchmark of Oxford-HIC's preparation measures, and growth that is too fast fails it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import prepare_oxford_hic
from minigpt4.errors import ConfigError, MiniGPT4Error


def point(cpu_seconds: float, megabytes: float, captions: int = 9) -> dict[str, Any]:
    return {
        "cpu_seconds": cpu_seconds,
        "megabytes": megabytes,
        "captions": captions,
        "good": 9,
    }


@pytest.mark.parametrize("more", [[], ["--samples-per-shard", "100"]])
def test_two_sizes_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    file = tmp_path / "figures.json"
    given = ["--rows", "100", "1000", "--repeats", "1", "--json", str(file), *more]
    assert prepare_oxford_hic.main(given) == 0
    figures = json.loads(file.read_text())
    assert figures["1000"]["captions"] == figures["1000"]["good"] < 1000, "some rows have a fault"
    assert figures["1000"]["rows_per_second"] > 0
    assert 10 < figures["100"]["megabytes"] < 1000
    assert "held" in capsys.readouterr().out


def test_what_grows_too_fast_is_told() -> None:
    assert prepare_oxford_hic.missed({100: point(1, 50), 1000: point(12, 55)}) == []
    assert prepare_oxford_hic.missed({100: point(1, 50), 1000: point(20, 100, captions=8)}) == [
        "1,000 rows: 8 captions kept, 9 had no fault",
        "time grows more than linearly: a row takes 2.00 times as long",
        "memory is not flat: 2.00 times as much",
    ]


def test_a_missed_bar_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_oxford_hic, "measure", lambda *_: point(1, 1) | {"seconds": 1})
    assert prepare_oxford_hic.main(["--rows", "5", "10", "--repeats", "1"]) == 1
    assert "captions kept" in capsys.readouterr().out


def test_a_preparation_that_fails_is_told(tmp_path: Path) -> None:
    prepare_oxford_hic.write_files(tmp_path, 10, 0)
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(MiniGPT4Error, match=r"exit code 2: .*data.csv:1: is empty"):
        prepare_oxford_hic.measure(tmp_path, None)


@pytest.mark.parametrize("given", [["--rows", "10"], ["--rows", "0", "5"], ["--repeats", "0"]])
def test_nothing_to_compare_is_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="--rows needs two sizes or more"):
        prepare_oxford_hic.main(given)
