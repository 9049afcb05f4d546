"""The report in a real browser, from its file."""

from pathlib import Path
from typing import Any

import pytest

from minigpt4.tools.report.making import make_report
from tests.tools.report.folders import HOSTILE, PARTS, make_full_runs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return make_report(make_full_runs(folder / "runs"), folder / "report")


class Reader:
    """A page with what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800, 390, 320])
def test_it_opens_by_itself_and_fits(browser: Any, report: Path, width: int, scheme: Any):
    size = {"width": width, "height": 844}
    reader = Reader(browser, report, viewport=size, color_scheme=scheme)
    page = reader.page
    asked = [url for url in reader.requests if not url.startswith("data:")]
    assert asked == [report.as_uri()]
    assert reader.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in PARTS:
        assert page.locator(f"section#{part}").bounding_box()["height"] > 100
    # All pictures are drawn, and every visible chart has lines in it.
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator("img").count() == 6
    for chart in page.locator("figure.chart svg:visible").all():
        box = chart.bounding_box()
        assert box["width"] > 200
        assert chart.locator("path").count() > 5
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(20")
    assert dark == (scheme == "dark")
    reader.context.close()


def test_the_contents_lead_to_the_parts(browser: Any, report: Path):
    reader = Reader(browser, report, viewport={"width": 1440, "height": 900})
    for part in PARTS:
        reader.page.click(f'nav a[href="#{part}"]')
        reader.page.wait_for_function(
            "part => document.getElementById(part).getBoundingClientRect().top < 900", arg=part
        )
    reader.context.close()


def test_hostile_texts_are_read_not_run(browser: Any, report: Path):
    reader = Reader(browser, report)
    assert reader.page.get_by_text(HOSTILE).first.is_visible()
    assert reader.page.locator("script, .said img").count() == 0
    assert reader.complaints == []
    reader.context.close()
