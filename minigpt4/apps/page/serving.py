"""Serving: the page opens before the model is loaded; at the end all uploads are deleted."""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from starlette.middleware import Middleware

from minigpt4.apps.arguments import ChatPlan, without_proxies
from minigpt4.apps.page.desk import Desk
from minigpt4.apps.page.gate import Gate
from minigpt4.apps.page.layout import STYLE, build_page
from minigpt4.apps.page.visits import Visits

logger = logging.getLogger(__name__)

_SPARE_THREADS = 40  # in addition to one for each question that waits


def serve_page(
    plan: ChatPlan,
    examples: Sequence[Path],
    places: int,
    keep: float,
    host: str,
    port: int,
    share: bool,
    auth: tuple[str, str] | None,
) -> None:
    """Serve until interrupted, or the model cannot be loaded.

    ``places`` is the number of questions that may wait; ``keep`` are the seconds that a chat and
    its images outlive the connection.
    """
    # gradio's half-bold file of this font is a fragment: bold stands in for it.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        prefix="minigpt4-page-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        os.environ["GRADIO_TEMP_DIR"] = name  # for all uploads, which are deleted with the page
        uploads = Path(name)
        visits = Visits(uploads, keep)
        desk = Desk(visits, plan.checked.generation, places)
        page = build_page(desk, examples)
        # gradio asks itself whether it is up; a public link may need the proxy.
        with contextlib.nullcontext() if share else without_proxies():
            page.queue(default_concurrency_limit=None).launch(
                server_name=host,
                server_port=port,
                share=share,
                auth=auth,
                max_file_size="20mb",
                max_threads=places + _SPARE_THREADS,
                prevent_thread_lock=True,
                quiet=True,
                theme=gr.themes.Default(primary_hue="indigo", font=[font, "sans-serif"]),
                css=STYLE,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                app_kwargs={"middleware": [Middleware(Gate, uploads=uploads)]},
            )
        visits.keep_files()
        logger.info("the page is open at %s", page.local_url)
        try:
            desk.open(plan.load())
            logger.info("ready")
            while True:
                time.sleep(min(60.0, keep / 4 + 0.5))
                visits.sweep()
        finally:
            visits.close()
            page.close(verbose=False)
