"""The benchmark of many visitors: it must see what is wrong, and say what it has measured."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import chat_sessions
from benchmarks.chat_sessions import Figures

GOOD = {
    "answers": 6,
    "distinct": 2,
    "rss_mb": [500.0, 510.0, 520.0, 515.0],
    "refused": 4,
    "refusal": "Too many questions at once: 2 are waiting already.",
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"different": 1}, "1 answers differ from those given alone"),
        ({"answers": 5}, "5 answers of 6"),
        ({"ahead": 3}, "one visitor was 3 answers ahead of another"),
        ({"rss_mb": [500.0, 510.0, 1510.0, 500.0]}, "memory grew by 1000 MB"),
        ({"left_files": 2}, "2 uploads are left"),
        ({"refused": 0}, "the full queue refused nothing"),
        ({"refusal": "Error"}, "a full queue says 'Error'"),
    ],
)
def test_a_missed_bar_is_told(change: dict[str, object], line: str):
    assert Figures(2, 3, **GOOD).missed() == []  # type: ignore[arg-type]
    assert Figures(2, 3, **(GOOD | change)).missed() == [line]  # type: ignore[arg-type]


@pytest.mark.slow
def test_three_visitors_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    arguments = ["--sessions", "3", "--turns", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["chat_sessions", *arguments])
    assert chat_sessions.main() == 0
    figures = json.loads(file.read_text())
    assert (figures["answers"], figures["different"], figures["missed"]) == (6, 0, [])
    assert "3 sessions of 2 turns at once: 6 answers" in capsys.readouterr().out
