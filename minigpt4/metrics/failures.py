"""Failures: texts that break off, go round in circles or are none, as in the paper's Table 3.

The paper does not say how its failures were told; these are rules of our own, and what each row
failed by is written beside its score.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from minigpt4.metrics.figures import Figure, Metric, Row
from minigpt4.metrics.words import words_of
from minigpt4.registry import METRICS

_ENDS = ".!?…。！？。؟।"  # of a sentence
_CLOSING = "\"'”’»)]}*_」』）"  # what may stand behind it
_GOING_ON = ",;:-–—"  # what a poem's last line does not end with
_SENTENCE = re.compile(rf"[{re.escape(_ENDS)}\n]+")
_LEAST_WORDS = 3  # of a sentence that counts as said again
_LONGEST_LOOP = 8  # words
_WAITING = frozenset(("a", "an", "the", "and", "or", "but", "of", "with", "to", "from", "as", "my"))
_LEAST_LETTERS = 0.6  # of what is not white space
# What only a prompt holds, or a page that was read along with its captions.
_LEAKED = re.compile(r"<\s*/?\s*(?:s|unk|img|imagehere)\s*>|###|\b(?:human|assistant)\s*:", re.I)


def description_faults(text: str) -> list[str]:
    """What makes a text no description, by name; nothing for a sound one.

    ``empty``: no word. ``unfinished``: does not end as a sentence does. ``repeated``: says a
    sentence twice, or up to eight words three times in a row. ``broken``: holds signs of a prompt,
    characters that are none, or few letters.
    """
    ended = text.rstrip().rstrip(_CLOSING).endswith(tuple(_ENDS))
    return _faults(text, not ended, most=1, turns=3)


def poem_faults(text: str) -> list[str]:
    """Likewise of a poem, which may end without a full stop and say a line twice.

    ``unfinished``: ends with a comma, or with a word that waits for another. ``repeated``: says a
    line three times, or up to eight words four times in a row.
    """
    last = text.rstrip().rstrip(_CLOSING)
    words = words_of(last)
    waiting = bool(words) and last[-1:].isalpha() and words[-1] in _WAITING
    return _faults(text, last.endswith(tuple(_GOING_ON)) or waiting, most=2, turns=4)


def _faults(text: str, unfinished: bool, most: int, turns: int) -> list[str]:
    if not words_of(text):
        return ["empty"]
    found = {
        "unfinished": unfinished,
        "repeated": _says_again(text, most) or _loops(text, turns),
        "broken": _is_broken(text),
    }
    return [name for name, there in found.items() if there]


def _says_again(text: str, most: int) -> bool:
    """Whether a sentence or line comes more often than ``most`` times."""
    told = (tuple(words_of(part)) for part in _SENTENCE.split(text))
    return any(n > most for words, n in Counter(told).items() if len(words) >= _LEAST_WORDS)


def _loops(text: str, turns: int) -> bool:
    """Whether the same few words come so many times in a row."""
    words = words_of(text)
    for length in range(1, _LONGEST_LOOP + 1):
        same = 0  # words that are what stood ``length`` words before them
        for before, word in zip(words, words[length:], strict=False):
            same = same + 1 if word == before else 0
            if same == length * (turns - 1):
                return True
    return False


def _is_broken(text: str) -> bool:
    signs = [c for c in text if not c.isspace()]
    kinds = Counter(unicodedata.category(c)[0] for c in signs)
    letters = kinds["L"] + kinds["M"]  # marks are half of a letter in many scripts
    unreadable = "\ufffd" in text or any(unicodedata.category(c) in ("Cc", "Cs") for c in signs)
    return unreadable or bool(_LEAKED.search(text)) or letters < _LEAST_LETTERS * len(signs)


class _FailureRate(Metric):
    lower_is_better = True

    def measure(self, rows: Sequence[Row]) -> Figure:
        found = [type(self).faults(row["output"]) for row in rows]
        counts = Counter(fault for faults in found for fault in faults)
        notes = [{"failures": faults} if faults else {} for faults in found]
        return Figure([float(bool(faults)) for faults in found], notes=notes, counts=counts)

    faults: ClassVar[staticmethod]  # type: ignore[type-arg]


@METRICS.register("generation_failure")
class DescriptionFailure(_FailureRate):
    """Share of outputs that are no sound description (the paper's Table 3)."""

    faults = staticmethod(description_faults)


@METRICS.register("poem_failure")
class PoemFailure(_FailureRate):
    """Share of outputs that are no sound poem (the paper's Table 3)."""

    faults = staticmethod(poem_faults)


@METRICS.register("length")
class Length(Metric):
    """Words of an output, which CHAIR is told with: who says more errs more."""

    needs = "output"

    def measure(self, rows: Sequence[Row]) -> Figure:
        return Figure([float(len(words_of(row["output"]))) for row in rows])
