"""Short answers: what a benchmark compares, out of what a chat model says at length."""

import re
from typing import Literal, get_args

from minigpt4.errors import ConfigError

AnswerForm = Literal["whole", "yes_no", "letter"]

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
# "B", "B.", "(B) a cat" and "the answer is B", but neither "A cat" nor "I see".
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?=[).:,]|\s*$)")


def short_answer(text: str, form: AnswerForm) -> str:
    """The answer in the form that is compared; the whole text where it holds none.

    Args:
        text: What the model said.
        form: ``yes_no``: the first of these words, ``Yes`` or ``No``. ``letter``: the first option
            letter that stands alone. ``whole``: the text as it is.
    """
    if form == "yes_no":
        found = _YES_NO.search(text)
        return found[1].capitalize() if found else text
    found = _LETTER.search(text) if form == "letter" else None
    return found[1] if found else text


def check_form(form: str) -> AnswerForm:
    """The form of this name.

    Raises:
        ConfigError: when there is none.
    """
    for known in get_args(AnswerForm):
        if form == known:
            return known  # type: ignore[no-any-return]
    known_forms = ", ".join(get_args(AnswerForm))
    raise ConfigError(f"answer={form}: unknown form of answers; known: {known_forms}")
