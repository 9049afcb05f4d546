"""The chat page: a browser's view of ``minigpt4.chat``, and nothing else.

python demo.py --cfg-path eval_configs/tiny_eval.yaml
"""

import argparse
import html
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from minigpt4.errors import ConfigError, DataError, MiniGPT4Error, run_guarded

if TYPE_CHECKING:  # gradio and torch take seconds to import: a wrong argument fails before
    import gradio as gr

    from minigpt4.chat import Chat, ChatSession

INTRODUCTION = (
    "# MiniGPT-4\nA frozen language model that learnt to see by training one linear layer. "
    "Upload a picture, then ask about it."
)
EXAMPLES = (
    "Describe this image in detail.",
    "What is in this picture?",
    "Which colors do you see?",
    "Where are the objects?",
)
MOST_BEAMS = 10
STOPPED = "*(stopped: the model does not remember this turn)*"
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#chatbot .message-buttons, #chatbot button[aria-label="Clear"] { display: none; }
#chatbot .message img { max-height: 160px; width: auto; }
#question button { background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); }
@media (max-width: 640px) {
  #pictures { display: contents; }  /* picture, chat, settings: one above the other */
  #chat { order: 1; }
  #settings { order: 2; }
  #picture { height: 220px !important; }
}
"""

logger = logging.getLogger(__name__)


@dataclass
class Talk:
    """One visitor's chat: what the model remembers, and what the page shows.

    Attributes:
        session: Turns and encoded images.
        pictures: Files of the session's images.
        shown: Messages on the page.
        answering: Whether the last turn is unfinished.
    """

    session: "ChatSession"
    pictures: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    answering: bool = False

    def settle(self) -> None:
        """Mark a turn that was broken off."""
        if self.answering:
            self.answering = False
            partial = self.shown.pop()["content"] if self.shown[-1]["role"] == "assistant" else ""
            self.shown.append({"role": "assistant", "content": f"{partial}\n\n{STOPPED}".strip()})


class Desk:
    """What the page's events do.

    Pictures arrive as uploaded (``preprocess=False``): gradio would open them first, and fail
    without saying why.
    """

    def __init__(self, chat: "Chat") -> None:
        self.chat = chat
        self._talks: WeakValueDictionary[str, Talk] = WeakValueDictionary()

    def answer(
        self,
        visitor: str,
        question: str,
        picture: dict[str, Any] | None,
        beams: int,
        temperature: float,
        talk: Talk | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Values of (talk, chatbot, question box) while an answer grows."""
        import gradio as gr

        self._talks[visitor] = talk = talk or Talk(self.chat.start())
        talk.settle()
        before, question = len(talk.shown), question.strip()
        # The picture box still holds the last question's picture: only another one is new.
        new = [picture["path"]] if picture and picture["path"] not in talk.pictures[-1:] else []
        options: dict[str, Any] = {"num_beams": min(beams, MOST_BEAMS), "do_sample": False}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature}
        try:
            if not question:
                raise DataError("there is no question: type one, or click an example")
            if not (new or talk.pictures):
                raise DataError("there is no picture yet: upload one first")
            opened = [_open_picture(path) for path in new]
            for path in new:
                file = {"path": path, "alt_text": "picture shown to the model"}
                talk.shown.append({"role": "user", "content": file})
            talk.shown.append({"role": "user", "content": question})
            talk.answering = True
            yield talk, talk.shown, gr.update(value="", submit_btn=False, stop_btn="Stop")
            self._wake(talk)
            message = {"role": "assistant", "content": ""}
            for text in self.chat.stream(question, opened, talk.session, **options):
                if not message["content"]:
                    talk.shown.append(message)
                message["content"] = text
                yield talk, talk.shown, gr.skip()
            if not message["content"]:
                talk.shown.append({"role": "assistant", "content": "*(an empty answer)*"})
        except Exception as error:  # whatever happens, the page stays usable
            _complain(error)
            del talk.shown[before:]
            talk.answering = False
            yield talk, talk.shown, _ready(value=question)
            return
        talk.pictures += new
        talk.answering = False
        yield talk, talk.shown, _ready()

    def stop(self, talk: Talk | None) -> tuple[Any, ...]:
        """Values of (chatbot, question box) after an answer was stopped."""
        if talk is not None:
            talk.settle()
        return talk.shown if talk else [], _ready()

    def check_picture(self, picture: dict[str, Any] | None) -> Any:
        """The picture box's value after an upload: emptied if that is no picture."""
        import gradio as gr

        try:
            if picture:
                _open_picture(picture["path"])
        except DataError as error:
            _complain(error)
            return None
        return gr.skip()

    def leave(self, visitor: str) -> None:
        """Free the images of a visitor who closed the page or lost the connection."""
        if talk := self._talks.get(visitor):
            talk.session.images.clear()

    def _wake(self, talk: Talk) -> None:
        """Encode anew what :meth:`leave` freed: gradio keeps a lost visitor's talk for an hour."""
        if len(talk.session.images) < len(talk.pictures):
            pictures = [_open_picture(path) for path in talk.pictures]
            talk.session.images = list(self.chat.encode_images(pictures))


def _open_picture(path: str) -> Any:
    from minigpt4.datasets.samples import load_image

    try:
        return load_image(path)
    except DataError as error:
        name = Path(path).name
        raise DataError(f"{name} is not a readable picture; try a JPEG, PNG or WebP") from error


def _complain(error: Exception) -> None:
    """Show a user's mistake as one line; ours goes to the log."""
    import gradio as gr

    text = str(error)
    if not isinstance(error, MiniGPT4Error):
        logger.error("an answer failed", exc_info=error)
        text = "the answer failed inside the server, whose log says why; please ask again"
    gr.Warning(html.escape(text), title="That did not work")


def _ready(**changes: Any) -> Any:
    """The question box when it may be used."""
    import gradio as gr

    return gr.update(submit_btn="Send", stop_btn=False, **changes)


def build_page(chat: "Chat") -> "gr.Blocks":
    """The page around a chat, not yet launched."""
    import gradio as gr

    # Nothing is looked up outside; uploads are deleted after a day.
    with gr.Blocks(title="MiniGPT-4", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="pictures"):
                clipboard = ["upload", "clipboard"]
                picture = gr.Image(
                    label="Picture", sources=clipboard, buttons=[], height=300, elem_id="picture"
                )
                with gr.Column(elem_id="settings"):
                    beams, temperature = _sliders(chat)
                    restart = gr.Button("Restart", elem_id="restart")
            with gr.Column(scale=3, min_width=300, elem_id="chat"):
                hint = "Upload a picture, then ask about it."
                chatbot = gr.Chatbot(
                    label="Chat",
                    placeholder=hint,
                    height="min(520px, 55vh)",
                    buttons=[],
                    elem_id="chatbot",
                )
                box = gr.Textbox(
                    show_label=False,
                    label="Question",
                    placeholder="Ask about the picture",
                    submit_btn="Send",
                    max_lines=6,
                    elem_id="question",
                )
                gr.Examples([[text] for text in EXAMPLES], box, label="Questions to try")
        _connect(page, Desk(chat), (box, picture, beams, temperature), chatbot, restart)
    return page


def _sliders(chat: "Chat") -> tuple[Any, Any]:
    import gradio as gr

    options = chat.options
    beams = gr.Slider(
        *(1, MOST_BEAMS, options.num_beams),
        step=1,
        label="Beams",
        info="Above 1: a wider search; the answer shows when it is complete.",
    )
    start = options.temperature if options.do_sample else 0
    temperature = gr.Slider(
        *(0, max(2, start), start),
        step=0.1,
        label="Temperature (0 = always the likeliest word)",
        info="The higher, the more the answers vary.",
    )
    return beams, temperature


def _connect(page: Any, desk: Desk, asked: tuple[Any, ...], chatbot: Any, restart: Any) -> None:
    import gradio as gr

    # gradio hands over the request where it sees this annotation.
    def answer(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from desk.answer(str(request.session_hash), *values)

    def leave(request: gr.Request) -> None:
        desk.leave(str(request.session_hash))

    box, picture, *_ = asked
    talk = gr.State(None)
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    asking = box.submit(
        answer,
        [*asked, talk],
        [talk, chatbot, box],
        preprocess=False,
        concurrency_limit=1,  # answers take turns on the device
        **quick,
    )
    box.stop(desk.stop, talk, [chatbot, box], cancels=asking, queue=False, **quick)
    fresh = [talk, chatbot, box, picture]
    restart.click(
        lambda: (None, [], _ready(value=""), None),
        None,
        fresh,
        cancels=asking,
        queue=False,
        **quick,
    )
    picture.upload(desk.check_picture, picture, picture, preprocess=False, **quick)
    page.unload(leave)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with MiniGPT-4 in a browser.")
    parser.add_argument("--cfg-path", required=True, help="YAML of the chat (eval_configs/)")
    parser.add_argument("--gpu-id", type=int, default=0, help="which GPU (default 0)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public link, through gradio.live")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    return parser.parse_args()


def check_address(host: str, port: int) -> None:
    """Raise a ``ConfigError`` where no page can be served, before the model loads."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        text = f"--host {host} --port {port}: no page can be served there ({error}); "
        raise ConfigError(text + "is it in use? choose another --port") from error


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is up
    check_address(arguments.host, arguments.port)

    import gradio as gr

    from minigpt4.chat import load_chat

    # gradio's half-bold file of this font is a fragment: bold stands in for it.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    chat = load_chat(arguments.cfg_path, arguments.options, arguments.device, arguments.gpu_id)
    build_page(chat).queue(max_size=32).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        max_file_size="20mb",
        theme=gr.themes.Default(primary_hue="indigo", font=[font, "sans-serif"]),
        css=CSS,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
    )


if __name__ == "__main__":
    run_guarded(main)
