"""Layout: the parts of the page, and which event calls what."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.apps.page.desk import Desk
from minigpt4.apps.page.messages import MAX_BEAMS, OPTIONS
from minigpt4.chat import GenerationOptions

QUESTIONS = (
    "Describe this image in detail.",
    "How many objects are there?",
    "What is the background like?",
)
HEADER = """<h1>MiniGPT-4</h1>
<p>A frozen language model that learned to see by training one linear layer.</p>"""
EMPTY = "**Show a picture and ask about it**\n\nUpload, paste or drag one, or click an example."
# A file made in the browser: nothing has to lie on the server for it.
DOWNLOAD = """text => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "%s"}));
  link.download = "conversation.%s";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
# gradio has set the background by hand.
TOGGLE_DARK = """() => {
  document.body.classList.toggle("dark");
  document.body.style.background = "var(--body-background-fill)";
}"""
# Values as the browser sent them; questions wait in the chat's queue, and not in gradio's.
RAW: dict[str, Any] = {
    "preprocess": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
}
STYLE = (Path(__file__).parent / "style.css").read_text()


def build_page(desk: Desk, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Return the page around a desk, with example images to click; not yet launched."""
    with gr.Blocks(title="MiniGPT-4", analytics_enabled=False) as page:
        with gr.Row(elem_id="header"):
            gr.HTML(HEADER, elem_id="title")
            dark = gr.Button("◐", elem_id="dark", size="sm", min_width=40, scale=0)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=300, elem_id="chat"):
                chatbot = _chatbot()
                line = gr.HTML(elem_id="status")
                box = _question_box()
            with gr.Column(scale=1, min_width=280, elem_id="side"):
                if examples:
                    _pictures_to_try(desk, examples, box)
                _questions_to_try(desk, box)
                settings = _settings(desk.options)
                with gr.Row(elem_id="actions"):
                    _save_button(desk, "JSON", "json", "application/json")
                    _save_button(desk, "Markdown", "md", "text/markdown")
                restart = gr.Button("New chat", elem_id="restart", size="md")
        dark.click(None, js=TOGGLE_DARK)
        view = [chatbot, box, line]
        box.submit(desk.ask, [box, *settings], view, **RAW)
        box.stop(desk.stop, queue=False, **RAW)
        chatbot.retry(desk.retry, settings, view, **RAW)
        chatbot.edit(desk.edit, settings, view, **RAW)
        chatbot.undo(desk.undo, None, view, **RAW)
        gr.on([restart.click, chatbot.clear], desk.restart, None, view, **RAW)
        timer = gr.Timer(0.5)
        timer.tick(desk.loading, None, [line, timer], **RAW)
        page.load(desk.arrive, None, [line, timer], **RAW)
        page.unload(desk.leave)
    return page


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        show_label=False,
        placeholder=EMPTY,
        height="100%",
        buttons=["copy"],  # none that shares the chat outside
        editable="user",
        # Text is text: messages.as_text escapes it, and this says so once more.
        render_markdown=False,
        sanitize_html=True,
        allow_tags=["none-at-all"],  # an edited text is shown at once, before it is escaped here
        latex_delimiters=[],
        allow_file_downloads=False,
        group_consecutive_messages=False,
        elem_id="chatbot",
    )


def _question_box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        show_label=False,
        placeholder="Ask about the picture",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=10**6,  # a long text is not made a file of
        autofocus=True,
        elem_id="question",
    )


def _pictures_to_try(desk: Desk, examples: Sequence[Path], box: gr.MultimodalTextbox) -> None:
    shown = gr.Dataset(
        components=[gr.Image(visible=False)],
        samples=[[str(file)] for file in examples],
        type="index",
        label="Pictures to try",
        samples_per_page=60,
        elem_id="pictures",
    )

    def add(index: object, message: object) -> Any:
        if not (isinstance(index, int) and 0 <= index < len(examples)):
            return gr.skip()
        return desk.suggest(message, picture=examples[index])

    shown.click(add, [shown, box], box, queue=False, **RAW)


def _questions_to_try(desk: Desk, box: gr.MultimodalTextbox) -> None:
    with gr.Column(elem_id="questions"):
        for text in QUESTIONS:
            button = gr.Button(text, size="sm")
            suggest = partial(desk.suggest, question=text)
            button.click(suggest, box, box, queue=False, **RAW)


def _settings(options: GenerationOptions) -> list[gr.components.Component]:
    """Return inputs for the options that a visitor may change, in the order of ``OPTIONS``."""
    start = {name: getattr(options, name) for name in OPTIONS}
    most = {"num_beams": MAX_BEAMS, "max_new_tokens": options.max_length}
    start |= {name: min(start[name], limit) for name, limit in most.items()}

    def slider(name: str, low: float, high: float, step: float, label: str, info: str = "") -> Any:
        high = max(high, start[name])
        return gr.Slider(
            low, high, start[name], step=step, label=label, info=info or None, elem_id=name
        )

    with gr.Accordion("How answers are made", open=False, elem_id="settings"):
        return [
            slider("num_beams", 1, MAX_BEAMS, 1, "Beams", "Above 1 the answer shows at its end."),
            gr.Checkbox(
                start["do_sample"],
                label="Draw words at random",
                info="Else always the likeliest.",
                elem_id="do_sample",
            ),
            slider(
                "temperature", 0.1, 2, 0.1, "Temperature", "Higher: more varied. Of drawn words."
            ),
            slider("top_p", 0.05, 1, 0.05, "Top p", "Draw from these likeliest words."),
            slider("max_new_tokens", 1, options.max_length, 1, "Longest answer (tokens)"),
            slider("min_length", 0, 100, 1, "Shortest answer (tokens)"),
            slider("repetition_penalty", 1, 2, 0.05, "Repetition penalty"),
            slider("length_penalty", -2, 2, 0.1, "Length penalty", "Of beams; above 0: longer."),
            gr.Textbox(
                "" if start["seed"] is None else str(start["seed"]),
                label="Seed",
                info="Of drawn words; empty: new words each time.",
                elem_id="seed",
            ),
        ]


def _save_button(desk: Desk, name: str, kind: str, mime_type: str) -> None:
    def save(request: gr.Request) -> str:
        return desk.save(request, kind)

    text = gr.Textbox(visible=False)
    button = gr.Button(
        f"Save as {name}", size="sm", min_width=100, elem_id=f"save-{kind}", elem_classes="save"
    )
    saved = button.click(save, None, text, **RAW)
    saved.then(None, text, None, js=DOWNLOAD % (mime_type, kind))
