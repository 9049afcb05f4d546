"""The profile names what a step spends its time on, and tells when too much computes nothing."""

import json
from pathlib import Path

import pytest

from benchmarks import step_profile
from benchmarks.training_steps import Steps
from minigpt4.errors import NothingCheckedError

TINY = ["--size", "tiny", "--device", "cpu", "--steps", "1", "--stages", "1"]


def test_shares_are_of_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_profile, "MOST_MOVED", 1.0)
    file = tmp_path / "figures.json"
    assert step_profile.main([*TINY, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["stages"]["1"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    calls = {row["name"]: row["calls"] for row in rows}
    # Seven matrices in each of six layers, forth and back, the head, and the projection's gradient:
    # what is frozen has none.
    assert calls["aten::mm"] == 2 * (7 * 6 + 1) + 1
    assert 0 < step_profile.moved_share(rows) < 1
    assert "aten::mm" in capsys.readouterr().out


def test_too_much_that_computes_nothing_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_profile, "MOST_MOVED", 0.0)
    assert step_profile.main(TINY) == 1
    assert "stage 1: more than 0% of the time computes nothing" in capsys.readouterr().out


def test_nothing_measured_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "step", lambda *_: None)
    with pytest.raises(NothingCheckedError, match="saw nothing"):
        step_profile.main(TINY)
