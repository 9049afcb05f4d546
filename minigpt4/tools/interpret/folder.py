"""A folder of looks: ``looks.json`` with its pictures, as ``report`` shows them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.chat import Chat
from minigpt4.files import write_atomically
from minigpt4.tools.interpret.attention import Attention, attention_to_image
from minigpt4.tools.interpret.overlay import overlay, picture_seen, pixels_seen
from minigpt4.tools.interpret.words import chance_cosines, nearest_words

_SIDE = 224  # pixels of a picture that is written, at least


def write_looks(
    chat: Chat,
    files: Sequence[Path],
    output: Path,
    prompt: str,
    answer: str | None = None,
    layer: int | None = None,
    count: int = 5,
) -> Iterator[dict[str, Any]]:
    """Yield each image's entry of ``looks.json``, which is written after the last one.

    Each image token gets ``count`` nearest words; the other options: :func:`attention_to_image`.
    """
    entries = []
    for number, file in enumerate(files):
        near = nearest_words(chat.model, chat.encode_images([file]), count)[0]
        chance = chance_cosines(chat.model, pixels_seen(chat, [file]))
        attention = attention_to_image(chat, [file], prompt, answer, layer)
        picture = picture_seen(chat, file)
        if picture.width < _SIDE:
            picture = picture_seen(chat, file, _SIDE)
        _write_image(picture, output / f"{number}.png")
        entry = {
            "picture": f"{number}.png",
            "image": str(file),
            "prompt": prompt,
            "answer": attention.answer,
            "nearest_words": [[(word, round(cosine, 4)) for word, cosine in row] for row in near],
            "chance_cosines": {key: round(value, 4) for key, value in chance._asdict().items()},
            "overlays": _write_overlays(attention, picture, output, number),
        }
        entries.append(entry)
        yield entry
    # Last: it never names an image that is not there.
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    content = text.encode("utf-8", errors="backslashreplace")
    write_atomically(output / "looks.json", lambda opened: opened.write(content))


def _write_overlays(
    attention: Attention, picture: Image.Image, folder: Path, number: int
) -> list[dict[str, Any]]:
    written = []
    shares = attention.image_share.tolist()
    for place, (token, share) in enumerate(zip(attention.tokens, shares, strict=True)):
        name = f"{number}_{place:03d}.png"
        _write_image(overlay(picture, attention.maps[place, 0]), folder / name)
        written.append({"token": token, "file": name, "image_share": round(share, 4)})
    return written


def _write_image(image: Image.Image, file: Path) -> None:
    write_atomically(file, lambda opened: image.save(opened, format="PNG"))
