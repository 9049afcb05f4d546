"""Requests: the bytes of a body → a checked :class:`ChatRequest` → the turns of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from minigpt4.apps.server.limits import MOST_BEAMS, MOST_CHARACTERS, MOST_MESSAGES, MOST_STOPS
from minigpt4.apps.server.replies import RequestError
from minigpt4.errors import shown

# Parameters of OpenAI's interface that are not supported, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}


class _Wire(BaseModel):
    """Strict types (no "1" for 1); unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(_Wire):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageAddress(_Wire):
    """Address of an image."""

    url: str  # data:image/…;base64,… or https://…


class ImagePart(_Wire):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("list_type", "must be a string or a list of parts")
    return content


def _as_stops(stop: object) -> object:
    if not isinstance(stop, str | list):
        raise PydanticCustomError("list_type", "must be a string or a list of strings")
    return [stop] if isinstance(stop, str) else stop


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
_Stop = Annotated[str, Field(min_length=1)]
_Stops = Annotated[list[_Stop], Field(max_length=MOST_STOPS), BeforeValidator(_as_stops)]


class Message(_Wire):
    """One message; a string as content is one part of text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]


class StreamOptions(_Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(_Wire):
    """``POST /v1/chat/completions``: OpenAI's fields, then our own.

    Values outside the bounds would make the model's numbers overflow.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: _Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    do_sample: bool | None = None
    num_beams: Annotated[int, Field(ge=1, le=MOST_BEAMS)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None

    def options(self) -> dict[str, Any]:
        """Return the changes of the chat's options."""
        own = {"do_sample", "num_beams", "repetition_penalty", "length_penalty", "min_length"}
        changes = self.model_dump(include={"top_p", "seed", *own}, exclude_none=True)
        if tokens := self.max_completion_tokens or self.max_tokens:  # the newer name counts
            changes["max_new_tokens"] = tokens
        if self.temperature is not None:
            # So close to 0 only the most likely word is left, and dividing by it may overflow.
            varied = self.temperature >= 0.01
            changes = {"do_sample": varied, **changes}
            if varied:
                changes["temperature"] = self.temperature
        return changes


def read_request(body: bytes) -> ChatRequest:
    """Read the request in a body; raise a RequestError for anything else."""
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_json")
    try:
        asked = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _as_request_error(error.errors()[0]) from error
    for name, neutral in _NEUTRAL.items():
        value = given.get(name)
        if value is not None and value not in neutral:
            only = " or ".join(["null", *map(shown, neutral)])
            text = f"{name}: {shown(value)} is not supported by this server, only {only}"
            raise RequestError(400, text, name, "unsupported_parameter")
    return asked


def _as_request_error(error: ErrorDetails) -> RequestError:
    # messages, 0, content, 0, and then pydantic names the kind of a part, which is not a field.
    steps = [*error["loc"][:4], *error["loc"][5:]]
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
    value = error["input"]
    got = "" if isinstance(value, dict | list) else f" (got {shown(value)})"
    code = "missing_required_parameter" if error["type"] == "missing" else "invalid_value"
    return RequestError(400, f"{param}: {error['msg']}{got}", param, code)


@dataclass(frozen=True)
class Picture:
    """An image of a message; ``place`` is the field that names it."""

    url: str
    place: str


Words = list[str | Picture]  # of one speaker, in the order given


@dataclass
class Dialogue:
    """Questions with their answers, and the question that is to be answered."""

    turns: list[tuple[Words, str]] = field(default_factory=list)
    question: Words = field(default_factory=list)

    def parts(self) -> Words:
        questions = [*(words for words, _ in self.turns), self.question]
        return [part for words in questions for part in words]

    def pictures(self) -> list[Picture]:
        return [part for part in self.parts() if isinstance(part, Picture)]


def to_dialogue(messages: Sequence[Message], max_images: int) -> Dialogue:
    """Turn the messages of a request into a dialogue.

    A system message joins the user's next: before its words, after images at the beginning, as in
    training. Messages of one speaker in a row are one. The last one must be the user's.
    """
    dialogue = Dialogue()
    system: Words = []
    for number, message in enumerate(messages):
        words = _words(message, f"messages[{number}]")
        if message.role == "user":
            first = next((i for i, part in enumerate(words) if isinstance(part, str)), len(words))
            dialogue.question += [*words[:first], *system, *words[first:]]
            system = []
        elif message.role == "assistant":
            _answer(dialogue, "\n".join(map(str, words)), f"messages[{number}]")
        else:
            system += words
    if messages[-1].role != "user":
        text = "messages: the last one must be the user's, which is answered"
        raise RequestError(400, text, "messages")
    _check_size(dialogue, max_images)
    return dialogue


def _words(message: Message, place: str) -> Words:
    words: Words = []
    for number, part in enumerate(message.content):
        if isinstance(part, TextPart):
            words.append(part.text)
            continue
        inside = f"{place}.content[{number}]"
        if message.role != "user":
            text = f"{inside}: only a user's message may show a picture"
            raise RequestError(400, text, inside)
        words.append(Picture(part.image_url.url, f"{inside}.image_url.url"))
    return words


def _answer(dialogue: Dialogue, text: str, place: str) -> None:
    if dialogue.question:
        dialogue.turns.append((dialogue.question, text))
        dialogue.question = []
    elif dialogue.turns:
        words, before = dialogue.turns[-1]
        dialogue.turns[-1] = (words, f"{before}\n{text}")
    else:
        raise RequestError(400, f"{place}: an answer needs a user's message before it", place)


def _check_size(dialogue: Dialogue, max_images: int) -> None:
    if (images := len(dialogue.pictures())) > max_images:
        text = f"messages: {images} pictures; {max_images} are the most in one request"
        raise RequestError(400, text, "messages", "too_many_images")
    texts = [part for part in dialogue.parts() if isinstance(part, str)]
    length = sum(map(len, [*texts, *(answer for _, answer in dialogue.turns)]))
    if length > MOST_CHARACTERS:
        text = f"messages: {length} characters of text; {MOST_CHARACTERS} are the most"
        raise RequestError(400, text, "messages", "context_length_exceeded")
