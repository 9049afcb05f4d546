"""Filtering: a polished text → the rule that it breaks, if any."""

import re
from collections import Counter
from collections.abc import Callable

FEWEST = 50  # characters
RUN = 6  # words
TIMES = 3

# What ChatGPT says where it should have polished.
_PHRASES = re.compile(
    r"\bI(?:'m| am) (?:very |so )?sorry\b|\bI apologi[sz]e\b|\bmy apologies\b"
    r"|\bas an AI\b|\bI made a mistake\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"###|</?Img>|<ImageHere>|\[/?INST\]|</?s>")


def repeats(text: str) -> bool:
    """Whether the same run of words comes again and again."""
    words = re.findall(r"\w+", text.casefold())
    runs = Counter(zip(*(words[start:] for start in range(RUN)), strict=False))
    return any(count >= TIMES for count in runs.values())


# In the order in which they are tried; the first that is broken counts.
RULES: dict[str, Callable[[str], bool]] = {
    "apology": lambda text: _PHRASES.search(text.replace("’", "'")) is not None,
    "incomplete": lambda text: "incomplete" in text.lower(),
    "control text": lambda text: _CONTROL.search(text) is not None,
    "short": lambda text: len(text) < FEWEST,
    "repetition": repeats,
}


def broken_rule(text: str) -> str | None:
    """The name of the first rule that a text breaks."""
    return next((name for name, is_broken in RULES.items() if is_broken(text)), None)
