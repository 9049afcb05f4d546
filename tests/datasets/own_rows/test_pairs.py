"""A user's own rows, in every form that they come in, as samples."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from minigpt4.assembly import build_datasets
from minigpt4.checked import bind_sections, check_sections
from minigpt4.config import load_config
from minigpt4.datasets.own_rows.pairs import check_storage, open_storage
from minigpt4.datasets.own_rows.row_texts import RowError, evaluation_facts, row_text
from minigpt4.datasets.samples import BadSample, DataSet, RawSample, Side, Turn, reference
from minigpt4.errors import DataError
from tests.helpers.data_files import picture, with_pictures, write_pairs, write_rows, write_tar
from tests.helpers.messages import one_line

MARK = "<ImageHere>"
ALL = Side()
ASKED = (Turn("user", f"{MARK}What is it?"), Turn("assistant", "A square."))


def read_all(storage: object, root: Path | None = None, side: Side = ALL) -> list[Any]:
    source = open_storage(str(storage), str(root) if root else None, side)
    return [sample for unit in range(source.units) for sample in source.read(unit)]


def texts(storage: object, root: Path | None = None, side: Side = ALL) -> list[Any]:
    return [s.text if isinstance(s, RawSample) else s.cause for s in read_all(storage, root, side)]


def says(role: str, content: object = "x") -> dict[str, object]:
    return {"role": role, "content": content}


def text_of(tmp_path: Path, row: dict[str, Any]) -> Any:
    """What one row of a file of two says."""
    file = write_rows(tmp_path / "rows.jsonl", [row, {"image": "a.jpg", "caption": "fine"}])
    first = read_all(file)[0]
    return first.text if isinstance(first, RawSample) else f"{first.cause}: {first.detail}"


def test_captions_questions_and_conversations_become_samples(tmp_path: Path) -> None:
    llava = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Red."}]
    openai = [
        says("system", "Be brief."),
        says("user", [{"type": "image"}, {"type": "text", "text": "What is it?"}]),
        says("assistant", "Red."),
        says("user", "Sure?"),
        says("assistant", "Yes."),
        says("user", "Nobody answers this."),
    ]
    rows = [
        {"image": "a.jpg", "caption": "a red square"},
        {"image": "a.jpg", "instruction": "What is it?", "output": "A square."},
        {"image": "a.jpg", "question": "What is it?", "input": "Look.", "answer": "A square."},
        {"image": "a.jpg", "conversations": llava, "caption": "not this"},
        {"images": ["a.jpg"], "messages": openai},
        {"instruction": "Two and two?", "response": "Four."},
    ]
    samples = read_all(write_rows(tmp_path / "rows.jsonl", rows))
    assert [sample.text for sample in samples] == [
        "a red square",
        ASKED,
        (Turn("user", f"{MARK}What is it?\nLook."), ASKED[1]),
        (Turn("user", f"{MARK}\nWhat is it?"), Turn("assistant", "Red.")),
        (
            Turn("system", "Be brief."),
            Turn("user", f"{MARK} What is it?"),
            Turn("assistant", "Red."),
            Turn("user", "Sure?"),
            Turn("assistant", "Yes."),
        ),
        (Turn("user", "Two and two?"), Turn("assistant", "Four.")),
    ]
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 1, 1, 0]
    assert samples[0].image == tmp_path / "a.jpg"
    assert samples[2].key == f"{tmp_path / 'rows.jsonl'}:3"


def test_several_images_stand_at_their_marks_or_before_the_words(tmp_path: Path) -> None:
    marked = f"Is {MARK} larger than <Img>{MARK}</Img>?"
    two = {"images": ["a.jpg", "b/c.png"], "answer": "No."}
    asked = {marked: f"Is {MARK} larger than {MARK}?", "Alike?": f"{MARK}{MARK}Alike?"}
    for question, text in asked.items():
        assert text_of(tmp_path, {**two, "question": question})[0].text == text
    assert "1 <ImageHere> for 2 images" in text_of(tmp_path, {**two, "question": f"{MARK} or?"})
    words = {"question": "What does <image> mean in HTML?", "answer": "A picture."}
    assert text_of(tmp_path, words)[0].text == words["question"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg"}, "no caption: none of caption, text"),
        ({"image": "a.jpg", "caption": " "}, "no caption"),
        ({"image": "a.jpg", "question": "Why?"}, "a question without answer"),
        ({"caption": "words alone"}, "no image: a caption needs one"),
        ({"image": 7, "caption": "x"}, "no image: 7 is not a path"),
        ({"image": "http://x/a.jpg", "caption": "x"}, "is an address"),
        ({"image": "a.jpg", "messages": []}, "broken conversation: [] is not"),
        ({"image": "a.jpg", "messages": [says("bot")]}, "is of 'bot'"),
        ({"image": "a.jpg", "messages": [says("user")]}, "no answer"),
        ({"messages": [says("assistant"), says("user")]}, "must take turns"),
        (
            {"image": "a.jpg", "messages": [says("user"), says("assistant", MARK)]},
            "only a user shows images",
        ),
    ],
)
def test_a_row_that_says_nothing_to_learn_is_bad(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    assert reason in text_of(tmp_path, row)


def test_a_csv_may_hold_line_breaks_lists_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with open(file, "w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\r\n")
        writer.writerow(["image", "question", "answer"])
        writer.writerow(["a.jpg", "One\nor two?", "Two."])
        writer.writerow(['["a.jpg", "b.jpg"]', "And now?", "None."])
        writer.writerow(["", "No picture?", "No."])
    samples = read_all(file)
    assert [len(sample.images) for sample in samples] == [1, 2, 0]
    assert samples[0].text[0].text == f"{MARK}One\nor two?"
    assert [sample.key.rpartition(":")[2] for sample in samples] == ["2", "4", "5"]


def test_a_json_list_and_a_tsv_do_as_well(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "caption": "é"}
    (tmp_path / "rows.json").write_text(json.dumps([row], indent=1))
    (tmp_path / "rows.tsv").write_text("image\tcaption\na.jpg\té\n", encoding="utf-8")
    assert texts(tmp_path / "rows.json") == texts(tmp_path / "rows.tsv") == ["é"]
    (tmp_path / "rows.json").write_text(json.dumps([row, 5]))  # all in one line
    names = [sample.key.rpartition("/")[2] for sample in read_all(tmp_path / "rows.json")]
    assert names == ["rows.json:1 (row 1)", "rows.json:1 (row 2)"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "b/../../a.jpg", "..\\a.jpg"])
def test_a_path_that_leaves_image_root_ends_it_with_its_line(tmp_path: Path, name: str) -> None:
    root = with_pictures(tmp_path / "pictures", "a.jpg")
    rows = [{"image": "a.jpg", "caption": "fine"}, {"image": name, "caption": "outside"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with one_line(DataError, "rows.jsonl:2: ", " leaves image_root"):
        open_storage(str(file), str(root))


def test_absolute_paths_and_detours_inside_image_root_are_fine(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "pictures", "a.jpg", "b/c.jpg")
    names = [str(root / "a.jpg"), "b/../a.jpg", "./b/c.jpg"]
    rows = [{"image": name, "caption": name} for name in names]
    samples = read_all(write_rows(tmp_path / "rows.jsonl", rows), root)
    assert [os.path.samefile(s.image, root / n) for s, n in zip(samples, names, strict=True)]


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path: Path) -> None:
    with_pictures(tmp_path, "a.jpg", "b/c.JPG", "d.jpg", "e.png")
    (tmp_path / "a.txt").write_text("a red square\n")
    row = {"question": "What is it?", "answer": "A square."}
    (tmp_path / "b" / "c.json").write_text(json.dumps(row))
    (tmp_path / "e.json").write_text("[1]")
    assert texts(tmp_path) == ["a red square", ASKED, "no caption", "unreadable row"]


def test_a_folder_with_metadata_and_one_of_the_stage_2_form(tmp_path: Path) -> None:
    with_pictures(tmp_path / "hub", "a.jpg")
    write_rows(tmp_path / "hub" / "metadata.jsonl", [{"file_name": "a.jpg", "text": "of the hub"}])
    assert texts(tmp_path / "hub") == ["of the hub"]
    write_pairs(tmp_path / "align", [(2, "curated")], {"2.png": picture("png")})
    assert texts(tmp_path / "align") == ["curated"]


def test_shards_hold_rows_with_none_one_or_several_images(tmp_path: Path) -> None:
    two, one, none = (
        json.dumps(row).encode()
        for row in ({"question": "Alike?", "answer": "Yes."}, {"caption": "1"}, {"caption": "0"})
    )
    write_tar(
        tmp_path / "00000.tar",
        {"a.jpg": picture(), "a.json": one},
        {"b.10.jpg": picture(), "b.2.png": picture("png"), "b.json": two},
        {"c.json": two},
        {"d.json": none},
    )
    samples = read_all(tmp_path)
    found = [len(s.images) if isinstance(s, RawSample) else s.cause for s in samples]
    assert found == [1, 2, 0, "no image"]
    assert samples[1].images[0] == picture("png")  # 2 before 10
    assert samples[1].text[0].text == f"{MARK}{MARK}Alike?"


def test_a_split_keeps_an_image_on_one_side_whatever_the_order(tmp_path: Path) -> None:
    names = [f"{n % 40}.jpg" if n % 2 else f"./{n % 40}.jpg" for n in range(200)]
    rows = [{"image": name, "caption": f"{n % 40} {n}"} for n, name in enumerate(names)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    other = write_rows(tmp_path / "other.jsonl", rows[::-1])

    def images(storage: Path, part: Any) -> set[str]:
        return {text.split()[0] for text in texts(storage, None, Side(part, 0.25))}

    train, val = images(file, "train"), images(file, "val")
    assert train | val == {str(n) for n in range(40)}
    assert not train & val
    assert 2 <= len(val) <= 20
    assert images(other, "val") == val
    talk = [{"question": "Why?", "answer": f"{n}."} for n in range(60)]
    (tmp_path / "talk.json").write_text(json.dumps(talk))  # all in one line
    sides = [texts(tmp_path / "talk.json", None, Side(part, 0.3)) for part in ("train", "val")]  # type: ignore[arg-type]
    assert all(sides)
    assert sum(map(len, sides)) == 60
    shard = {f"{n}.jpg": picture() for n in range(30)}
    shard |= {f"{n}.json": json.dumps({"caption": str(n)}).encode() for n in range(30)}
    write_tar(tmp_path / "s.tar", dict(sorted(shard.items())))
    sides = [texts(tmp_path / "s.tar", None, Side(part, 0.3)) for part in ("train", "val")]  # type: ignore[arg-type]
    assert sorted(sides[0] + sides[1], key=int) == [str(n) for n in range(30)]
    assert sides[1]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.jsonl", "", "rows.jsonl:1: holds no row"),
        ("rows.csv", "image,caption\n", "rows.csv:1: holds no row"),
        ("rows.csv", "path,words\na.jpg,b\n", "rows.csv:1: none of its columns is caption"),
        ("rows.jsonl", '{"image": "a.jpg"}\n{}\n', "none of its 2 rows can be used"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_one_line(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with one_line(DataError, complaint):
        open_storage(str(file))


def test_a_storage_that_is_none_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "placeholder" in str(check_storage("/path/to/rows.jsonl"))
    assert "no such file" in str(check_storage(str(tmp_path / "rows.jsonl")))
    assert "names no shard" in str(check_storage(str(tmp_path / "*.tar")))
    (tmp_path / "rows.txt").write_text("x")
    assert "rows.txt is no shard (.tar)" in str(check_storage(str(tmp_path / "rows.txt")))
    rows = write_rows(tmp_path / "rows.jsonl", [{"image": "a.jpg", "caption": "b"}])
    assert "rows come from a folder or one file" in str(check_storage([str(rows), str(rows)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds neither pictures with a text"):
        open_storage(str(tmp_path / "empty"))


def write_yaml(tmp_path: Path, datasets: dict[str, Any]) -> Path:
    file = tmp_path / "mine.yaml"
    model = {"arch": "minigpt4", "model_type": "tiny"}
    file.write_text(json.dumps({"model": model, "datasets": datasets, "run": {}}))
    return file


def built(tmp_path: Path, datasets: dict[str, Any]) -> list[DataSet]:
    return build_datasets(check_sections(load_config(write_yaml(tmp_path, datasets)), "data"))


def faults_of(tmp_path: Path, datasets: dict[str, Any]) -> list[str]:
    config = load_config(write_yaml(tmp_path, datasets))
    found = bind_sections(config, "data")[1]
    return [f"{fault.key}: {fault.text}" for fault in found if fault.key.startswith("datasets")]


def test_type_names_the_builder_of_a_data_set_of_any_name(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"image": "a.jpg", "caption": "b"}])
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": b'{"caption": "c"}'})
    both = {
        "mine": {"type": "pairs", "storage": str(file)},
        "more_laion": {"type": "laion", "build_info": {"storage": str(shard)}},
    }
    assert faults_of(tmp_path, both) == []
    lengths = {dataset.name: dataset.length for dataset in built(tmp_path, both)}
    assert lengths == {"mine": 1, "more_laion": None}
    (text,) = faults_of(tmp_path, {"mine": {"storage": str(file)}})
    assert "unknown data set" in text
    assert "type: pairs" in text
    (text,) = faults_of(tmp_path, {"mine": {"type": "pair", "storage": str(file)}})
    assert text.startswith("datasets.mine.type: unknown type")
    assert "did you mean 'pairs'?" in text
    (text,) = faults_of(tmp_path, {"mine": {"typ": "pairs", "storage": str(file)}})
    assert text == "datasets.mine.typ: unknown key; did you mean 'type'?"
    wrong = {"type": "pairs", "storage": str(file), "image_root": "nowhere", "val_fraction": 1.5}
    assert len(faults_of(tmp_path, {"mine": wrong})) == 2


def test_an_evaluation_reads_what_is_held_out(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": str(n)} for n in range(50)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    other = write_rows(tmp_path / "val.jsonl", rows[:3])
    split = {"type": "pairs", "storage": str(file), "val_fraction": 0.2}
    (dataset,) = built(tmp_path, {"mine": split})
    assert dataset.eval_source is not None
    assert dataset.source.units + dataset.eval_source.units == 50
    assert dataset.length == dataset.source.units
    apart = {"type": "pairs", "storage": str(file), "val_storage": str(other)}
    (dataset,) = built(tmp_path, {"mine": apart})
    assert dataset.eval_source is not None
    assert (dataset.source.units, dataset.eval_source.units) == (50, 3)


def test_bad_rows_stay_in_their_places(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "a.jpg", "caption": "b"}\nnonsense\n{"image": "a.jpg"}\n')
    good, broken, silent = read_all(file)
    assert isinstance(good, RawSample)
    assert isinstance(broken, BadSample)
    assert (broken.key, broken.cause) == (f"{file}:2", "unreadable row")
    assert (silent.key, silent.cause) == (f"{file}:3", "no caption")


# What rows say for an evaluation

WHICH = {"question": "Which?", "choices": ["a", "b"]}
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
        ({**WHICH, "answer": 1}, "b", {**WHICH, "choice": 1}),
        (
            {**WHICH, "choices": ["1", "0"], "answer": "1"},
            "1",
            {**WHICH, "choices": ["1", "0"], "choice": 0},
        ),
        ({**WHICH, "choices": '["a", "b"]', "answer": "1"}, "b", {**WHICH, "choice": 1}),  # a csv's
        ({"caption": "a", "objects": ["dog"]}, "a", {"objects": ["dog"]}),
        ({"caption": "a", "objects": []}, "a", {"objects": []}),
        # Columns of these names that hold other things are none of an evaluation's.
        ({"caption": "a", "objects": 3, "choices": "x", "references": "[b"}, "a", {}),
        ({"caption": "a", "references": ["b", 3]}, "a", {}),
        ({**WHICH, "answer": "c"}, "c", WHICH),
    ],
)
def test_a_rows_text_and_facts(fields: dict[str, Any], told: str, facts: dict[str, Any]) -> None:
    assert reference(row_text(fields, images=1)) == told
    assert evaluation_facts(fields) == facts


def test_a_place_that_no_choice_has_is_no_answer() -> None:
    with pytest.raises(RowError, match="answer: 2 is not a text"):
        row_text({**WHICH, "answer": 2}, images=1)


def test_facts_come_from_files_folders_and_shards(tmp_path: Path) -> None:
    row = {**WHICH, "answer": 1}
    with_pictures(tmp_path, "a.jpg", "beside/a.jpg")
    write_rows(tmp_path / "rows.jsonl", [{"image": "a.jpg", **row}])
    (tmp_path / "beside" / "a.json").write_text(json.dumps(row))
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": json.dumps(row).encode()})
    for storage in (tmp_path / "rows.jsonl", tmp_path / "beside", shard):
        (sample,) = open_storage(str(storage)).read(0)
        assert isinstance(sample, RawSample)
        assert sample.facts == {**WHICH, "choice": 1}
