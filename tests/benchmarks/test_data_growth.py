"""The benchmark of growing data measures what it says, and growth that is too fast fails it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data_growth


def point(microseconds: float, megabytes: float, good: int = 9) -> dict[str, Any]:
    return {
        "cpu_seconds_of_a_row": microseconds / 1e6,
        "megabytes": megabytes,
        "good": good,
        "really_good": 9,
    }


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("convert_links", 10, 60),
        ("prepare_oxford_hic", 20, 100),
        pytest.param("check-data", 200, 2000, marks=pytest.mark.slow),  # torch
    ],
)
def test_every_size_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, least: int, most: int
) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--rows", "1200", "400", "--repeats", "1"]
    code = data_growth.main(["--programs", name, *sizes, "--json", str(file)])
    printed = capsys.readouterr().out
    # So few rows take no time: whether that bar holds is chance.
    assert code == ("linear in time, flat in memory" not in printed)
    found = json.loads(file.read_text())["programs"][name]
    assert list(found) == ["400", "1200"]
    for rows, measured in found.items():
        assert f"{int(rows):,} rows" in printed
        assert measured["good"] == measured["really_good"] < int(rows), "some rows are bad"
        assert measured["rows_per_second"] > 0
        assert least < measured["megabytes"] < most, "its own, whatever this process takes"


def test_what_grows_too_fast_is_told() -> None:
    assert data_growth.missed({1000: point(10, 50), 10_000: point(13.9, 74)}) == []
    assert data_growth.missed({1000: point(10, 50), 10_000: point(20, 150, good=8)}) == [
        "10,000 rows: 8 are good to it, 9 are",
        "time grows more than linearly: a row takes 20.0 µs, not 10.0",
        "memory is not flat: 100 MB more",
    ]


def test_a_missed_bar_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"seconds": 1.0, "cpu_seconds": 1.0, "megabytes": 1.0, "good": 1}
    monkeypatch.setattr(data_growth, "measure", lambda *_: measured)
    given = ["--programs", "convert_links", "--rows", "200", "300", "--repeats", "1"]
    assert data_growth.main(given) == 1
    assert "convert_links: 300 rows: 1 are good to it" in capsys.readouterr().out
