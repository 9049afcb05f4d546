import json
from pathlib import Path

import pytest

from minigpt4.errors import ConfigError, DataError, MiniGPT4Error
from minigpt4.metrics import Parts, score_rows
from minigpt4.metrics.hallucination import (
    NOTHING,
    ObjectWords,
    load_annotated_objects,
    load_object_words,
)
from tests.helpers.messages import one_line

CHAIR = ["chair_i", "chair_s"]


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("A hot dog next to a dog.", ["hot dog", "dog"]),
        ("Two puppies, three sheep; a man's bike", ["dog", "sheep", "person", "bicycle"]),
        ("Buses at a bus stop near a train station", ["bus"]),
        ("wine glasses, knives and couches", ["wine glass", "knife", "couch"]),
        ("a tennis racket on a tennis court", ["tennis racket"]),
        ("A scatter of carpets", []),  # whole words alone
    ],
)
def test_objects_are_found_by_their_words(text: str, objects: list[str]) -> None:
    assert load_object_words().find(text) == objects


def test_the_table_has_the_80_objects_and_each_word_once() -> None:
    words = load_object_words()
    names = {*words._objects.values()} - {NOTHING}
    assert len(names) == 80
    for name in names:
        assert words.find(f"a {name} here") == [name]


def test_chair_by_hand() -> None:
    rows = [
        # dog and couch are there; cat is not: 1 of 4 mentions
        {
            "output": "A dog on a couch. The dog and a cat.",
            "objects": ["dog", "couch"],
            "references": [],
        },
        # the reference tells of the table
        {
            "output": "A cup on a table.",
            "objects": ["cup"],
            "references": ["A mug on a table"],
        },
        {"output": "Nothing much.", "objects": [], "references": ["a wall"]},
    ]
    scores = score_rows(CHAIR, rows)
    assert scores.means == {"chair_i": pytest.approx(1 / 6), "chair_s": pytest.approx(1 / 3)}
    assert [row["chair_i"] for row in scores.rows] == [0.25, 0.0, 0.0]
    assert [row["chair_s"] for row in scores.rows] == [1.0, 0.0, 0.0]
    assert scores.notes == [{"hallucinated": ["cat"]}, {}, {}]
    low, high = scores.intervals()["chair_i"]
    assert low == 0.0
    assert high == pytest.approx(0.25)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("circle: [disc, round]\nsquare: []\nnothing: [round table]\n")
    rows = [{"output": "discs and a square", "objects": ["circle"], "references": []}]
    parts = Parts(object_words=load_object_words(file))
    assert score_rows(CHAIR, rows, parts).means["chair_i"] == 0.5
    assert ObjectWords({"circle": ["round"], NOTHING: ["round table"]}).find("a round table") == []


def test_objects_come_from_cocos_annotations_where_rows_have_none(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    told = {
        "images": [{"id": 7, "file_name": "COCO_7.jpg"}, {"id": 8, "file_name": "COCO_8.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 18},
            {"image_id": 7, "category_id": 18},
            {"image_id": 7, "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    file.write_text(json.dumps(told))
    found = load_annotated_objects(file)
    assert found == {"COCO_7": ["dog", "person"], "COCO_8": []}
    rows = [
        {"image": "/data/COCO_7.jpg", "output": "A man and a dog.", "references": []},
        {"image": "0.tar/COCO_8", "output": "A dog.", "references": []},
        {"image": "COCO_9.jpg", "output": "A dog.", "references": []},
    ]
    scores = score_rows(CHAIR, rows, Parts(image_objects=found))
    assert scores.means["chair_s"] == 0.5
    assert scores.counts["chair_s"] == {"unscored": 1}


def test_bad_files_and_missing_objects_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    for content in ("no json", '{"images": []}', "[]"):
        file.write_text(content)
        with one_line(DataError, f"--objects {file}"):
            load_annotated_objects(file)
    words = tmp_path / "words.yaml"
    for content in ("dog: puppy", "dog: [no, 3]", "[]", "a: [b", "dog: ['!']"):
        words.write_text(content)
        load_object_words.cache_clear()
        with one_line(ConfigError, f"--object-words {words}"):
            load_object_words(words)
    with one_line(ConfigError, "--object-words", "cannot be read"):
        load_object_words(tmp_path / "gone.yaml")
    with one_line(MiniGPT4Error, "chair_i: none of the 1 samples", "--objects"):
        score_rows(["chair_i"], [{"output": "a dog", "references": ["a dog"]}])
