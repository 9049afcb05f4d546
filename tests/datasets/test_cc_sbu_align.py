import json
import logging
from pathlib import Path

import pytest

from minigpt4.datasets.cc_sbu_align import AlignmentSource, check_alignment_folder, read_entries
from minigpt4.datasets.loaders import SampleStream
from minigpt4.datasets.samples import BadSample, DataSet, RawSample
from minigpt4.errors import DataError
from minigpt4.registry import BUILDERS
from tests.helpers.data_files import data_set, picture, samples_of, write_pairs
from tests.helpers.messages import one_line


def texts(dataset: DataSet, count: int) -> list[str]:
    stream = SampleStream(dataset, 1, 0, 0, 1)
    return [str(sample["text"]) for sample in samples_of(stream, count)]


@pytest.mark.parametrize("image_id", ["2", 2, 2.0])
@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_ids_may_be_numbers_and_pictures_of_any_kind(
    tmp_path: Path, image_id: object, suffix: str
) -> None:
    content = picture(suffix.lower())
    folder = write_pairs(tmp_path / "pairs", [(image_id, "a text")], {f"2.{suffix}": content})
    (found,) = read_entries(folder)
    assert found == RawSample("2", folder / "image" / f"2.{suffix}", "a text")
    assert texts(data_set(AlignmentSource(folder)), 2) == ["a text", "a text"]
    assert check_alignment_folder(str(folder)) is None


def test_descriptions_are_not_processed(tmp_path: Path) -> None:
    text = "  Two  LINES;\nand a caf\u00e9 \u4f60\u597d \U0001f600. "
    folder = write_pairs(tmp_path / "pairs", [("a", text)], {"a.png": picture("png")})
    options = {
        "build_info": {"storage": str(folder)},
        "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 4}},
        "text_processor": {"train": {"name": "blip_caption"}},
    }
    built = BUILDERS.build("cc_sbu_align", options, name="cc_sbu_align")
    assert texts(built, 1) == [text]
    assert built.length == 1


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"", ["annotations"]),
        (b"{", ["annotations"]),
        (b"5", ["annotations"]),
        (b'{"annotations": 5}', ["annotations"]),
        (b'{"annotations": {"a": "b"}}', ["annotations"]),
        (b'{"annotations": [' * 100_000, ["annotations"]),
        (b'{"annotations": [{"image_id": "b", "caption": "x"}]}', ["none of its 1 images"]),
        (b"\xff\xfe\xff", ["not UTF-8"]),
        ('{"annotations": []}'.encode("utf-16"), ["not UTF-8"]),
        (b'{"annotations": [\n{"image_id": "a",\n"caption" "x"}]}', ["not json", "line 3"]),
        (b'[{"image_id": "a", "caption": "x"}]', ["found a list"]),
        (b'{"annotation": []}', ["found a dict without a list of that name"]),
        (b'{"annotations": [{"image_id": "a", "caption": "x"}, 5]}', ["annotations[1] is 5"]),
        (b'{"annotations": [{"image_id": "a"}]}', ['annotations[0] has no "caption"']),
        (b'{"annotations": [{"id": 1, "caption": ""}]}', ['annotations[0] has no "image_id"']),
        (b'{"annotations": []}', ["list of annotations is empty"]),
    ],
)
def test_what_is_wrong_with_annotations_is_said(
    tmp_path: Path, content: bytes, mentions: list[str]
) -> None:
    folder = write_pairs(tmp_path / "pairs", [("a", "x")], {"a.jpg": picture()})
    (folder / "filter_cap.json").write_bytes(content)
    with one_line(DataError, folder / "filter_cap.json", *mentions):
        read_entries(folder)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [("a", "x")], {"a.jpg": picture()})
    file = folder / "filter_cap.json"
    text = json.dumps(json.loads(file.read_text()), indent=1).replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_entries(folder)) == 1


@pytest.mark.parametrize(
    "image_id",
    ["../x", "/x", "b/x", "b\\x", "..", ".", "", " ", "x\0", None, True, [1], float("nan")],
)
def test_an_id_that_is_no_files_name_is_refused(tmp_path: Path, image_id: object) -> None:
    """Whatever lies there: nothing outside of ``image/`` is ever looked at."""
    folder = write_pairs(tmp_path / "pairs", [("a", "x"), (image_id, "y")], {"a.jpg": picture()})
    (folder / "image" / "b").mkdir()
    for file in (folder / "x.jpg", folder / "image" / "b" / "x.jpg"):
        file.write_bytes(picture())
    with one_line(DataError, folder / "filter_cap.json", "annotations[1]: image_id"):
        read_entries(folder)


def test_ids_with_the_suffix_are_told_apart(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [("a.jpg", "x")], {"a.jpg": picture()})
    with one_line(DataError, "none of its 1 images", "first: a.jpg", "without the suffix"):
        read_entries(folder)


COUNTED: dict[str, tuple[list[tuple[object, object]], list[str], dict[object, str]]] = {
    "3 of 4 images are missing and left out (first: a, c, d)": (
        [(name, name) for name in "abcd"],
        ["a.txt", "b.jpg", "x.jpg"],
        {"b": "b.jpg"},
    ),
    # The original looks for no other.
    "1 ids have more than one picture; a.jpg is taken rather than a.jpeg": (
        [("a", "a"), ("b", "b")],
        ["a.png", "a.webp", "a.jpeg", "a.jpg", "b.png"],
        {"a": "a.jpg", "b": "b.png"},
    ),
    "1 ids have more than one caption; each is a pair of its own (first: 2)": (
        [(2, "one text"), ("2", "another"), ("3", "a third")],
        ["2.jpg", "3.jpg"],
        {"one text": "2.jpg", "another": "2.jpg", "a third": "3.jpg"},
    ),
    "1 captions are no text and left out (first: b)": (
        [("a", "a text"), ("b", 3)],
        ["a.jpg", "b.jpg"],
        {"a text": "a.jpg"},
    ),
}


@pytest.mark.parametrize("line", COUNTED)
def test_missing_and_repeated_parts_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    entries, images, expected = COUNTED[line]
    folder = write_pairs(tmp_path / "pairs", entries, dict.fromkeys(images, picture()))
    with caplog.at_level(logging.WARNING):
        found = read_entries(folder)
    good = {entry.text: entry.image for entry in found if isinstance(entry, RawSample)}
    assert good == {text: folder / "image" / name for text, name in expected.items()}
    assert len(found) == len(entries)
    (told,) = caplog.messages
    assert told.startswith(f"{folder}: {line}")


def test_a_folder_by_a_pictures_name_is_none(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [("a", "x"), ("b", "y")], {"b.jpg": picture()})
    (folder / "image" / "a.jpg").mkdir()
    bad, _ = read_entries(folder)
    assert isinstance(bad, BadSample)
    assert bad.cause == "no image"


def test_a_broken_image_is_skipped_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = {"a.jpg": picture(), "b.jpg": b"not a picture"}
    folder = write_pairs(tmp_path / "pairs", [("a", "good"), ("b", "bad")], images)
    with caplog.at_level(logging.WARNING):
        assert texts(data_set(AlignmentSource(folder)), 3) == ["good"] * 3
    line = caplog.records[0].getMessage()
    assert "skipped b: " in line
    assert str(folder / "image" / "b.jpg") in line


# The config's check


def test_a_folder_that_lacks_a_part_is_complained_about(tmp_path: Path) -> None:
    assert "placeholder" in str(check_alignment_folder("/path/to/cc_sbu_align/"))
    nowhere = str(tmp_path / "none")
    assert f"no such folder: {nowhere}" in str(check_alignment_folder(nowhere))
    assert "holds no filter_cap.json" in str(check_alignment_folder(str(tmp_path)))
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": []}))
    assert "holds no image" in str(check_alignment_folder(str(tmp_path)))


def test_parts_of_the_wrong_kind_are_complained_about(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    (folder / "filter_cap.json").mkdir(parents=True)
    assert "holds no filter_cap.json" in str(check_alignment_folder(str(folder)))
    (folder / "filter_cap.json").rmdir()
    for name in ("filter_cap.json", "image"):
        (folder / name).write_text("a file")
    assert "holds no image" in str(check_alignment_folder(str(folder)))
