"""The chat page: a browser's view of ``minigpt4.chat``, and nothing else.

python demo.py --cfg-path eval_configs/tiny_eval.yaml
"""

import argparse
import html
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from minigpt4.config import Config, load_config
from minigpt4.errors import ConfigError, DataError, MiniGPT4Error, run_guarded

if TYPE_CHECKING:  # gradio and torch take seconds to import: a wrong argument fails before
    import gradio as gr
    import torch

    from minigpt4.chat import Chat, ChatSession

INTRODUCTION = """# MiniGPT-4
A frozen language model that learnt to see by training one linear layer."""
QUESTIONS = (
    "Describe this image in detail.",
    "How many objects are there?",
    "What is the background like?",
    "What is this?",
)
EXAMPLES = Path(__file__).parent / "assets" / "examples"
STOPPED = "*(stopped: the model does not remember this turn)*"
MOST_BEAMS = 10
CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
#chatbot .message-buttons, #chatbot button[aria-label="Clear"] { display: none; }
#chatbot .message img { max-height: 160px; width: auto; }
#question button { background: var(--button-primary-background-fill); color: white; }
@media (max-width: 640px) { /* picture, chat and settings, one below the other */
  #pictures { display: contents; }
  #picture { height: 220px !important; }
  #chat { order: 1; }
  #settings { order: 2; }
}"""

logger = logging.getLogger(__name__)


@dataclass
class Talk:
    """What the model remembers of one visitor, and the files its images came from."""

    session: "ChatSession"
    pictures: list[str] = field(default_factory=list)


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
        talk: Talk | None,
        history: list[Any],
        question: str,
        picture: dict[str, Any] | None,
        beams: int,
        temperature: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Values of (talk, chatbot, question box) while an answer grows."""
        import gradio as gr

        self._talks[visitor] = talk = talk or Talk(self.chat.start())
        # The picture box still holds the last question's picture: only another one is new.
        new = [picture["path"]] if picture and picture["path"] not in talk.pictures[-1:] else []
        options: dict[str, Any] = {"num_beams": min(beams, MOST_BEAMS), "do_sample": False}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature}
        try:
            if not question.strip():
                raise DataError("Type a question first, or click one below.")
            if not (new or talk.pictures):
                raise DataError("Upload a picture first.")
            images = [open_picture(path) for path in new]
            contents = [*({"path": path} for path in new), question]
            asked = history + [{"role": "user", "content": content} for content in contents]
            yield talk, asked, gr.update(value="", submit_btn=False, stop_btn="Stop")
            self._wake(talk)
            text = ""
            # The talk is told once: said again, it could come back from under a Restart.
            for text in self.chat.stream(question.strip(), images, talk.session, **options):
                yield gr.skip(), [*asked, says(text)], gr.skip()
        except Exception as error:  # whatever happens, the page stays usable
            complain(error)
            yield gr.skip(), history, ready(value=question)
            return
        talk.pictures += new
        yield gr.skip(), [*asked, says(text or "*(an empty answer)*")], ready()

    def check_picture(self, picture: dict[str, Any] | None) -> Any:
        """The picture box's value after an upload: emptied if that is no picture."""
        import gradio as gr

        try:
            if picture:
                open_picture(picture["path"])
        except DataError as error:
            complain(error)
            return None
        return gr.skip()

    def leave(self, visitor: str) -> None:
        """Free the images of a visitor who closed the page or lost the connection."""
        if talk := self._talks.get(visitor):
            talk.session.images.clear()

    def _wake(self, talk: Talk) -> None:
        """Encode anew what :meth:`leave` freed: gradio keeps a lost visitor's talk for an hour."""
        if len(talk.session.images) < len(talk.pictures):
            pictures = [open_picture(path) for path in talk.pictures]
            talk.session.images = list(self.chat.encode_images(pictures))


def open_picture(path: str) -> Any:
    """The picture in an uploaded file; no other file of the server is opened for a visitor."""
    from gradio.utils import get_upload_folder

    from minigpt4.datasets.samples import load_image

    name = Path(path).name
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise DataError(f"{name} was not uploaded.")
    try:
        return load_image(path)
    except DataError as error:
        raise DataError(f"{name} is not a readable picture; try a JPEG, PNG or WebP.") from error


def complain(error: Exception) -> None:
    """Show a user's mistake as one line; ours goes to the log."""
    import gradio as gr

    text = str(error)
    if not isinstance(error, MiniGPT4Error):
        logger.error("an answer failed", exc_info=error)
        text = "The answer failed inside the server, whose log says why; please ask again."
    gr.Warning(html.escape(text))


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def ready(**changes: Any) -> Any:
    """The question box when it may be used."""
    import gradio as gr

    return gr.update(submit_btn="Send", stop_btn=False, **changes)


def build_page(chat: "Chat", examples: Sequence[Path] = ()) -> "gr.Blocks":
    """The page around a chat, with example pictures to click; not yet launched."""
    import gradio as gr

    # Nothing is looked up outside; uploads are deleted after a day.
    with gr.Blocks(title="MiniGPT-4", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="pictures"):
                sources = ["upload", "clipboard"]
                picture = gr.Image(sources=sources, buttons=[], height=300, elem_id="picture")
                if examples:
                    shown = [[str(file)] for file in examples]
                    gr.Examples(shown, picture, label="Pictures to try", elem_id="examples")
                with gr.Column(elem_id="settings"):
                    sliders = add_sliders(chat)
                    restart = gr.Button("Restart", elem_id="restart")
            with gr.Column(scale=3, min_width=300, elem_id="chat"):
                chatbot = gr.Chatbot(
                    label="Chat",
                    placeholder="Upload a picture or click one, then ask about it.",
                    height="min(520px, 55vh)",
                    buttons=[],  # none that shares the chat outside
                    elem_id="chatbot",
                )
                box = gr.Textbox(
                    label="Question",
                    show_label=False,
                    placeholder="Ask about the picture",
                    submit_btn="Send",
                    elem_id="question",
                )
                gr.Examples([[text] for text in QUESTIONS], box, label="Questions to try")
        connect(page, Desk(chat), chatbot, (box, picture, *sliders), restart)
    return page


def add_sliders(chat: "Chat") -> tuple[Any, Any]:
    import gradio as gr

    label, info = "Beams", "Above 1: a wider search; the answer shows when it is complete."
    start: float = min(chat.options.num_beams, MOST_BEAMS)
    beams = gr.Slider(1, MOST_BEAMS, start, step=1, label=label, info=info)
    label, info = "Temperature (0 = always the likeliest word)", "Higher: answers vary more."
    start = chat.options.temperature if chat.options.do_sample else 0
    temperature = gr.Slider(0, max(2, start), start, step=0.1, label=label, info=info)
    return beams, temperature


def connect(page: Any, desk: Desk, chatbot: Any, asked: tuple[Any, ...], restart: Any) -> None:
    import gradio as gr

    # gradio hands over the request where it sees this annotation.
    def answer(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from desk.answer(str(request.session_hash), *values)

    def leave(request: gr.Request) -> None:
        desk.leave(str(request.session_hash))

    box, picture, *_ = asked
    state = [gr.State(None), chatbot]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    raw: dict[str, Any] = {"preprocess": False, **quiet}
    # One at a time: answers take turns on the device.
    asking = box.submit(answer, [*state, *asked], [*state, box], concurrency_limit=1, **raw)
    ends: dict[str, Any] = {"cancels": asking, "queue": False, **quiet}
    box.stop(lambda shown: ([*shown, says(STOPPED)], ready()), chatbot, [chatbot, box], **ends)
    restart.click(lambda: (None, [], ready(value=""), None), None, [*state, box, picture], **ends)
    picture.upload(desk.check_picture, picture, picture, **raw)
    page.unload(leave)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with MiniGPT-4 in a browser.")
    parser.add_argument("--cfg-path", required=True, help="YAML of the chat (eval_configs/)")
    parser.add_argument("--gpu-id", type=int, default=0, help="which GPU (default 0)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    parser.add_argument(
        "--examples", type=Path, default=EXAMPLES, help="folder of pictures to click on the page"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public link, through gradio.live")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every value and where it came from"
    )
    return parser.parse_args(argv)


def list_examples(folder: Path) -> list[Path]:
    """The pictures in a folder, by name.

    Raises:
        ConfigError: when there is no such folder.
    """
    from minigpt4.datasets.samples import IMAGE_SUFFIXES

    if not folder.is_dir():
        raise ConfigError(f"--examples {folder}: no such folder")
    return sorted(f for f in folder.iterdir() if f.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)


def check_address(host: str, port: int) -> None:
    """Raise a ``ConfigError`` where no page can be served, before the model loads."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        text = f"--host {host} --port {port}: no page can be served there ({error})"
        raise ConfigError(f"{text}; choose another --port") from error


def check(arguments: argparse.Namespace) -> tuple[Config, "torch.device"]:
    """The config and the device to chat on, once nothing is wrong with either.

    Raises:
        ConfigError: one line for every fault.
    """
    config = load_config(arguments.cfg_path, arguments.options)

    from minigpt4.chat import choose_device
    from minigpt4.registry import Fault
    from minigpt4.runners.preflight import described, preflight

    if arguments.print_config:
        sys.stdout.write(described(config))
    device, others = None, []
    try:
        device = choose_device(arguments.device, arguments.gpu_id)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        others.append(Fault(key, text))
    preflight(config, "chat", device.type if device else arguments.device, others)
    assert device is not None  # else that was a fault
    return config, device


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is up
    if not arguments.print_config:
        check_address(arguments.host, arguments.port)
    examples = list_examples(arguments.examples)
    config, device = check(arguments)
    if arguments.print_config:
        return

    import gradio as gr

    from minigpt4.chat import build_chat

    chat = build_chat(config, device)
    # gradio's half-bold file of this font is a fragment: bold stands in for it.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    build_page(chat, examples).queue(max_size=32).launch(
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
