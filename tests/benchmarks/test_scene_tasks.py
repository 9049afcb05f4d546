"""Tasks about drawn scenes: every row can be answered, and the YAML files find their rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import make_scene_tasks
from minigpt4.tools.tiny_world.data_sets import read_heldout
from tests.helpers.repo import EntryPoint

TASKS = ("scene_choice", "scene_rounds", "scene_yes_no")


@pytest.fixture
def tasks(tmp_path: Path, scenes: Path, run_entry: EntryPoint) -> Path:
    folder = tmp_path / "tasks"
    arguments = ("--scenes", scenes / "heldout_seen", "--output", folder)
    for _ in range(2):  # a second time over the first
        assert run_entry(make_scene_tasks.main, *arguments) == (0, "")
    return folder


def rows_of(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def test_rows_have_a_picture_and_a_right_answer(tasks: Path, scenes: Path):
    facts = {str(file): scene for scene, file in read_heldout(scenes / "heldout_seen")}
    for task in TASKS:
        assert all(row["picture"] in facts for row in rows_of(tasks, task))
    for row in rows_of(tasks, "scene_yes_no"):
        color, shape = row["question"].removeprefix("Is there a ").removesuffix("?").split()
        there = (color, shape) in facts[row["picture"]].pairs
        assert row["answer"] == ("yes" if there else "no")
    for row in rows_of(tasks, "scene_choice"):
        shape = row["question"].removeprefix("What color is the ").removesuffix("?")
        (right,) = (one for one in facts[row["picture"]].things if one.shape == shape)
        assert row["choices"][row["answer"]] == f"The {shape} is {right.color}."
        assert len(set(row["choices"])) == 4
    for row in rows_of(tasks, "scene_rounds"):
        assert facts[row["picture"]].background in row["answers"][1]


def test_yaml_files_name_their_rows(tasks: Path):
    class Loader(yaml.SafeLoader):
        """Without lmms-eval's functions."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    for task in TASKS:
        settings = yaml.load((tasks / f"{task}.yaml").read_text(), Loader)
        assert settings["task"] == task
        assert Path(settings["dataset_kwargs"]["data_files"]["test"]) == tasks / f"{task}.jsonl"
        for value in settings.values():
            if isinstance(value, str) and value.startswith("scene_rows."):
                assert (
                    f"def {value.removeprefix('scene_rows.')}("
                    in (tasks / "scene_rows.py").read_text()
                )


def test_other_files_are_left_alone(tmp_path: Path, scenes: Path, run_entry: EntryPoint):
    (tmp_path / "mine.txt").write_text("mine")
    arguments = ("--scenes", scenes / "heldout_seen", "--output", tmp_path)
    code, stderr = run_entry(make_scene_tasks.main, *arguments)
    assert code == 2
    assert "holds other files" in stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    code, stderr = run_entry(make_scene_tasks.main, "--scenes", tmp_path, *arguments[2:])
    assert code == 2
    assert "no held-out split" in stderr
