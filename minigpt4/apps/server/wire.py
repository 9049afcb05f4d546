"""Wire: the bytes of a request → a checked :class:`ChatRequest`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from minigpt4.apps.server.limits import MOST_BEAMS, MOST_MESSAGES, MOST_STOPS
from minigpt4.apps.server.replies import RequestError
from minigpt4.errors import shown

# What OpenAI's interface knows and this server cannot do: only the values that ask for nothing.
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
    """Types as they are written (no "1" for 1); fields that nobody here knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(_Wire):
    """Words in a message."""

    type: Literal["text"]
    text: str


class ImageAddress(_Wire):
    """Where a picture is: ``data:image/…;base64,…`` or ``https://…``."""

    url: str


class ImagePart(_Wire):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return _list(content, "must be a string or a list of parts")


def _as_stops(stop: object) -> object:
    return [stop] if isinstance(stop, str) else _list(stop, "must be a string or a list of strings")


def _list(value: object, text: str) -> object:
    if not isinstance(value, list):
        raise PydanticCustomError("list_type", text)  # type: ignore[arg-type]
    return value


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
_Stop = Annotated[str, Field(min_length=1)]


class Message(_Wire):
    """One message; a string for its content is one part of text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]


class StreamOptions(_Wire):
    """Of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(_Wire):
    """``POST /v1/chat/completions``: OpenAI's fields, then our own.

    Bounds are those of sense: what lies outside would make the model's numbers overflow.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[list[_Stop], Field(max_length=MOST_STOPS), BeforeValidator(_as_stops)] | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    do_sample: bool | None = None
    num_beams: Annotated[int, Field(ge=1, le=MOST_BEAMS)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """The newer of the two names counts where both are given."""
        return self.max_completion_tokens or self.max_tokens

    def options(self) -> dict[str, Any]:
        """What changes of the chat's :class:`GenerationOptions`; what is not given does not."""
        names = ("top_p", "seed", "num_beams", "repetition_penalty", "length_penalty")
        changes = {name: getattr(self, name) for name in (*names, "min_length")}
        changes["max_new_tokens"] = self.most_tokens
        if self.temperature is not None:
            # So close to 0 only the likeliest word is left, and dividing by it may overflow.
            changes["do_sample"] = self.temperature >= 0.01
            if changes["do_sample"]:
                changes["temperature"] = self.temperature
        if self.do_sample is not None:
            changes["do_sample"] = self.do_sample
        return {name: value for name, value in changes.items() if value is not None}


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: 400, for anything that is not one.
    """
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_json")
    try:
        asked = ChatRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise _fault(given, first) from error
    for name, neutral in _NEUTRAL.items():
        value = given.get(name)
        if value is not None and value not in neutral:
            only = " or ".join(["null", *map(shown, neutral)])
            text = f"{name}: {shown(value)} is not supported by this server, only {only}"
            raise RequestError(400, text, name, "unsupported_parameter")
    return asked


def _fault(given: dict[str, Any], fault: ErrorDetails) -> RequestError:
    param = _field(given, fault["loc"])
    value = fault["input"]
    got = "" if isinstance(value, dict | list) else f" (got {shown(value)})"
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    return RequestError(400, f"{param}: {fault['msg']}{got}", param, code)


def _field(given: object, place: Sequence[int | str]) -> str:
    """``messages[0].content``; pydantic also names the kind of a part, which is no field."""
    name = ""
    for depth, step in enumerate(place):
        last = depth == len(place) - 1
        if isinstance(given, list) and isinstance(step, int) and step < len(given):
            name, given = f"{name}[{step}]", given[step]
        elif isinstance(given, dict) and (step in given or last):
            name, given = f"{name}.{step}", given.get(str(step))
    return name.removeprefix(".")
