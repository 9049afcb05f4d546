"""Parts of the page that need no browser and no server: text as text, visits and their files."""

import os
import threading
from pathlib import Path

import pytest

from minigpt4.apps.page import visits
from minigpt4.apps.page.messages import as_text, check_picture, from_text, read_message, says
from minigpt4.apps.page.visits import PageTurn, Visit, Visits
from minigpt4.errors import DataError

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</span><b>bold</b><!-- gone -->",
    "<?php ?> <!DOCTYPE html>",
    "&lt;b&gt; &amp;lt; &#60;b&#62;",
    "a < b & c > d, 1 <2, Tom & Jerry, <3",
    "![picture](https://example.com/x.png) [link](https://example.com)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_reaches_a_browser_as_text_and_comes_back_unchanged(text: str):
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        seen = ""

        def handle_data(self, data: str) -> None:
            self.seen += data

        def unexpected(self, *_: object) -> None:
            raise AssertionError(text)

        handle_starttag = handle_endtag = unexpected  # type: ignore[assignment]
        handle_comment = handle_decl = handle_pi = unknown_decl = unexpected  # type: ignore[assignment]

    reader = Reader()
    (part,) = says(text)["content"]  # the way of a model's answer
    reader.feed(part["text"])
    reader.close()
    assert reader.seen == text
    assert from_text(as_text(text)) == text


def test_messages_of_any_kind_are_read_or_refused(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"")
    assert read_message({"text": "hi", "files": [{"path": str(file)}]}, tmp_path) == ("hi", [file])
    assert read_message({"text": None, "files": None}, tmp_path) == ("", [])
    hostile: list[object] = ["/etc/passwd", f"{tmp_path}/../../etc/passwd", "a\0b", "x" * 9999, 7]
    for path in [*hostile, None, str(tmp_path)]:
        with pytest.raises(DataError, match="is not here"):
            read_message({"text": "", "files": [{"path": path}]}, tmp_path)
    for message in (5, ["a"], {"text": 5}, {"files": 1}, {"text": "", "files": "ab"}):
        with pytest.raises(DataError):
            read_message(message, tmp_path)


def test_a_link_out_of_the_uploads_is_no_upload(tmp_path: Path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret.png").write_text("")
    link = tmp_path / "uploads" / "a.png"
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="is not here"):
        read_message({"text": "", "files": [{"path": str(link)}]}, tmp_path / "uploads")


def test_formats_that_no_browser_shows_are_refused(tmp_path: Path):
    from PIL import Image

    file = tmp_path / "scan.tiff"
    Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(DataError, match=r"^scan\.tiff is not a readable picture; try a JPEG"):
        check_picture(file)


def upload(folder: Path, name: str, old: bool = True) -> Path:
    file = folder / name / f"{name}.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    if old:
        os.utime(file, (0, 0))
    return file


def turn(*pictures: Path) -> PageTurn:
    return PageTurn("What?", list(pictures), None, "A ring.")  # type: ignore[arg-type]


def test_files_go_when_no_chat_shows_them(tmp_path: Path):
    kept = upload(tmp_path, "page")
    book = Visits(tmp_path, keep=0)
    book.keep_files()
    shared, own, forgotten, new = (upload(tmp_path, name) for name in "abcd")
    first, second = book.find("first")[0], book.find("second")[0]
    first.turns = [turn(shared)]
    second.turns = [turn(shared, own)]
    with first.answering([new]):
        book.sweep()
        assert set(tmp_path.rglob("*.png")) == {kept, shared, own, new}
    assert not forgotten.parent.exists()
    book.leave("second")
    book.sweep()
    assert set(tmp_path.rglob("*.png")) == {kept, shared}
    book.restart("first")
    book.sweep()
    assert [*tmp_path.rglob("*.png")] == [kept]


def test_a_lost_connection_may_come_back_for_a_while(tmp_path: Path):
    book = Visits(tmp_path, keep=3600)
    visit, new = book.find("one")
    assert new
    file = upload(tmp_path, "a", old=False)
    visit.turns = [turn(file)]
    book.leave("one")
    assert visit.cancelled.is_set()
    book.sweep()
    assert file.exists()
    assert book.find("one") == (visit, False)


def test_the_longest_unseen_visit_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visits, "MAX_VISITS", 2)
    book = Visits(tmp_path, keep=3600)
    for visitor in ("a", "b", "a", "c"):
        book.find(visitor)
    assert len(book) == 2
    assert not book.find("a")[1]
    assert book.find("b")[1]


def test_one_answer_of_a_visit_at_a_time():
    visit = Visit()
    with visit.answering([]):
        with pytest.raises(DataError, match="still being written"), visit.answering([]):
            pass
        waiting = threading.Thread(target=visit.settle)
        waiting.start()
        assert visit.cancelled.wait(60)
    waiting.join(60)
    assert not waiting.is_alive()
    visit.ended = True
    with visit.answering([]):
        assert visit.cancelled.is_set()
