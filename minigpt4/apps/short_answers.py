"""Short answers: what a benchmark compares, taken from a chat model's long answer."""

import re
from typing import Literal, get_args

from minigpt4.errors import ConfigError

AnswerForm = Literal["whole", "yes_no", "letter"]

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
# "B", "B.", "(B) a cat" and "the answer is B", but neither "A cat" nor "I see".
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?=[).:,]|\s*$)")


def short_answer(text: str, form: AnswerForm) -> str:
    """Return the first ``Yes`` or ``No``, or the first option letter that stands alone.

    Without one, or if the form is ``whole``, that is the whole text.
    """
    if form == "yes_no":
        found = _YES_NO.search(text)
        return found[1].capitalize() if found else text
    found = _LETTER.search(text) if form == "letter" else None
    return found[1] if found else text


def check_form(form: str) -> AnswerForm:
    """Return the form of this name, or raise a ConfigError."""
    known = get_args(AnswerForm)
    if form not in known:
        raise ConfigError(f"answer={form}: unknown form of answers; known: {', '.join(known)}")
    return form  # type: ignore[return-value]
