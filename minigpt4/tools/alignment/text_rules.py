"""Text rules: repair a draft; find the rule that a text breaks."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

_FEW = 2
_ENDS = re.compile(r"[.!?][\"')\]]*$")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])\s*|\n+")
# The same words three times in a row or more; twice may be meant ("very, very").
_LOOP = re.compile(r"\b(\w+(?:\W+\w+){0,7}?)(?:\W+\1\b){2,}", re.IGNORECASE)
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)
# What ChatGPT says where it should have polished.
_APOLOGY = re.compile(
    r"\bI(?:'m| am) (?:very |so )?sorry\b|\bI apologi[sz]e\b|\bmy apologies\b"
    r"|\bas an AI\b|\bI made a mistake\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"###|</?Img>|<ImageHere>|\[/?INST\]|</?s>")
_MIN_LENGTH = 50  # characters
_RUN, _TIMES = 6, 3  # so many words in a row, so often, are a repetition


def repair(text: str) -> str:
    """Remove marks of a prompt, stray symbols, other scripts, repetitions and an unfinished end."""
    text = re.sub(r"</?\w[^<>]{0,40}>|\[/?INST\]", " ", text.translate(_PLAIN))
    sentences = [_clean(part) for part in _split(text) if _is_english(part)]
    kept: list[str] = []
    seen = set()
    for sentence in sentences:
        words = tuple(re.findall(r"\w+", sentence.casefold()))
        # Of few words it may be an abbreviation: "Mr. Smith" is no sentence and a half.
        if words and (len(words) <= _FEW or words not in seen):
            seen.add(words)
            kept.append(sentence)
    if kept and not _ENDS.search(kept[-1]):
        kept.pop()
    return " ".join(kept)


def whole_sentences(text: str) -> str:
    """Return a text that was cut off up to its last whole sentence; all of it without one."""
    *whole, last = _split(text) or [""]
    return " ".join(whole if whole and not _ENDS.search(last) else [*whole, last])


def _split(text: str) -> list[str]:
    sentences, start = [], 0
    for gap in _BETWEEN_SENTENCES.finditer(text):
        # Quotes and brackets that close belong to what they close.
        sentences.append(text[start : gap.start()] + gap[0].rstrip())
        start = gap.end()
    return [sentence.strip() for sentence in (*sentences, text[start:]) if sentence.strip()]


def _is_english(sentence: str) -> bool:
    """Whether two letters in three are Latin."""
    letters = [c for c in sentence if c.isalpha()]
    return bool(letters) and 3 * sum(map(_is_latin, letters)) >= 2 * len(letters)


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN ")


def _clean(sentence: str) -> str:
    """Return a sentence in plain characters, without stray symbols and without loops."""
    kept = (c if c.isascii() or (c.isalpha() and _is_latin(c)) else " " for c in sentence)
    text = "".join(c if c.isprintable() else " " for c in kept)
    text = re.sub(r"[#*_~^|\\{}<>=@`]+", " ", text)
    text = re.sub(r"([!?,;:'\"-])\1{2,}", r"\1", text)  # dots may be an ellipsis
    text = re.sub(r"\.{4,}", "...", text)
    text = _LOOP.sub(r"\1", text)
    return re.sub(r"\s+([.,!?;:])", r"\1", " ".join(text.split()))


def _repeats(text: str) -> bool:
    words = re.findall(r"\w+", text.casefold())
    runs = Counter(zip(*(words[start:] for start in range(_RUN)), strict=False))
    return any(count >= _TIMES for count in runs.values())


# In the order in which they are tried; the first that is broken counts.
RULES: dict[str, Callable[[str], bool]] = {
    "apology": lambda text: _APOLOGY.search(text.replace("’", "'")) is not None,
    "incomplete": lambda text: "incomplete" in text.lower(),
    "control text": lambda text: _CONTROL.search(text) is not None,
    "short": lambda text: len(text) < _MIN_LENGTH,
    "repetition": _repeats,
}


def broken_rule(text: str) -> str | None:
    return next((name for name, is_broken in RULES.items() if is_broken(text)), None)
