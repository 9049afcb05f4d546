"""The review page: a picture, its draft and its polished text; a person decides, by keys."""

import base64
import html
import io
import logging
import threading
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from minigpt4.apps.page.gate import Gate
from minigpt4.datasets.images import load_image
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.tools.alignment.verdicts import Reviews

_SIDE = 900  # pixels of a picture as it is shown
_STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#picture img { width: 100%; max-height: 80vh; object-fit: contain; object-position: top; }
#progress { font-size: 1.05rem; }
#keys { color: #6b7280; }
"""
_HELP = (
    "Keys: <b>A</b> accept, <b>E</b> edit the text (then <b>Ctrl+Enter</b> accepts it, "
    "<b>Esc</b> leaves it), <b>R</b> reject, <b>B</b> back. Each decision is saved at once."
)
_KEYS = """() => {
  const buttons = {a: "accept", e: "edit", r: "reject", b: "back"};
  document.addEventListener("keydown", event => {
    const typing = event.target.matches("textarea, input");
    if (typing && event.key == "Escape") return event.target.blur();
    let name = buttons[event.key.toLowerCase()];
    if (typing) name = event.ctrlKey && event.key == "Enter" ? "accept" : null;
    else if (event.ctrlKey || event.metaKey || event.altKey) name = null;
    if (!name || event.repeat) return;
    event.preventDefault();
    document.getElementById(name).click();
  });
}"""
_CLOSING = "<b>The set is being written. You can close this page.</b>"
_TO_THE_TEXT = "() => document.querySelector('#polished textarea').focus()"

View = tuple[Any, ...]  # progress, picture, what is shown, draft, text, finish button

logger = logging.getLogger(__name__)


def serve_reviews(reviews: Reviews, images: Path, port: int) -> None:
    """Serve the page to this machine until every pair is reviewed and the person says so."""
    finished = threading.Event()
    page = build_page(Reviewing(reviews, images), finished)
    page.queue().launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        css=_STYLE,
        theme=gr.themes.Default(primary_hue="indigo", font=["sans-serif"]),
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(Gate, uploads=images)]},
    )
    try:
        logger.info("review %d pairs at %s", len(reviews.pairs), page.local_url)
        finished.wait()
    finally:
        page.close(verbose=False)


class Reviewing:
    """What the page's buttons do; its state is in the reviews and on the page itself."""

    def __init__(self, reviews: Reviews, images: Path) -> None:
        self._reviews, self._images = reviews, images
        self._places = {pair.image_id: n for n, pair in enumerate(reviews.pairs)}

    def show_next(self, after: int = -1) -> View:
        """Show the next pair without a decision."""
        place = self._reviews.next_place(after + 1)
        if place is None:
            line = f"<b>All {len(self._places)} pairs are reviewed.</b>"
            return self._view(line, "", "", "", "")
        return self._show(place)

    def decide(self, accepted: bool, shown: str, text: str) -> View:
        """Save a decision on the pair that the page shows; show the next one."""
        image_id, _, times = shown.partition(":")
        if image_id in self._places and times.isdecimal():
            try:
                self._reviews.say(image_id, accepted, text, int(times))
            except MiniGPT4Error as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error
        return self.show_next(self._places.get(image_id, -1))

    def go_back(self, shown: str) -> View:
        """Show the pair before."""
        image_id, _, _ = shown.partition(":")
        return self._show(max(0, self._places.get(image_id, len(self._places)) - 1))

    def _show(self, place: int) -> View:
        pair = self._reviews.pairs[place]
        review = self._reviews.of(pair.image_id)
        shown = f"{pair.image_id}:{self._reviews.times(pair.image_id)}"
        said = f" · so far: {review.decision}" if review else ""
        line = f"<b>{html.escape(pair.image)}</b> · {place + 1} of {len(self._places)}{said}"
        picture = _picture(self._images / pair.image)
        return self._view(
            line, picture, shown, pair.draft, review.text if review else pair.polished
        )

    def _view(self, line: str, *shown: str) -> View:
        finish = gr.update(interactive=self._reviews.next_place() is None)
        return f"{line} · {self._reviews.summary()}", *shown, finish


def build_page(reviewing: Reviewing, finished: threading.Event) -> gr.Blocks:
    # Every key that is pressed is sent, and they are taken one by one.
    private: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": "multiple",
        "concurrency_id": "review",
        "concurrency_limit": 1,
    }
    with gr.Blocks(title="Review", analytics_enabled=False) as page:
        line = gr.HTML(elem_id="progress")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                picture = gr.HTML(elem_id="picture")
            with gr.Column(scale=1, min_width=320):
                text = gr.Textbox(
                    label="Polished: the target text", lines=9, max_lines=16, elem_id="polished"
                )
                with gr.Row():
                    accept = _button("Accept (A)", "primary")
                    edit = _button("Edit (E)")
                    reject = _button("Reject (R)", "stop")
                    back = _button("Back (B)")
                label = "Draft: what the model said"
                shape = {"lines": 6, "max_lines": 12}
                draft = gr.Textbox(label=label, interactive=False, elem_id="draft", **shape)
                gr.HTML(_HELP, elem_id="keys")
                finish = gr.Button("Finish: write the set", interactive=False, elem_id="finish")
        shown = gr.Textbox(visible=False)
        view = [line, picture, shown, draft, text, finish]
        accept.click(lambda s, t: reviewing.decide(True, s, t), [shown, text], view, **private)
        reject.click(lambda s, t: reviewing.decide(False, s, t), [shown, text], view, **private)
        back.click(reviewing.go_back, shown, view, **private)
        edit.click(None, js=_TO_THE_TEXT)
        closing = finish.click(lambda: _CLOSING, None, line, **private)
        closing.then(finished.set, None, None, **private)
        page.load(reviewing.show_next, None, view, **private)
        page.load(None, js=_KEYS)
    return page


def _button(label: str, variant: str = "secondary") -> gr.Button:
    name = label.split()[0].lower()
    return gr.Button(label, variant=variant, size="md", min_width=90, elem_id=name)


def _picture(path: Path) -> str:
    """Return a picture as HTML, or why it cannot be read."""
    try:
        image = load_image(path, shown=True)
    except DataError as error:
        return f"<p>{html.escape(str(error))}</p>"
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="the picture" src="data:image/jpeg;base64,{encoded}">'
