"""The benchmark of bad shards: it must see what is not counted, and what is counted wrongly."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import bad_shards
from benchmarks.bad_shards import compare, listed
from benchmarks.planted_shards import BAD, GOOD, Bad, Planter, plant


def test_every_kind_is_planted(tmp_path: Path) -> None:
    planted = plant(tmp_path / "shards", shards=1, samples=4 * len(BAD), seed=0)
    causes = Counter(cause for _, _, cause in planted.bad)
    assert set(causes) == {cause for cause, _ in BAD.values()} | {
        "broken shard",
        "empty shard",
        "missing shard",
    }
    assert planted.good >= len(GOOD)
    assert len(planted.names) == 1 + 9


def test_what_is_not_as_planted_is_seen(tmp_path: Path) -> None:
    planter = Planter(tmp_path / "shards", random.Random(0))
    planter.add_mixed(10, 0.5)
    planted = planter.planted
    found = Counter(planted.bad)
    assert compare(found, planted)[0]
    one = next(iter(found))
    other = (*one[:2], "another cause")
    for wrong in (
        found - Counter([one]),
        found + Counter([one]),
        found + Counter([other]),
        found - Counter([one]) + Counter([other]),
        Counter[Bad](),
    ):
        assert not compare(wrong, planted)[0]


def test_nothing_planted_is_nothing_checked(tmp_path: Path) -> None:
    planted = Planter(tmp_path / "shards", random.Random(0)).planted
    assert not compare(Counter(), planted)[0]
    assert listed(tmp_path / "none.jsonl") == Counter()


def test_check_shards_counts_all_that_was_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--shards", "1", "--samples", str(4 * len(BAD)), "--check-only"]
    arguments += ["--workers", "0"]
    monkeypatch.setattr("sys.argv", ["bad_shards", *arguments, "--json", str(file)])
    assert bad_shards.main() == 0, capsys.readouterr().out
    (case,) = json.loads(file.read_text()).values()
    assert case["told"].startswith("25 counted / 25 planted")
    assert "check-shards" in case["command"]
