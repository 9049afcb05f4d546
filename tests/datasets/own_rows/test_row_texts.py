"""What rows say for an evaluation, and which text they are with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.datasets.own_rows.pairs import open_storage
from minigpt4.datasets.own_rows.row_texts import RowError, evaluation_facts, row_text
from minigpt4.datasets.samples import RawSample, reference
from tests.helpers.data_files import picture, write_tar

TEN = ["yes"] * 2 + ["no"] * 8


@pytest.mark.parametrize(
    ("fields", "told", "facts"),
    [
        ({"caption": "a"}, "a", {}),
        ({"references": ["a", "b"]}, "a", {"references": ["a", "b"]}),
        ({"caption": "c", "captions": ["a", "b"]}, "c", {"references": ["a", "b"]}),
        ({"question": "Is it?", "answers": TEN}, "no", {"question": "Is it?", "references": TEN}),
        (
            {"question": "Is it?", "answers": [{"answer": "yes"}, {"answer": "yes"}]},
            "yes",
            {"question": "Is it?", "references": ["yes", "yes"]},
        ),
        (
            {"question": "Which?", "choices": ["a", "b"], "answer": 1},
            "b",
            {"question": "Which?", "choices": ["a", "b"], "choice": 1},
        ),
        (
            {"question": "How many?", "choices": ["1", "0"], "answer": "1"},
            "1",
            {"question": "How many?", "choices": ["1", "0"], "choice": 0},
        ),
        (
            {"question": "Which?", "choices": '["a", "b"]', "answer": "1"},  # of a csv
            "b",
            {"question": "Which?", "choices": ["a", "b"], "choice": 1},
        ),
        ({"caption": "a", "objects": ["dog"]}, "a", {"objects": ["dog"]}),
        ({"caption": "a", "objects": []}, "a", {"objects": []}),
        # Columns of these names that hold other things are none of an evaluation's.
        ({"caption": "a", "objects": 3, "choices": "x", "references": "[b"}, "a", {}),
        ({"caption": "a", "references": ["b", 3]}, "a", {}),
        (
            {"question": "Which?", "choices": ["a", "b"], "answer": "c"},
            "c",
            {"question": "Which?", "choices": ["a", "b"]},
        ),
    ],
)
def test_a_rows_text_and_facts(fields: dict[str, Any], told: str, facts: dict[str, Any]) -> None:
    assert reference(row_text(fields, images=1)) == told
    assert evaluation_facts(fields) == facts


def test_a_place_that_no_choice_has_is_no_answer() -> None:
    with pytest.raises(RowError, match="answer: 2 is not a text"):
        row_text({"question": "Which?", "choices": ["a", "b"], "answer": 2}, images=1)


def test_facts_come_from_files_folders_and_shards(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.jpg", **row}) + "\n")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "a.jpg").write_bytes(picture())
    (tmp_path / "beside" / "a.json").write_text(json.dumps(row))
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": json.dumps(row).encode()})
    for storage in (tmp_path / "rows.jsonl", tmp_path / "beside", shard):
        (sample,) = open_storage(str(storage)).read(0)
        assert isinstance(sample, RawSample)
        assert sample.facts == {"question": "Which?", "choices": ["a", "b"], "choice": 1}
