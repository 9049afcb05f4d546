"""The benchmark of looks measures boxes and words, and a model that learnt nothing fails it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import looks


def test_projections_that_learnt_nothing_miss(
    scenes: Path, projection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "scenes").symlink_to(scenes)
    for stage in ("stage1", "stage2"):
        shutil.copy(projection, tmp_path / f"{stage}.pth")
    file, sheet = tmp_path / "looks.json", tmp_path / "sheet.png"
    given = ["--run", str(tmp_path), "--scenes", "3"]
    given += ["--json", str(file), "--sheet", str(sheet)]
    assert looks.main(given) == 1
    found = json.loads(file.read_text())
    assert len(found["missed"]) >= 2
    assert all(line in capsys.readouterr().out for line in found["missed"][:1])
    assert found["stage1"] == found["stage2"] != found["before"]
    assert 0 < found["before"]["image_share"] < 1
    with Image.open(sheet) as picture:
        assert min(picture.size) > 2 * 128


def test_better_than_untrained_is_what_counts():
    names = ("own_box", "other_boxes", "own_words_near", "foreign_words_near")

    def figures(*values: float) -> dict[str, float]:
        return dict(zip(names, values, strict=True))

    before, good = figures(2.2, 2.3, 0.1, 0.1), figures(5, 1.5, 0.8, 0)
    assert looks.missed({"before": before, "stage1": good, "stage2": good}) == []
    for bad in (figures(2, 2, 0.8, 0), figures(5, 1, 0, 0.1), figures(torch.nan, 1, 0.8, 0)):
        (line,) = looks.missed({"before": before, "stage1": good, "stage2": bad})
        assert line.startswith("stage2: ")
