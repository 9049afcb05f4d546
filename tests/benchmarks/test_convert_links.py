"""The converter's benchmark counts what it says, and a bar that is missed fails it."""

import json
from pathlib import Path

import pytest

from benchmarks import convert_links
from minigpt4.errors import ConfigError


def test_every_size_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    code = convert_links.main(
        ["--rows", "30000", "10000", "--repeats", "1", "--json", str(file)],
    )
    assert code == 0, capsys.readouterr().out
    sizes = json.loads(file.read_text())["sizes"]
    assert list(sizes) == ["10000", "30000"]
    for rows, figures in sizes.items():
        assert figures["links"] == figures["good"] < int(rows)
        assert 5 < figures["megabytes"] < 100
        assert figures["rows_per_second"] > 0


def test_growth_and_lost_rows_are_told() -> None:
    small = {"cpu_seconds": 1.0, "megabytes": 20.0, "links": 9.0, "good": 9.0}
    ten_times = small | {"cpu_seconds": 12.9, "megabytes": 23.9}
    assert convert_links.missed({10: small, 100: ten_times}) == []
    worse = {"cpu_seconds": 13.1, "megabytes": 501.0, "links": 8.0, "good": 9.0}
    lines = convert_links.missed({10: small, 100: worse})
    assert [line.split(":")[0] for line in lines] == [
        *("100 rows", "time grows more than linearly", "memory is not flat"),
        "501 MB are more than 500",
    ]


def test_one_size_is_one_line() -> None:
    with pytest.raises(ConfigError, match="two sizes"):
        convert_links.main(["--rows", "1000"])
