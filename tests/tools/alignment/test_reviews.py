"""Reviews and the set at the end: what was said counts, and what is written is whole."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minigpt4.datasets.cc_sbu_align import read_entries
from minigpt4.datasets.samples import RawSample
from minigpt4.errors import DataError
from minigpt4.tools.alignment.pictures import Picture, assemble, find_pictures
from minigpt4.tools.alignment.request_pool import Reply
from minigpt4.tools.alignment.verdicts import Review, Reviews, Verdict, judge
from minigpt4.tools.alignment.work_folder import Journal
from tests.helpers.data_files import picture
from tests.helpers.messages import one_line

VERDICTS = [Verdict(str(n), f"{n}.jpg", "a draft", f"text {n}", n != 2) for n in range(5)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "reviews.jsonl")


def test_decisions_are_saved_and_the_last_one_counts(journal: Journal):
    reviews = Reviews(journal, VERDICTS)
    assert [pair.image_id for pair in reviews.pairs] == ["0", "1", "3", "4"]
    assert reviews.next_place() == 0
    reviews.say("0", True, " text 0\n", 0)
    reviews.say("1", True, "another text", 0)
    reviews.say("3", False, "what was typed", 0)
    assert reviews.next_place() == 3
    assert reviews.next_place(1) == 3
    reviews.say("0", False, "text 0", 1)
    again = Reviews(journal, VERDICTS)
    assert again.of("0") == Review("reject", "text 0")
    assert again.of("1") == Review("edit", "another text")
    assert again.of("3") == Review("reject", "text 3")
    assert again.of("4") is None
    assert again.summary() == "0 accepted, 1 edited, 2 rejected"
    assert again.captions == {"1": "another text", "4": "text 4"}
    again.say("4", True, "text 4", 0)
    assert again.next_place() is None


def test_a_key_pressed_twice_decides_once(journal: Journal):
    reviews = Reviews(journal, VERDICTS)
    reviews.say("0", True, "text 0", 0)
    reviews.say("0", False, "text 0", 0)
    assert reviews.of("0") == Review("accept", "text 0")
    assert len(journal.rows) == 1


def test_a_text_polished_anew_is_reviewed_anew(journal: Journal):
    reviews = Reviews(journal, VERDICTS)
    reviews.say("0", True, "text 0", 0)
    reviews.say("1", True, "text 1", 0)
    anew = [VERDICTS[0], Verdict("1", "1.jpg", "a draft", "a new text", True)]
    assert Reviews(journal, anew).next_place() == 1
    assert Reviews(journal, anew).of("0") == Review("accept", "text 0")


def test_what_cannot_be_decided_is_told(journal: Journal):
    reviews = Reviews(journal, VERDICTS)
    with one_line(DataError, "empty"):
        reviews.say("0", True, " \n", 0)
    assert journal.rows == []
    journal.add([{"image_id": "0"}])
    with one_line(DataError, f"{journal.path}:1"):
        Reviews(journal, VERDICTS)


def test_verdicts_follow_from_drafts_and_replies():
    draft = "A long draft that is right as it stands, and that nobody has to mend."
    drafts: list[dict[str, Any]] = [
        {"image_id": str(n), "image": f"{n}.jpg", "draft": draft} for n in range(6)
    ]
    drafts[4] = {"image_id": "4", "image": "4.jpg", "draft": ""}
    drafts[5] = {"image_id": "5", "image": "5.jpg", "error": "no picture"}
    replies = {
        "0": Reply("The paragraph is already correct.", False),
        "1": Reply("I apologize for that, here it comes.", False),
        "2": Reply("It is a whole sentence of more than fifty letters. It breaks", True),
    }
    found = [judge(row, replies, {"3": "answers 500"}) for row in drafts]
    told = [(verdict.polished, verdict.kept, verdict.reason, verdict.detail) for verdict in found]
    assert told == [
        (draft, True, "", ""),
        ("I apologize for that, here it comes.", False, "apology", ""),
        ("It is a whole sentence of more than fifty letters.", True, "", ""),
        ("", False, "no reply", "answers 500"),
        ("", False, "short", ""),
        ("", False, "unreadable picture", "no picture"),
    ]


# The set


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Picture]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.JPG", "b.png", "c.webp"):
        suffix = name.rpartition(".")[2].lower()
        (folder / name).write_bytes(picture(suffix))
    (folder / "d.jpg").symlink_to(folder / "a.JPG")
    return {found.image_id: found for found in find_pictures(folder)}


@pytest.mark.parametrize("links", [True, False])
def test_the_set_is_whole_and_only_what_is_kept(
    tmp_path: Path, pictures: dict[str, Picture], links: bool, monkeypatch: pytest.MonkeyPatch
):
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    output = tmp_path / "set"
    output.mkdir()
    texts = {image_id: f"a text {image_id} é" for image_id in pictures}
    assert assemble(output, texts, pictures) == 4
    images = {entry.name: entry for entry in (output / "image").iterdir()}
    assert set(images) == {"0.jpg", "1.png", "2.webp", "3.jpg"}
    assert not any(image.is_symlink() for image in images.values())
    assert (images["1.png"].stat().st_nlink > 1) == links
    read = read_entries(output)
    assert [r.text for r in read if isinstance(r, RawSample)] == [*texts.values()]

    (output / "image" / ".9.jpg.writing").write_bytes(b"of a killed run")
    del texts["1"]
    assert assemble(output, texts, pictures) == 3
    assert {entry.name for entry in (output / "image").iterdir()} == set(images) - {"1.png"}
    assert pictures["1"].path.exists()


def test_pictures_that_have_gone_are_left_out(
    tmp_path: Path, pictures: dict[str, Picture], caplog: pytest.LogCaptureFixture
):
    pictures["1"].path.unlink()
    assert assemble(tmp_path, dict.fromkeys(pictures, "a text"), pictures) == 3
    assert "1 pictures have gone" in caplog.text
    ids = [
        e["image_id"] for e in json.loads((tmp_path / "filter_cap.json").read_text())["annotations"]
    ]
    assert ids == ["0", "2", "3"]


def test_where_nothing_is_kept_there_is_no_set(tmp_path: Path, pictures: dict[str, Picture]):
    assemble(tmp_path, {"0": "a text"}, pictures)
    assert assemble(tmp_path, {}, pictures) == 0
    assert not (tmp_path / "filter_cap.json").exists()
    assert list((tmp_path / "image").iterdir()) == []
