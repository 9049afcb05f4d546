"""The review page in a real browser: keys, buttons, and what is on disk when it is killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from minigpt4.__main__ import main
from minigpt4.datasets.cc_sbu_align import read_entries
from minigpt4.datasets.samples import RawSample
from tests.helpers.data_files import read_rows, write_rows
from tests.helpers.page_client import free_port
from tests.helpers.repo import ROOT, TINY

pytestmark = pytest.mark.browser

TEXT = "On picture {} a small red circle is on the left of a blue square <b>&amp;</b> \u00e9."
WAIT = 240.0  # seconds; nothing here takes as long unless it hangs


class Reviewer:
    """The command with ``--review`` in a process of its own, and a person at its page."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path, page: Any) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.page = page
        self.asked_for: list[Any] = []
        page.on("request", lambda request: self.asked_for.append(urlsplit(request.url)))
        page.set_default_timeout(60_000)

    def open(self) -> None:
        until = time.monotonic() + WAIT
        while "review " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        self.page.goto(self.url)
        self.page.wait_for_selector("#progress:has-text(' of ')")

    def wait_for(self, words: str) -> None:
        self.page.wait_for_selector(f"#progress:has-text('{words}')")

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    @property
    def text(self) -> str:
        return str(self.page.input_value("#polished textarea"))

    @property
    def draft(self) -> str:
        return str(self.page.input_value("#draft textarea"))


def arguments(folder: Path, scenes: Path, projection: Path) -> list[str]:
    images = str(scenes / "cc_sbu_align" / "image")
    given = ["make-alignment-set", "--cfg-path", TINY, "--options", f"model.ckpt={projection}"]
    given += ["--images", images, "--output", str(folder), "--sample", "4"]
    return [*given, "--num-beams", "1", "--max-new-tokens", "5"]


@contextmanager
def reviewing(browser: Any, folder: Path, scenes: Path, projection: Path) -> Iterator[Reviewer]:
    port, log = free_port(), folder.parent / "log.txt"
    command = [sys.executable, "-m", "minigpt4", *arguments(folder, scenes, projection)]
    command += ["--review", "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    reviewer = Reviewer(process, f"http://127.0.0.1:{port}/", log, context.new_page())
    try:
        yield reviewer
        assert "Traceback" not in log.read_text()
        hosts = {url.hostname for url in reviewer.asked_for if url.scheme not in ("data", "blob")}
        assert hosts <= {"127.0.0.1"}
    finally:
        context.close()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def drafted(scenes: Path, projection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four drafts that pass the filter."""
    folder = tmp_path_factory.mktemp("drafted") / "set"
    with pytest.raises(SystemExit):
        main(arguments(folder, scenes, projection))
    rows = read_rows(folder / "drafts.jsonl")
    for number, row in enumerate(rows):
        row["draft"] = TEXT.format(number) + " And so"
    write_rows(folder / "drafts.jsonl", rows)
    return folder


def decisions(folder: Path) -> list[tuple[str, str]]:
    return [(row["verdict"], row["text"]) for row in read_rows(folder / "reviews.jsonl")]


def test_a_person_reviews_is_killed_goes_on_and_the_set_is_what_was_said(
    browser: Any, drafted: Path, scenes: Path, projection: Path
):
    with reviewing(browser, drafted, scenes, projection) as person:
        person.open()
        person.wait_for("1 of 4")
        assert person.draft == TEXT.format(0) + " And so"
        polished = person.text
        assert polished == TEXT.format(0).replace("<b>&amp;</b>", "&amp;")
        assert person.page.locator("#picture img").evaluate("image => image.naturalWidth") > 0
        assert person.page.locator("#progress b").count() == 1
        person.press("a")
        person.wait_for("2 of 4")
        assert decisions(drafted) == [("accept", polished)]
        assert person.page.locator("#finish button, button#finish").first.is_disabled()
        person.press("e")
        person.page.keyboard.press("Control+End")
        person.page.keyboard.type(" are keys, and none of them decides")
        edited = person.text
        assert edited.endswith("are keys, and none of them decides")
        person.press("Control+Enter")
        person.wait_for("3 of 4")
        assert decisions(drafted)[1:] == [("edit", edited)]
        person.process.send_signal(signal.SIGKILL)
        person.process.wait()

    with reviewing(browser, drafted, scenes, projection) as person:
        person.open()
        person.wait_for("3 of 4")
        person.page.click("#reject")
        person.wait_for("4 of 4")
        person.press("b")
        person.wait_for("so far: reject")
        person.press("b")
        person.wait_for("so far: edit")
        assert person.text == edited
        person.press("r")
        person.wait_for("4 of 4")
        # An empty text is no text to learn.
        person.page.fill("#polished textarea", "")
        person.page.click("#accept")
        person.page.wait_for_selector("[data-testid=toast-body]:has-text('the text is empty')")
        person.page.fill("#polished textarea", "A text of my own.")
        person.page.click("#accept")
        person.wait_for("All 4 pairs are reviewed")
        person.wait_for("1 accepted, 1 edited, 2 rejected")
        person.page.click("#finish")
        assert person.process.wait(WAIT) == 0
    told = [verdict for verdict, _ in decisions(drafted)]
    assert told == ["accept", "edit", "reject", "reject", "edit"]
    entries = [entry for entry in read_entries(drafted) if isinstance(entry, RawSample)]
    assert [entry.text for entry in entries] == [polished, "A text of my own."]
    assert "reviews: 1 accepted, 1 edited, 2 rejected" in person.log.read_text()


def test_keys_in_quick_succession_decide_only_what_was_seen(
    browser: Any, drafted: Path, scenes: Path, projection: Path
):
    (drafted / "reviews.jsonl").write_text("")
    with reviewing(browser, drafted, scenes, projection) as person:
        person.open()
        person.wait_for("1 of 4")
        # Before the page has come back: nobody has seen the second pair when R is pressed.
        person.page.evaluate(
            """() => { for (const name of ["accept", "reject", "reject"])
                 document.getElementById(name).click(); }"""
        )
        person.wait_for("2 of 4")
        person.press("r")
        person.wait_for("3 of 4")
        # Of the three, whichever came first counted, and for the first pair alone.
        rows = read_rows(drafted / "reviews.jsonl")
        assert len({row["image_id"] for row in rows}) == len(rows) == 2
        assert rows[1]["verdict"] == "reject"
