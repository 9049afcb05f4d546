"""Row texts: the fields of a user's row → its images and what is said about them."""

import contextlib
import functools
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.datasets.samples import BadSample, EncodedImage, RawSample, Text, Turn, Turns
from minigpt4.errors import DataError, shown

IMAGE_MARK = "<ImageHere>"  # where an image stands in a user's words; LLaVA writes <image>
IMAGES = ("image", "images", "file_name")
CAPTIONS = ("caption", "text")
QUESTIONS = ("instruction", "question")
ANSWERS = ("answer", "output", "response")
REFERENCES = ("references", "captions", "answers")  # several, any of which will do
CHOICES, OBJECTS = "choices", "objects"
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = (*CAPTIONS, *QUESTIONS, *CONVERSATIONS, *REFERENCES)
_SPEAKERS = {name: name for name in ("system", "user", "assistant")}
_SPEAKERS |= {"human": "user", "gpt": "assistant"}
_MARKS = (f"<Img>{IMAGE_MARK}</Img>", "<image>")


class RowError(DataError):
    """What is wrong with one row; ``cause`` is the kind by which bad samples are counted."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


OUTSIDE = "image outside"  # the cause of a path that leaves the folder of images


def row_sample(
    key: str, fields: Mapping[str, Any], images: Iterable[EncodedImage], shard: str = ""
) -> RawSample | BadSample:
    """Return a row as a sample; it is bad where ``images`` or its text raise a ``RowError``."""
    try:
        found = tuple(images)
        text = row_text(fields, len(found))
    except RowError as error:
        return BadSample(key, error.cause, error.detail, shard)
    image = found[0] if len(found) == 1 else found
    return RawSample(key, image, text, shard, evaluation_facts(fields))


def row_images(fields: Mapping[str, Any], root: Path) -> Iterator[Path]:
    """Yield the files that a row names by a path or a list of paths, whether they exist or not.

    Raises:
        RowError: for anything else; a path that leaves ``root``; an address; no possible file name.
    """
    value = _first(fields, IMAGES)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value)
    names = [] if value in (None, "") else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RowError("no image", f"{shown(value)} is not a path or a list of paths")
    base = _absolute(root)
    for name in names:
        if "://" in name[:12]:
            text = f"{shown(name)} is an address; fetch it first, and name its file"
            raise RowError("no image", text)
        if "\0" in name:
            raise RowError("no image", f"{shown(name)} is no file's name")
        # By its words only: a link inside the folder may lead where its owner wants.
        path = posixpath.normpath(posixpath.join(base, name.replace("\\", "/")))
        if not f"{path}/".startswith(base):
            raise RowError(OUTSIDE, f"{shown(name)} leaves image_root {root}")
        yield root / path[len(base) :]


@functools.cache
def _absolute(root: Path) -> str:
    """Return the path with a slash at its end."""
    return posixpath.normpath(root.absolute().as_posix()).rstrip("/") + "/"


def row_text(fields: Mapping[str, Any], images: int) -> Text:
    """Return the conversation, else the instruction with its answer, else the caption of a row.

    Raises:
        RowError: for a row without any of these, or with another number of marks than ``images``.
    """
    conversation = _first(fields, CONVERSATIONS)
    if isinstance(conversation, str):
        conversation = _from_json(conversation)
    if conversation is not None:
        return _placed(_turns(conversation), images)
    question, answer = _first(fields, QUESTIONS), _answer(fields)
    if question is not None and answer is not None:
        more = fields.get("input")
        if isinstance(more, str) and more.strip():
            question = f"{question}\n{more}"
        asked = Turn("user", _words(question, "user"))
        return _placed((asked, Turn("assistant", _words(answer, "answer"))), images)
    caption = _first(fields, CAPTIONS)
    if caption is None and question is None:
        caption = next(iter(_texts(_first(fields, REFERENCES))), None)
    if isinstance(caption, str) and caption.strip():
        if not images:
            raise RowError("no image", "a caption needs one; words alone are asked and answered")
        return caption
    if question is not None:
        raise RowError("no caption", f"a question without {' or '.join(ANSWERS)}")
    found = ", ".join(map(str, fields)) or "nothing"
    raise RowError("no caption", f"none of {', '.join(TEXTS)} is there, but {shown(found)}")


def evaluation_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts for an evaluation, without those of another form.

    ``question``; ``references``, several correct texts; ``choices`` to choose an answer from, and
    ``choice``, the correct one's place; ``objects`` in the image.
    """
    question, references = _first(fields, QUESTIONS), _texts(_first(fields, REFERENCES))
    choices, objects = _texts(fields.get(CHOICES)), _texts(fields.get(OBJECTS))
    found: dict[str, Any] = {}
    if isinstance(question, str):
        found["question"] = question
    if references:
        found["references"] = references
    if len(choices) > 1:
        found["choices"] = choices
        answer = _answer(fields)
        if answer in choices:
            found["choice"] = choices.index(answer)
    if objects or fields.get(OBJECTS) in ([], "[]"):
        found["objects"] = objects
    return found


def _answer(fields: Mapping[str, Any]) -> Any:
    """Return a row's answer: its own, the choice of that place, or the most frequent one."""
    answer, choices = _first(fields, ANSWERS), _texts(fields.get(CHOICES))
    if choices and answer not in choices:
        place = str(answer)  # in a table it is a text
        if place.isdecimal() and int(place) < len(choices):
            return choices[int(place)]
    if answer is None and (given := _texts(_first(fields, REFERENCES))):
        return Counter(given).most_common(1)[0][0]
    return answer


def _texts(value: Any) -> list[str]:
    """Return a list of texts, which a table holds as json; VQA's answers have an ``answer``."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(RowError):
            value = _from_json(value)
    if not isinstance(value, list):
        return []
    texts = [item.get("answer") if isinstance(item, dict) else item for item in value]
    whole = all(isinstance(text, str) and text.strip() for text in texts)
    return [str(text) for text in texts] if whole else []


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first field of these names that is not empty."""
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError("unreadable row", f"{shown(text)} is not a json list") from None


def _words(value: Any, whose: str) -> str:
    """Return a text, which the content of a message may give in parts."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        value = " ".join(_part(part) for part in value)
    if not isinstance(value, str) or not value.strip():
        raise RowError("no caption", f"{whose}: {shown(value)} is not a text")
    return value


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") == "image":
        return IMAGE_MARK
    text = part.get("text")
    if not isinstance(text, str):
        raise RowError("broken conversation", f"{shown(dict(part))} is neither text nor image")
    return text


def _turns(messages: Any) -> Turns:
    """Return messages of ``role`` and ``content``, or LLaVA's ``from`` and ``value``, as turns."""
    if not isinstance(messages, list) or not messages:
        raise RowError("broken conversation", f"{shown(messages)} is not a list of messages")
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise RowError("broken conversation", f"message {number} is {shown(message)}")
        role = message.get("role", message.get("from"))
        speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
        if speaker is None:
            text = f"message {number} is of {shown(role)}; known: {', '.join(_SPEAKERS)}"
            raise RowError("broken conversation", text)
        words = _words(message.get("content", message.get("value")), f"message {number}")
        turns.append(Turn(speaker, words))  # type: ignore[arg-type]
    while turns and turns[-1].speaker != "assistant":
        turns.pop()  # a question without an answer
    told = [turn.speaker for turn in turns]
    said = told[1:] if told[:1] == ["system"] else told
    if not said or any(s != ("assistant" if i % 2 else "user") for i, s in enumerate(said)):
        text = f"{', '.join(told) or 'no answer'}: user and assistant must take turns"
        raise RowError("broken conversation", f"{text:.200}")
    return tuple(turns)


def _placed(turns: Turns, images: int) -> Turns:
    """Return turns with a mark for each image; without any, they are put before the first words."""
    for mark in _MARKS if images else ():
        turns = tuple(turn._replace(text=turn.text.replace(mark, IMAGE_MARK)) for turn in turns)
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if any(IMAGE_MARK in turn.text for turn in turns if turn.speaker != "user"):
        raise RowError("broken conversation", f"only a user shows images: {IMAGE_MARK} elsewhere")
    if marks not in (0, images):
        raise RowError("broken conversation", f"{marks} {IMAGE_MARK} for {images} images")
    first = next(number for number, turn in enumerate(turns) if turn.speaker == "user")
    shown_first = turns[first]._replace(text=IMAGE_MARK * (images - marks) + turns[first].text)
    return (*turns[:first], shown_first, *turns[first + 1 :])
