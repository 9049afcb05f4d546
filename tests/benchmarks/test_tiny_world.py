"""The benchmark of the embedded default: it must fail what is below a bar."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_world import BARS, hold_against_bars
from tests.helpers.processes import finished

FIGURES = {name: low if low is not None else high for name, (low, high) in BARS.items()}


def summary_of(figures: dict[str, float | None]) -> dict[str, object]:
    summary: dict[str, object] = {"seed": 0}
    for name, value in figures.items():
        part, _, key = name.rpartition(".")
        target = summary.setdefault(part, {}) if part else summary
        assert isinstance(target, dict)
        target[key] = value or 0.0
    return summary


def test_figures_at_their_bars_pass():
    assert all(held for _, held in hold_against_bars([summary_of(FIGURES)]))


@pytest.mark.parametrize("figure", [name for name in BARS if BARS[name] != (None, None)])
def test_one_seed_below_one_bar_is_seen(figure: str):
    low, high = BARS[figure]
    worse = low - 0.01 if low is not None else (high or 0) + 0.01
    summaries = [summary_of(FIGURES), summary_of({**FIGURES, figure: worse})]
    missed = [line for line, held in hold_against_bars(summaries) if not held]
    assert len(missed) == 1
    assert missed[0].startswith(figure)


@pytest.mark.slow
def test_an_untrained_world_is_below_the_bars(tmp_path: Path):
    command = [sys.executable, "benchmarks/tiny_world.py", "--seeds", "1", "--pairs", "60"]
    command += ["--heldout", "6", "--output", str(tmp_path / "out")]
    command += ["--json", str(tmp_path / "figures.json")]
    command += ["--options", "run.max_epoch=1", "run.iters_per_epoch=2", "run.batch_size_train=4"]
    result = finished(command)
    assert result.returncode == 1, result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("below the bar: ")
    assert "caption_exact.stage1" in last
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["controls"]) == {"shuffled_images", "shuffled_pairs"}
