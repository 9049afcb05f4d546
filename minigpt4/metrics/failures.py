"""Failures: texts that break off, repeat themselves or are empty, as in the paper's Table 3.

The paper does not say how its failures were counted; these are rules of our own, and the reasons
for which a row fails are noted with its score.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from minigpt4.metrics.metric import Figure, Metric, Row, words_of
from minigpt4.registry import METRICS

_ENDS = ".!?…。！？。؟।"  # of a sentence
_CLOSING = "\"'”’»)]}*_」』）"  # may follow the end of a sentence
_SENTENCE = re.compile(rf"[{re.escape(_ENDS)}\n]+")
_MIN_WORDS = 3  # of a sentence that counts as repeated
_MAX_LOOP = 8  # words
_MAX_TURNS = 2  # of the same words in a row
_MIN_LETTERS = 0.6  # of what is not white space
# What only a prompt holds, or a page that was read along with its captions.
_LEAKED = re.compile(r"<\s*/?\s*(?:s|unk|img|imagehere)\s*>|###|\b(?:human|assistant)\s*:", re.I)


def description_faults(text: str) -> list[str]:
    """Name what is wrong with a description; empty for a good one.

    ``empty``: no word. ``unfinished``: does not end as a sentence does. ``repeated``: has a
    sentence twice, or up to eight words three times in a row. ``broken``: holds signs of a prompt,
    invalid characters, or few letters.
    """
    if not words_of(text):
        return ["empty"]
    found = {
        "unfinished": not text.rstrip().rstrip(_CLOSING).endswith(tuple(_ENDS)),
        "repeated": _repeats_a_sentence(text) or _loops(text),
        "broken": _is_broken(text),
    }
    return [name for name, there in found.items() if there]


def _repeats_a_sentence(text: str) -> bool:
    sentences = (tuple(words_of(part)) for part in _SENTENCE.split(text))
    return any(n > 1 for words, n in Counter(sentences).items() if len(words) >= _MIN_WORDS)


def _loops(text: str) -> bool:
    """Whether the same few words come too many times in a row."""
    words = words_of(text)
    for length in range(1, _MAX_LOOP + 1):
        same = 0  # words that equal the one ``length`` words before them
        for before, word in zip(words, words[length:], strict=False):
            same = same + 1 if word == before else 0
            if same == length * _MAX_TURNS:
                return True
    return False


def _is_broken(text: str) -> bool:
    signs = [c for c in text if not c.isspace()]
    kinds = Counter(unicodedata.category(c)[0] for c in signs)
    letters = kinds["L"] + kinds["M"]  # marks are half of a letter in many scripts
    unreadable = "\ufffd" in text or any(unicodedata.category(c) in ("Cc", "Cs") for c in signs)
    return unreadable or bool(_LEAKED.search(text)) or letters < _MIN_LETTERS * len(signs)


@METRICS.register("generation_failure")
class DescriptionFailure(Metric):
    """Share of outputs that are no sound description (the paper's Table 3)."""

    lower_is_better = True

    def measure(self, rows: Sequence[Row]) -> Figure:
        found = [description_faults(row["output"]) for row in rows]
        counts = Counter(fault for faults in found for fault in faults)
        notes = [{"failures": faults} if faults else {} for faults in found]
        return Figure([float(bool(faults)) for faults in found], notes=notes, counts=counts)


@METRICS.register("length")
class Length(Metric):
    """Words of an output, which CHAIR is told with: who says more errs more."""

    needs = "output"

    def score(self, row: Row) -> float:
        return float(len(words_of(row["output"])))
