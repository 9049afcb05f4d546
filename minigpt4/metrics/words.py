"""Words: a text → its words, the ones that say something, and their stems."""

import functools
import re
from collections.abc import Callable

from minigpt4.metrics.libraries import load_library

_WORD = re.compile(r"\w+(?:['’]\w+)*")
# What a sentence is built with, and what describes pictures as such.
_FUNCTION_WORDS = """
a an the this that these those and or but nor so yet if then than as at by for from in into of
off on onto out over per to toward towards under up upon via with within without about above
across after against along among around before behind below beneath beside besides between
beyond down during inside near outside past since through throughout till until while where when
which who whom whose what why how there here it its it's he him his she her hers they them their
theirs we us our ours you your yours i me my mine himself herself itself themselves is are was
were be been being am do does did doing done has have had having can could may might must shall
should will would not no very too also just only even still again both each every either neither
some any all many much more most few several such other another same own one ones top next
front back side image picture photo photograph shows showing shown show depicts depicting see
seen appears appear appearing
"""


_SAYS_NOTHING = frozenset(_FUNCTION_WORDS.split())


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("’", "'"))


def content_words(text: str, stem: Callable[[str], str]) -> set[str]:
    """Stems of the words that say something."""
    return {stem(word.removesuffix("'s")) for word in words_of(text) if word not in _SAYS_NOTHING}


def load_stemmer(metric: str) -> Callable[[str], str]:
    """Porter's stemmer, which puts a word's forms together; by nltk, which needs no data for it.

    Raises:
        MiniGPT4Error: where nltk is not installed.
    """
    stemmer = load_library(metric, "nltk.stem.porter").PorterStemmer()
    return functools.lru_cache(maxsize=100_000)(stemmer.stem)
