"""A real Chromium, and what someone at the chat page does and sees in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        started = session.chromium.launch(executable_path=str(CHROMIUM), args=_FLAGS)
        try:
            yield started
        finally:
            started.close()


class PageVisitor:
    """What someone at the page does and sees."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def show(self, *paths: Path) -> None:
        """Put pictures into the question box."""
        before = self.page.locator("#question .thumbnail-item").count()
        self.page.set_input_files("#question input[type=file]", [str(path) for path in paths])
        self.page.locator("#question .thumbnail-item").nth(before + len(paths) - 1).wait_for()

    def send(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.page.click("#question [data-testid=submit-button]")

    def wait_for_answers(self, number: int) -> None:
        """Wait until the page shows so many answers, all of them whole."""
        try:
            self.page.wait_for_function(
                """number => !document.querySelector("#status p")
                    && document.querySelector("#question [data-testid=submit-button]")
                    && document.querySelectorAll("#chatbot [data-testid=bot]").length == number""",
                arg=number,
            )
        except Exception as error:  # what it looks like tells more than that time ran out
            raise AssertionError(self.page.locator("body").inner_text()) from error

    def ask(self, question: str) -> None:
        """Send, and wait for the whole answer."""
        before = len(self.answers)
        self.send(question)
        self.wait_for_answers(before + 1)

    def press(self, name: str) -> None:
        """A button of the chat: Retry, Undo, Edit …, the last one of its name."""
        self.page.locator(f"#chatbot [aria-label={name}]").last.click()

    def setting(self, name: str, value: float) -> None:
        if not self.page.locator(f"#{name}").is_visible():
            self.page.click("#settings button")
        field = self.page.locator(f"#{name} input[type=number]").first
        # One that was just unfolded may yet be given the value that it starts with.
        for _ in range(5):
            field.fill(str(value))
            field.press("Tab")
            self.page.wait_for_timeout(200)
            if float(field.input_value()) == value:
                return
        raise AssertionError(f"{name} stays {field.input_value()}, not {value}")

    @property
    def questions(self) -> list[str]:
        texts = self.page.locator("#chatbot [data-testid=user]").all_inner_texts()
        return [text.strip() for text in texts if text.strip()]

    @property
    def answers(self) -> list[str]:
        texts = self.page.locator("#chatbot [data-testid=bot]").all_inner_texts()
        return [text.strip() for text in texts]

    @property
    def pictures(self) -> list[str]:
        images = self.page.locator("#chatbot [data-testid=user] img").all()
        return [Path(image.get_attribute("src")).name for image in images]

    @property
    def typed(self) -> str:
        return str(self.page.input_value("#question textarea"))

    def wait_for_message(self, words: str) -> str:
        toast = self.page.locator("[data-testid=toast-body]", has_text=words)
        toast.wait_for()
        return str(toast.inner_text())

    def saved(self, kind: str) -> str:
        with self.page.expect_download() as download:
            self.page.click(f"#save-{kind}")
        assert download.value.suggested_filename == f"conversation.{kind}"
        return Path(download.value.path()).read_text()


def open_page(context: Any, url: str) -> PageVisitor:
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    page.wait_for_selector("#question textarea")
    page.wait_for_function("!document.querySelector('#status p')")
    return PageVisitor(page)
