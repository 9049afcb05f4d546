"""Serving: the page opens, the model loads behind it, and at the end everything is cleared away."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from minigpt4.apps.arguments import ChatPlan
from minigpt4.apps.page.desk import Desk
from minigpt4.apps.page.gate import Gate
from minigpt4.apps.page.layout import STYLE, build_page
from minigpt4.apps.page.visits import Visits

logger = logging.getLogger(__name__)

_SPARE_THREADS = 40  # beside one for each question that waits


@dataclass(frozen=True)
class PageSettings:
    """How a page is served.

    Attributes:
        host: Loopback unless others are to come in.
        port: Of the host.
        share: A public link.
        auth: User and password that are asked for.
        examples: Pictures to click.
        places: Questions that may wait.
        keep: Seconds that a chat and its pictures outlive the connection.
    """

    host: str
    port: int
    share: bool
    auth: tuple[str, str] | None
    examples: Sequence[Path]
    places: int
    keep: float


def serve_page(plan: ChatPlan, settings: PageSettings) -> None:
    """Serve until interrupted.

    Raises:
        MiniGPT4Error: where the model cannot be loaded; the page is closed then.
    """
    with _uploads_folder() as uploads, Progress() as progress:
        visits = Visits(uploads, settings.keep)
        desk = Desk(visits, plan.checked.generation, settings.places, progress.text)
        page = build_page(desk, settings.examples)
        _launch(page, settings, uploads)
        visits.keep_files()
        logger.info("the page is open at %s", page.local_url)
        try:
            desk.open(plan.load())
            logger.info("ready")
            while True:
                time.sleep(min(60.0, settings.keep / 4 + 0.5))
                visits.sweep()
        finally:
            visits.close()
            page.close(verbose=False)


def _launch(page: gr.Blocks, settings: PageSettings, uploads: Path) -> None:
    # gradio's half-bold file of this font is a fragment: bold stands in for it.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    page.queue(default_concurrency_limit=None).launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        auth=settings.auth,
        max_file_size="20mb",
        max_threads=settings.places + _SPARE_THREADS,
        prevent_thread_lock=True,
        quiet=True,
        theme=gr.themes.Default(primary_hue="indigo", font=[font, "sans-serif"]),
        css=STYLE,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(Gate, uploads=uploads)]},
    )


@contextmanager
def _uploads_folder() -> Iterator[Path]:
    """A folder of this page's own for whatever is uploaded; it goes with the page."""
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="minigpt4-page-", dir=parent))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Progress(logging.Handler):
    """What is being loaded, from the lines that the loaders log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._newest = "Loading the model"
        self._since = time.monotonic()

    def __enter__(self) -> "Progress":
        logging.getLogger("minigpt4").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("minigpt4").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        what, _, _ = record.getMessage().partition(":")  # behind it, a path of the server's disk
        if what.startswith("loading "):
            self._newest = what.capitalize()

    def text(self) -> str:
        return f"{self._newest}: {time.monotonic() - self._since:.0f} s"
