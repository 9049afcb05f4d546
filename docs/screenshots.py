"""Make the screenshots in the documentation, with a real browser.

    python docs/screenshots.py page
    python docs/screenshots.py report RUN_DIR ...

``page`` shows the chat page with what ``make quickstart`` has trained, and ``report`` the report of
the runs named. Both need /usr/bin/chromium (``apt-get install chromium``) and playwright, which
``make`` installs. They overwrite demo.png and demo_phone.png, or report.png and report_2.png, in
docs/; ``--folder`` names another place.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minigpt4.errors import run_guarded  # noqa: E402
from minigpt4.tools.report.making import make_report  # noqa: E402
from tests.helpers.browser import chromium, open_page  # noqa: E402
from tests.helpers.page_client import serve  # noqa: E402

SCALE = 1.5
PAGES: dict[str, dict[str, Any]] = {
    "demo.png": {"viewport": {"width": 1200, "height": 940}, "color_scheme": "light"},
    "demo_phone.png": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "is_mobile": True,
    },
}
DIALOGUE = ((0, "How many objects are there?"), (2, "Describe this image in detail."))
REPORTS = (("report.png", "light", "validation"), ("report_2.png", "dark", "samples"))


def show_page(browser: Any, folder: Path) -> None:
    """Ask the chat page about two of its examples."""
    with tempfile.TemporaryDirectory() as temporary, serve(Path(temporary)) as server:
        server.wait_until("ready")
        for name, size in PAGES.items():
            context = browser.new_context(**size, device_scale_factor=SCALE)
            visitor = open_page(context, server.url)
            for example, question in DIALOGUE:
                visitor.page.click(f"#pictures button >> nth={example}")
                visitor.page.wait_for_selector("#question .thumbnail-item")
                visitor.ask(question)
            visitor.page.evaluate("window.scrollTo(0, 0)")
            time.sleep(1)  # images have to be drawn
            visitor.page.screenshot(path=folder / name)
            context.close()


def show_report(browser: Any, folder: Path, runs: Sequence[Path]) -> None:
    """Show two parts of the report of these runs."""
    with tempfile.TemporaryDirectory() as temporary:
        file = make_report(list(runs), Path(temporary))
        for name, scheme, part in REPORTS:
            size = {"width": 1280, "height": 960}
            page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=SCALE)
            page.goto(file.as_uri())
            page.evaluate(
                "part => { document.documentElement.style.scrollBehavior = 'auto';"
                " document.getElementById(part).scrollIntoView(); }",
                part,
            )
            page.screenshot(path=folder / name)
            page.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where they go")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="screenshots of the chat page")
    report = commands.add_parser("report", help="screenshots of the report")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    arguments = parser.parse_args(argv)
    with chromium() as browser:
        if arguments.command == "page":
            show_page(browser, arguments.folder)
        else:
            show_report(browser, arguments.folder, arguments.runs)


if __name__ == "__main__":
    run_guarded(main)
