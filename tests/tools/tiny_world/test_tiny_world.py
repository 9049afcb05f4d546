"""Scenes, what is said about them, and the formats on disk."""

import json
import random
import tarfile
from pathlib import Path

import pytest

from minigpt4.processors import BlipCaption
from minigpt4.tools.tiny_world.data_sets import read_heldout, write_data_sets
from minigpt4.tools.tiny_world.phrases import (
    QUESTION_KINDS,
    caption,
    description,
    is_failed_description,
    questions,
    read_back,
)
from minigpt4.tools.tiny_world.scenes import WITHHELD_PAIRS, sample_scene
from minigpt4.tools.tiny_world.scoring import (
    caption_figures,
    description_figures,
    score_failure,
    score_layout,
    score_pairs,
)
from tests.helpers.repo import ROOT

REFERENCE = "a small red ring left of a large blue star on a dark background"
RIGHT = "The image shows two objects on a dark background. There is a small red ring at the left "
RIGHT += "and a large blue star at the right."


def test_what_is_said_can_be_read_back():
    rng = random.Random(0)
    clean = BlipCaption()
    for _ in range(500):
        scene = sample_scene(rng)
        pairs = tuple(thing.pair for thing in scene.things)
        for reading in (read_back(caption(scene)), read_back(description(scene))):
            assert reading.pairs == pairs
            assert reading.layout == scene.layout
        assert clean(caption(scene)) == caption(scene), "stage 1 must learn the caption as it is"
        assert not is_failed_description(description(scene))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "a red circle at the top on a dark background",
        "The image shows one object on a dark background. There is a large red",
        "The image shows two objects on a dark background. There is a small red ring at the left"
        " and a small red ring at the right.",
        "The image shows one object. There is a red ring. There is a red ring.",
    ],
)
def test_failures_are_seen(answer: str):
    assert is_failed_description(answer)


def test_withheld_pairs_stay_out_of_the_stages(tmp_path: Path):
    write_data_sets(tmp_path, seed=0, pairs=120, descriptions=40, heldout=30)
    withheld = {f"{color} {shape}" for color, shape in WITHHELD_PAIRS}
    texts = []
    for shard in [*(tmp_path / "laion").glob("*.tar"), *(tmp_path / "cc_sbu").glob("*.tar")]:
        with tarfile.open(shard) as tar:
            texts += [
                json.load(tar.extractfile(member))["caption"]  # type: ignore[arg-type]
                for member in tar.getmembers()
                if member.name.endswith(".json")
            ]
    annotations = json.loads((tmp_path / "cc_sbu_align" / "filter_cap.json").read_text())
    texts += [entry["caption"] for entry in annotations["annotations"]]
    assert len(texts) == 160
    assert not [text for text in texts if any(pair in text for pair in withheld)]
    for scene, file in read_heldout(tmp_path / "heldout_withheld"):
        assert scene.pairs & WITHHELD_PAIRS
        assert file.is_file()
    for scene, _ in read_heldout(tmp_path / "heldout_seen"):
        assert not scene.pairs & WITHHELD_PAIRS


def test_shards_are_as_img2dataset_writes_them(scenes: Path):
    with tarfile.open(scenes / "laion" / "00000.tar") as tar:
        names = tar.getnames()
        fields = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]
    assert names[:3] == ["000000000.jpg", "000000000.json", "000000000.txt"]
    wanted = "url caption key status error_message width height exif sha256"
    assert set(wanted.split()) <= set(fields)
    assert (scenes / "laion" / "00000_stats.json").is_file()


def test_equal_seeds_draw_equal_files_and_a_second_call_leaves_them(tmp_path: Path):
    for name in ("a", "b"):
        write_data_sets(tmp_path / name, seed=4, pairs=20, descriptions=4, heldout=3)
    files = sorted(
        f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*") if f.is_file()
    )
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    before = (tmp_path / "a" / "laion" / "00000.tar").stat().st_mtime_ns
    write_data_sets(tmp_path / "a", seed=4, pairs=20, descriptions=4, heldout=3)
    assert (tmp_path / "a" / "laion" / "00000.tar").stat().st_mtime_ns == before


def test_both_stages_are_validated_on_the_same_held_out_pictures(tmp_path: Path):
    write_data_sets(tmp_path, seed=4, pairs=20, descriptions=4, heldout=5)
    descriptions = tmp_path / "validation" / "descriptions" / "image"
    with tarfile.open(tmp_path / "validation" / "captions" / "00000.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        in_shards = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    for number, content in enumerate(in_shards):
        assert (descriptions / f"{number}.jpg").read_bytes() == content
        assert (tmp_path / f"heldout_seen/image/{number}.jpg").read_bytes() == content
    assert len(in_shards) == 5


def test_every_kind_of_question_is_asked_and_has_an_answer():
    rng = random.Random(2)
    asked = [q for _ in range(50) for q in questions(sample_scene(rng), rng)]
    assert {question.kind for question in asked} == set(QUESTION_KINDS)
    yes = [q.answer.startswith("Yes") for q in asked if q.kind == "yesno"]
    assert 0.2 < sum(yes) / len(yes) < 0.8


def test_assets_are_small():
    assert sum(f.stat().st_size for f in (ROOT / "assets/tiny").rglob("*")) <= 8_000_000


def test_a_description_is_scored_against_a_caption():
    assert score_pairs(RIGHT, REFERENCE) == 1.0
    assert score_layout(RIGHT, REFERENCE) == 1.0
    assert score_failure(RIGHT, REFERENCE) == 0.0
    assert score_failure(REFERENCE, RIGHT) == 1.0, "a bare caption is no description"
    above = REFERENCE.replace("left of", "above")
    assert score_pairs(above, REFERENCE) == 1.0
    assert score_layout(above, REFERENCE) == 0.0


@pytest.mark.parametrize(
    "output",
    [
        "",
        "a small red ring on a dark background",
        "a small red star left of a large blue ring on a dark background",
        "a small red ring left of a large blue star and a large red star on a dark background",
        "a small red ring left of a small red ring and a large blue star on a dark background",
    ],
)
def test_wrong_things_score_nothing(output: str):
    assert score_pairs(output, REFERENCE) == 0.0


def test_figures_of_right_and_wrong_texts():
    rng = random.Random(0)
    scenes = [sample_scene(rng, count=1 + i % 3) for i in range(30)]
    captions, descriptions = [caption(s) for s in scenes], [description(s) for s in scenes]
    right = {"exact": 1.0, "two_objects": 1.0, "three_objects": 1.0, "layout": 1.0}
    assert caption_figures(scenes, captions) == right
    assert description_figures(scenes, descriptions) == {"failure": 0.0, "exact": 1.0}
    swapped = caption_figures(scenes, captions[1:] + captions[:1])
    assert swapped["exact"] == 0.0
    assert description_figures(scenes, captions) == {"failure": 1.0, "exact": 0.0}
    captions[1] = "a"  # of two things
    figures = caption_figures(scenes, captions)
    assert figures["two_objects"] == 0.9
    assert figures["three_objects"] == 1.0
    assert figures["exact"] == 0.9667
