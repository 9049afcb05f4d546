"""Messages: what a browser sends, which may be anything, and what it shows, which is only text."""

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.apps.page.gate import is_within
from minigpt4.apps.page.visits import PageTurn
from minigpt4.chat import GenerationOptions
from minigpt4.conversation.options import change_options
from minigpt4.datasets.images import HugeImageError, load_image
from minigpt4.errors import ConfigError, DataError

OPTIONS = (  # in the order of the page's settings
    *("num_beams", "do_sample", "temperature", "top_p", "max_new_tokens", "min_length"),
    *("repetition_penalty", "length_penalty", "seed"),
)
MAX_PICTURES = 4  # in one message
MAX_PICTURES_OF_A_CHAT = 24
MAX_BEAMS = 10
_SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # what browsers show, too
_LONGEST_TOKEN = 16  # characters; no question of more than that for each token fits
_one_at_a_time = threading.Lock()  # a decoded image may take a quarter of a gigabyte


def read_message(value: object, uploads: Path) -> tuple[str, list[Path]]:
    """Read the text and the uploaded files of a question; raise a DataError for anything else."""
    message = value if isinstance(value, dict) else {"text": value}
    text, files = message.get("text") or "", message.get("files") or []
    if not isinstance(text, str) or not isinstance(files, list):
        raise DataError("that is not a question with pictures")
    return text, [_uploaded(file, uploads) for file in files]


def _uploaded(file: object, uploads: Path) -> Path:
    """Find a file in the folder of uploads."""
    name = str(file.get("path") if isinstance(file, dict) else None)
    if is_within(name, uploads) and os.path.isfile(name):
        return Path(name).resolve()
    raise DataError(f"{Path(name).name[:100]} is not here (any more); please add it again")


def check_picture(path: Path) -> None:
    """Decode an uploaded image; raise a DataError that does not name the server's folders."""
    try:
        with _one_at_a_time:
            Image.open(path, formats=_SHOWN).close()
            load_image(path)
    except (HugeImageError, Image.DecompressionBombError) as error:
        most = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
        raise DataError(f"{path.name} has too many pixels; {most} are the most") from error
    except (DataError, OSError, ValueError, SyntaxError) as error:
        text = f"{path.name} is not a readable picture; try a JPEG, PNG or WebP"
        raise DataError(text) from error


def check_question(
    text: str, pictures: Sequence[Path], earlier: Sequence[PageTurn], max_length: int
) -> None:
    """Refuse, with a DataError, what can be refused without the model."""
    if not text:
        raise DataError("type a question first, or click one")
    if len(text) > max_length * _LONGEST_TOKEN:
        raise DataError(
            f"the question has {len(text):,} characters, far more than the model can read; ask less"
        )
    if len(pictures) > MAX_PICTURES:
        raise DataError(f"{len(pictures)} pictures in one message; {MAX_PICTURES} are the most")
    before = sum(len(turn.pictures) for turn in earlier)
    if not before and not pictures:
        raise DataError("add a picture first, or click one")
    if before + len(pictures) > MAX_PICTURES_OF_A_CHAT:
        text = f"a chat shows {MAX_PICTURES_OF_A_CHAT} pictures at most; start a new chat"
        raise DataError(text)
    for picture in pictures:
        check_picture(picture)


def read_options(values: Sequence[object], options: GenerationOptions) -> dict[str, Any]:
    """Read the values of :data:`OPTIONS` as changes; raise a ConfigError for one that cannot be."""
    changes = dict(zip(OPTIONS, values, strict=True))
    seed = changes["seed"]  # a text, for it may be empty
    changes["seed"] = int(seed) if isinstance(seed, str) and seed.isdecimal() else seed or None
    try:
        beams = change_options(options, changes).num_beams
    except ConfigError as error:  # a visitor knows of no YAML
        raise ConfigError(str(error).replace("chat.", "")) from error
    if beams > MAX_BEAMS:
        raise ConfigError(f"num_beams: {beams} is more than this page allows, {MAX_BEAMS}")
    return changes


def show(turns: Sequence[PageTurn]) -> list[dict[str, Any]]:
    """Return turns for the chat box: images, question and answer, each a message."""
    shown = []
    for turn in turns:
        shown += asked(turn.question, turn.pictures)
        shown.append(says(turn.answer or "(an empty answer)"))
    return shown


def asked(question: str, pictures: Sequence[Path]) -> list[dict[str, Any]]:
    # Images are a message of their own: gradio cannot edit a text in one message with them.
    files = [{"path": str(picture)} for picture in pictures]
    messages = [{"role": "user", "content": files}] if files else []
    return [*messages, {"role": "user", "content": [_text(question)]}]


def place_of(index: object, turns: Sequence[PageTurn]) -> int:
    """Return which turn a message of the chat box belongs to; -1 for no such message."""
    message = index[0] if isinstance(index, list | tuple) and index else index
    if not isinstance(message, int) or message < 0:
        return -1
    messages = [place for place, turn in enumerate(turns) for _ in show([turn])]
    return messages[message] if message < len(messages) else -1


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [_text(text)]}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": as_text(text)}


def as_text(text: str) -> str:
    """Return text for the chat box, which takes HTML: tags and entities are escaped."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=[#\w])", "&amp;", text))


def from_text(shown: str) -> str:
    """Return what :func:`as_text` was given: an edited question comes back as it was shown."""
    return shown.replace("&lt;", "<").replace("&amp;", "&")
