"""The demo page in a real browser: the real ``demo.py``; its answers are words, not true ones."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.helpers.browser import PageVisitor, open_page
from tests.helpers.page_client import serve
from tests.helpers.server_process import ServerProcess

pytestmark = pytest.mark.browser

DESCRIBE = "Describe this image in detail."
HOSTILE = (
    "<img src=x onerror=alert(1)> <b>bold</b> ![p](https://example.com/p.png) "
    "<script>alert(2)</script>"
)
# Notes every state of the newest answer that the page shows, however briefly.
WATCH_ANSWERS = """() => {
  window.states = [];
  const note = () => {
    const answers = document.querySelectorAll("#chatbot [data-testid=bot]");
    if (answers.length) window.states.push(answers[answers.length - 1].innerText.trim());
  };
  new MutationObserver(note).observe(document.querySelector("#chatbot"),
    {subtree: true, childList: true, characterData: true});
}"""

STOP_AT_THE_FIRST_WORD = """() => {
  const watch = setInterval(() => {
    const answer = document.querySelector("#chatbot [data-testid=bot]");
    const button = document.querySelector("#question .stop-button");
    if (answer && answer.innerText.trim() && button) { button.click(); clearInterval(watch); }
  }, 10);
}"""


@pytest.fixture(scope="module")
def server(
    browser: Any, projection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    # An answer of this template goes on for as long as it is told to: no word but eos ends it.
    options = [f"model.ckpt={projection}", "chat.max_new_tokens=40", "chat.template=llama_2"]
    with serve(tmp_path_factory.mktemp("demo"), options=options) as started:
        page = browser.new_page()  # it is there before the model is
        page.goto(started.url)
        page.wait_for_selector("#status:has-text('Loading'), #question textarea")
        page.close()
        started.wait_until("ready")
        yield started


@pytest.fixture
def pictures(pictures: list[Path]) -> list[Path]:
    return pictures[:2]


@pytest.fixture
def visitor(browser: Any, server: ServerProcess) -> Iterator[PageVisitor]:
    """A visitor with a fresh page, which must not ask for anything from another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    asked_for: list[Any] = []
    context.on("request", lambda request: asked_for.append(urlsplit(request.url)))
    started = open_page(context, server.url)
    started.page.on("dialog", lambda dialog: asked_for.append(urlsplit("https://a.dialog.opened")))
    yield started
    content = started.page.content()
    context.close()
    hosts = {url.hostname for url in asked_for if url.scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}
    assert "Traceback" not in content
    assert "Traceback" not in server.log()


def test_answers_stream_and_a_second_question_goes_on(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.page.evaluate(WATCH_ANSWERS)
    visitor.ask(DESCRIBE)
    (answer,) = visitor.answers
    assert answer
    states = list(dict.fromkeys(visitor.page.evaluate("window.states")))
    growing = [state for state in states if state and answer.startswith(state)]
    assert len(growing) >= 2, states
    assert growing == sorted(growing, key=len)

    visitor.ask("What color is it?")
    assert visitor.questions == [DESCRIBE, "What color is it?"]
    assert len(visitor.answers) == 2
    assert visitor.answers[0] == answer
    assert visitor.pictures == [pictures[0].name]
    assert visitor.page.locator("[aria-label='Share']:visible").count() == 0  # it sends it outside


def test_pictures_over_turns_and_two_in_one_message(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    visitor.show(pictures[1])
    visitor.ask("And this one?")
    visitor.show(*pictures)
    visitor.ask("What differs?")
    names = [path.name for path in pictures]
    assert visitor.pictures == [*names, *names]


def test_stop_keeps_what_was_said(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.setting("max_new_tokens", 400)
    visitor.setting("min_length", 100)
    visitor.page.evaluate(STOP_AT_THE_FIRST_WORD)
    visitor.send(DESCRIBE)
    visitor.wait_for_answers(1)
    (answer,) = visitor.answers
    assert answer
    visitor.ask("Go on.")
    first, second = json.loads(visitor.saved("json"))
    assert first["answer"].split() == answer.split()
    assert len(first["answer"]) < len(second["answer"])  # which nobody stopped


def test_examples_are_put_into_the_question_box(visitor: PageVisitor):
    for number in (1, 2):
        visitor.page.click(f"#pictures button >> nth={number}")
        visitor.page.locator("#question .thumbnail-item").nth(number - 1).wait_for()
    visitor.page.click(f"#questions button:has-text('{DESCRIBE}')")
    visitor.page.wait_for_function(
        "text => document.querySelector('#question textarea').value == text", arg=DESCRIBE
    )
    visitor.page.click("#question [data-testid=submit-button]")
    visitor.wait_for_answers(1)
    assert visitor.questions == [DESCRIBE]
    assert visitor.pictures == ["2.png", "3.png"]
    assert visitor.typed == ""


def test_a_pasted_picture(visitor: PageVisitor, pictures: list[Path]):
    visitor.page.evaluate(
        """async bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
          document.querySelector("#question textarea").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
        }""",
        list(pictures[0].read_bytes()),
    )
    visitor.page.wait_for_selector("#question .thumbnail-item")
    visitor.ask(DESCRIBE)
    assert visitor.pictures == ["pasted.png"]


def test_retry_undo_and_edit(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    visitor.ask("What color is it?")
    before = visitor.answers
    visitor.page.evaluate(WATCH_ANSWERS)
    visitor.press("Retry")
    visitor.page.wait_for_function("first => window.states.includes(first)", arg=before[0])
    visitor.wait_for_answers(2)
    assert visitor.answers == before  # nothing is drawn at random here

    visitor.press("Undo")
    visitor.wait_for_answers(1)
    assert visitor.questions == [DESCRIBE]
    assert visitor.typed == "What color is it?"
    visitor.page.fill("#question textarea", "")

    visitor.ask("How many?")
    visitor.page.locator("#chatbot [aria-label=Edit]").first.click()
    visitor.page.fill("#chatbot textarea", "What is in the middle?")
    visitor.press("Submit")
    visitor.page.wait_for_selector("#chatbot [data-testid=user]:has-text('in the middle')")
    visitor.wait_for_answers(1)
    assert visitor.questions == ["What is in the middle?"]
    assert visitor.pictures == [pictures[0].name]


@pytest.mark.parametrize("button", ["#restart", "#chatbot [aria-label=Clear]"])
def test_a_new_chat_forgets_the_last(visitor: PageVisitor, pictures: list[Path], button: str):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    visitor.page.click(button)
    visitor.page.wait_for_selector("#chatbot [data-testid=bot]", state="detached")
    assert visitor.questions == []
    visitor.send(DESCRIBE)  # the picture is forgotten too
    visitor.wait_for_message("Add a picture first, or click one.")
    assert visitor.answers == []


def test_the_conversation_can_be_taken_away(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.ask(HOSTILE)
    visitor.ask("שלום 😀")
    turns = json.loads(visitor.saved("json"))
    assert [turn["question"] for turn in turns] == [HOSTILE, "שלום 😀"]
    assert turns[0]["images"] == [pictures[0].name]
    markdown = visitor.saved("md")
    assert "\\<b\\>bold" in markdown
    assert "שלום 😀" in markdown


def test_text_is_never_live(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.ask(HOSTILE)
    assert visitor.questions == [HOSTILE]
    visitor.page.locator("#chatbot [aria-label=Edit]").first.click()
    edited = visitor.page.input_value("#chatbot textarea") + " & <i>more</i>"
    visitor.page.fill("#chatbot textarea", edited)
    visitor.press("Submit")
    # The browser shows an edited text at once, without what looks like tags; then as it was typed.
    visitor.page.locator("#chatbot [data-testid=user]", has_text="& <i>more</i>").wait_for()
    visitor.wait_for_answers(1)
    assert visitor.questions == [f"{HOSTILE} & <i>more</i>"]
    live = "#chatbot .message-content :is(img, b, i, script, a)"
    assert visitor.page.locator(live).count() == 0


def test_mistakes_leave_the_chat_as_it_was(
    visitor: PageVisitor, pictures: list[Path], tmp_path: Path
):
    notes = tmp_path / "notes.png"
    notes.write_text("these are only words\n")
    visitor.show(notes)
    visitor.send(DESCRIBE)
    message = visitor.wait_for_message("notes.png")
    assert "notes.png is not a readable picture; try a JPEG, PNG or WebP." in message.splitlines()
    assert visitor.typed == DESCRIBE
    visitor.page.hover("#question .thumbnail-item")
    visitor.page.click("#question .delete-button")
    visitor.show(pictures[0])
    visitor.send("  ")
    visitor.wait_for_message("Type a question first")
    visitor.ask(DESCRIBE)
    before = visitor.questions, visitor.answers
    long_question = "word " * 700
    visitor.send(long_question)
    visitor.wait_for_message("The question and its images take")
    assert (visitor.questions, visitor.answers) == before
    assert visitor.typed.strip() == long_question.strip()  # to be shortened
    visitor.ask("What color is it?")
    assert len(visitor.answers) == 2


def test_what_the_model_forgets_is_told(visitor: PageVisitor, pictures: list[Path]):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    for _ in range(3):
        visitor.ask("word " * 80)
    visitor.wait_for_message("The context was full: the model does not remember")
    assert len(visitor.answers) == 4


def test_two_tabs_at_once(
    visitor: PageVisitor, browser: Any, server: ServerProcess, pictures: list[Path]
):
    other = open_page(visitor.page.context, server.url)
    visitor.show(pictures[0])
    other.show(pictures[1])
    visitor.send(DESCRIBE)
    other.send("What is this?")
    visitor.wait_for_answers(1)
    other.wait_for_answers(1)
    assert (visitor.questions, other.questions) == ([DESCRIBE], ["What is this?"])
    assert (visitor.pictures, other.pictures) == ([pictures[0].name], [pictures[1].name])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_below_each_other(
    browser: Any, server: ServerProcess, pictures: list[Path], scheme: str
):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    phone = open_page(context, server.url)
    phone.show(pictures[0])
    phone.ask("a" * 200)
    phone.page.click("#settings button")
    boxes = [
        phone.page.locator(f"#{name}").bounding_box()
        for name in ("header", "chatbot", "question", "side")
    ]
    for upper, lower in itertools.pairwise(boxes):
        assert upper["y"] + upper["height"] <= lower["y"]
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    box = phone.page.locator("#question")
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight + 1")  # nothing of it is cut off

    def wait_until_it_is(colours: str) -> None:
        phone.page.wait_for_function(
            """dark => {
              const colour = getComputedStyle(document.body).backgroundColor;
              return (colour.match(/[0-9.]+/g).slice(0, 3).every(part => part < 100)) == dark;
            }""",
            arg=colours == "dark",
        )

    wait_until_it_is(scheme)
    phone.page.click("#dark")
    wait_until_it_is("light" if scheme == "dark" else "dark")
    context.close()
