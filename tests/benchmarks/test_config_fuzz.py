"""The fuzz of the config check: it passes, and it would see what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import config_fuzz
from benchmarks.config_mutations import MUTATIONS, Case


def run(tmp_path: Path, mutations: int) -> dict[str, Any]:
    file = tmp_path / "fuzz.json"
    code = config_fuzz.main(["--mutations", str(mutations), "--seed", "0", "--json", str(file)])
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["failures"] == []
    assert code == 0
    assert sum(figures["mutations"].values()) == mutations
    return figures


def test_damaged_configs_end_with_a_line_and_never_with_a_traceback(tmp_path: Path) -> None:
    run(tmp_path, 120)


@pytest.mark.slow
def test_a_thousand_damaged_configs(tmp_path: Path) -> None:
    figures = run(tmp_path, 1000)
    assert len(figures["mutations"]) == len(MUTATIONS)


@pytest.mark.parametrize(
    ("code", "stderr", "mistyped", "reason"),
    [
        (2, "error: run.yaml: run.sede: unknown key; did you mean 'seed'?", "run.sede", None),
        (0, "", "", None),
        (2, "error: --options x: must look like section.key=value", "", None),
        (None, "Traceback (most recent call last):", "", "a traceback"),
        (1, "", "", "exit code 1"),
        (2, "error: something", "", "no line names the file"),
        (0, "", "run.sede", "'run.sede' was not found"),
        (2, "error: run.yaml: run: wrong", "run.sede", "'run.sede' is not named as unknown"),
    ],
)
def test_what_counts_as_a_failure(
    code: int | None, stderr: str, mistyped: str, reason: str | None
) -> None:
    case = Case("any", "", mistyped=mistyped)
    assert config_fuzz.complaint(case, Path("run.yaml"), code, stderr) == reason


def test_a_check_that_raises_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall_over(_: list[str]) -> None:
        raise KeyError("model")

    monkeypatch.setattr(config_fuzz, "run_command", fall_over)
    assert config_fuzz.main(["--mutations", "1"]) == 1
    assert "Traceback" in capsys.readouterr().out
