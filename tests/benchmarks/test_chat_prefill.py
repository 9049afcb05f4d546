"""What is kept across turns is measured for what it is; a program that measured nothing fails."""

import json
from pathlib import Path

import pytest

from benchmarks import chat_prefill


def test_a_later_turn_reads_its_question_alone_and_answers_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    given = ["--size", "tiny", "--histories", "150", "--repeats", "1", "--json", str(file)]
    assert chat_prefill.main(given) == 1  # 300 tokens have a bar, and were not measured
    assert "no history with a bar was measured" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())
    assert row["equal"] == 1
    assert 140 < row["read_anew"] < 200
    assert row["read_kept"] < 20
    assert row["ratio"] == pytest.approx(row["seconds_anew"] / row["seconds_kept"])
