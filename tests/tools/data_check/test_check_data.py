"""check-data: what is in a data set, what of it is cut, and what is bad and where."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt4.__main__ import main
from minigpt4.errors import run_guarded
from tests.helpers.data_files import read_rows, with_pictures, write_rows, write_shards
from tests.helpers.processes import finished
from tests.helpers.repo import error_line

GOOD = [
    {"id": 1, "image": "a.jpg", "caption": "a red square"},
    {"id": 2, "image": "a.jpg", "question": "What is it?", "answer": "A square, and nothing else."},
    {
        "id": 3,
        "images": ["a.jpg", "b.jpg"],
        "messages": [
            {"role": "user", "content": "Are they alike?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Quite."},
        ],
    },
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    with_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    return write_rows(tmp_path / "rows.jsonl", GOOD)


Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """The command; exit code, what was printed, and the line of an error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run_guarded(lambda: main(["check-data", *map(str, arguments)]))
        told, code = capsys.readouterr(), int(exit_.value.code or 0)
        return code, told.out, error_line(told.err) if code else ""

    return run


def write_yaml(tmp_path: Path, rows: Path, **model: Any) -> Path:
    settings = {"arch": "minigpt4", "model_type": "tiny", "max_txt_len": 160, "end_sym": "###"}
    data = {"type": "pairs", "storage": str(rows), "image_root": str(tmp_path / "pictures")}
    config = {"model": settings | model, "datasets": {"mine": data}, "run": {}}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(config))
    return file


def test_a_good_file_is_counted(check: Check, tmp_path: Path, rows: Path):
    figures = tmp_path / "figures.json"
    code, out, _ = check(rows, "--image-root", tmp_path / "pictures", "--json", figures)
    assert code == 0
    assert "3 rows, 0 of them bad" in out
    (told,) = json.loads(figures.read_text())
    assert told["kinds"] == {"captions": 1, "instructions": 1, "conversations": 1}
    assert told["images"] == {"1": 2, "2": 1}
    assert (told["unit"], told["answers"], told["longest_answer"]) == ("words", 4, 5)


def test_a_yaml_shows_tokens_mask_and_what_is_cut(check: Check, tmp_path: Path, rows: Path):
    config, figures = write_yaml(tmp_path, rows, max_txt_len=9), tmp_path / "figures.json"
    code, out, _ = check(config, "--samples", 3, "--json", figures)
    assert code == 0
    (told,) = json.loads(figures.read_text())
    assert (told["unit"], told["cut"], told["cut_share"]) == ("tokens", 1, 0.25)
    assert "1 answers (25.0%) are longer than model.max_txt_len 9" in out
    assert "target: 'a red square###' (▁a ▁red ▁square ###)" in out
    # The longest row, all of which is shown, has as many positions as the histogram says.
    shown = [int(line.split()[-6]) for line in out.splitlines() if " positions, " in line]
    assert f"positions of a row: {min(shown)} to {max(shown)}," in out
    # Only the assistant's words: everything else is read and not learnt.
    learnt = [line for line in out.splitlines() if "target: " in line]
    assert len(learnt) == 4
    assert not any("alike" in line or "Sure" in line or "Human" in line for line in learnt)
    assert sum(line.endswith("  the image") for line in out.splitlines()) == 4


def test_each_bad_row_is_told_with_file_and_line(check: Check, tmp_path: Path):
    root = with_pictures(tmp_path / "pictures", "a.jpg")
    (root / "broken.jpg").write_bytes(b"no picture")
    bad = [
        {"id": 7, "image": "gone.jpg", "caption": "x"},
        {"id": 8, "image": "broken.jpg", "caption": "x"},
        {"id": 9, "image": "../a.jpg", "caption": "x"},
        {"id": 10, "image": "a.jpg", "caption": ""},
        {"id": 1, "image": "a.jpg", "caption": "the first one's id"},
    ]
    rows = write_rows(tmp_path / "rows.jsonl", [GOOD[0], *bad])
    with open(rows, "a") as file:
        file.write("nonsense\n")
    listed = tmp_path / "bad.jsonl"
    code, out, error = check(rows, "--image-root", root, "--output", listed)
    assert code == 2
    assert f"6 of 7 rows are bad, more than --max-bad 0; the first is {rows}:2: " in error
    found = {int(row["key"].rpartition(":")[2]): row["cause"] for row in read_rows(listed)}
    causes = ["missing image", "unreadable image", "image outside", "no caption", "duplicate id"]
    assert found == dict(enumerate([*causes, "unreadable row"], 2))
    assert f"{rows}:3: unreadable image" in out


@pytest.mark.parametrize(
    ("allowed", "code"),
    [("0", 2), ("1", 0), ("24%", 2), ("25%", 0), ("0.24", 2), ("0.25", 0), ("1.0", 0)],
)
def test_max_bad_is_a_number_of_rows_or_a_share(
    check: Check, tmp_path: Path, rows: Path, allowed: str, code: int
):
    with open(rows, "a") as file:
        file.write('{"image": "a.jpg"}\n')
    arguments = [rows, "--image-root", tmp_path / "pictures", "--max-bad", allowed]
    assert check(*arguments)[0] == code


def test_only_looking_whether_pictures_exist(check: Check, tmp_path: Path, rows: Path):
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"no picture")
    root = ["--image-root", tmp_path / "pictures"]
    assert check(rows, *root)[0] == 2
    assert check(rows, *root, "--images", "exist")[0] == 0
    assert check(rows, "--images", "exist")[0] == 2
    assert check(rows, "--images", "skip")[0] == 0


def test_shards_and_the_shipped_data_sets_are_checked_too(
    check: Check, tmp_path: Path, scenes: Path
):
    write_shards(tmp_path / "shards", 2, 3)
    code, out, _ = check(tmp_path / "shards")
    assert code == 0
    assert "6 rows, 0 of them bad" in out
    stage2 = "train_configs/tiny_stage2_finetune.yaml"
    storage = f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/"
    code, out, _ = check(stage2, "--options", storage, "--images", "exist")
    assert code == 0
    assert "cc_sbu_align: " in out
    assert "###Assistant: '" in out


def test_without_a_readable_model_lengths_are_words(
    check: Check, caplog: pytest.LogCaptureFixture, tmp_path: Path, rows: Path
):
    config = write_yaml(tmp_path, rows, llama_model="/path/to/vicuna")
    code, out, _ = check(config)
    assert code == 0
    assert "words of an answer" in out
    assert "model.llama_model: '/path/to/vicuna' is a placeholder" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.jsonl"], "no such file or folder: nowhere.jsonl"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train_configs/tiny_stage2_finetune.yaml", "--image-root", "x"], "--image-root"),
        (["README.md"], "README.md"),
    ],
)
def test_a_target_that_is_none_is_one_line(check: Check, arguments: list[str], complaint: str):
    code, _, error = check(*arguments)
    assert code == 2
    assert complaint in error


def test_a_list_that_breaks_off_is_one_line_of_the_real_program(tmp_path: Path):
    file = tmp_path / "rows.json"
    file.write_text('[{"question": "a", "answer": "b"},\n{"question": "c", "an')
    done = finished([sys.executable, "-m", "minigpt4", "check-data", file])
    assert done.returncode == 2
    assert error_line(done.stderr) == f"error: {file}:2: breaks off in row 2"


def test_a_full_disk_is_one_line(check: Check, tmp_path: Path, rows: Path):
    root = ["--image-root", tmp_path / "pictures"]
    assert "/dev/full/x" in check(rows, *root, "--json", "/dev/full/x")[2]
    with open(rows, "a") as file:
        file.write("nonsense\n")
    assert "/dev/full: cannot be written" in check(rows, *root, "--output", "/dev/full")[2]
