"""Text processors: a raw caption → the text that is learnt.

Source: BLIP's caption processor; exact against ``tests/golden/processors/blip_caption.json``.
"""

import re
from collections.abc import Callable
from functools import partial

from minigpt4.config.checks import Positive
from minigpt4.registry import TEXT_PROCESSORS

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


@TEXT_PROCESSORS.register("blip_caption")
def build_blip_caption(prompt: str = "", max_words: Positive = 50) -> Callable[[str], str]:
    """Lower-case, drop some punctuation, squeeze white space, cut.

    Args:
        prompt: Put in front of every caption.
        max_words: Words after which a caption is cut.
    """
    return partial(_process_caption, prompt, max_words)


def _process_caption(prompt: str, max_words: int, caption: str) -> str:
    text = _SPACES.sub(" ", _PUNCTUATION.sub(" ", caption.lower()))
    words = text.rstrip("\n").strip(" ").split(" ")
    return prompt + " ".join(words[:max_words])


@TEXT_PROCESSORS.register("plain_text")
def build_plain_text() -> Callable[[str], str]:
    """Leave the text as it is (stage-2 descriptions)."""
    return str
