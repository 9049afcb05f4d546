"""Question answering: exact match, VQA accuracy, and the right one of several choices."""

import re

from minigpt4.metrics.metric import Metric, Row
from minigpt4.registry import METRICS

_AGREEING = 3  # people who make an answer right
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_OF = {"none": "0", **{word: str(n) for n, word in enumerate(_NUMBERS)}}
_SHORTENED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how's i'm i've isn't it'd ma'am might've mightn't must've mustn't needn't o'clock shan't she's
should've shouldn't somebody's someone's that'd that's there'd there're there's they'd they're
they've wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who's who've why'd why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Written without their apostrophe; no word of its own has these letters.
_CONTRACTIONS = {word.replace("'", ""): word for word in _SHORTENED.split()}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")


def plain_answer(text: str) -> str:
    """An answer as it is compared: lower case, no articles, no marks, digits for small numbers.

    Source: the description of VQA's evaluation (visualqa.org).
    """
    text = " ".join(text.lower().split())
    for mark in _MARKS:
        # One that parts two words becomes a space; one at a word's end, or in a number, nothing.
        glued = f"{mark} " in text or f" {mark}" in text or _THOUSANDS.search(text)
        text = text.replace(mark, "" if glued else " ")
    words = _FULL_STOP.sub("", text).split()
    words = [_NUMBER_OF.get(word, _CONTRACTIONS.get(word, word)) for word in words]
    return " ".join(word for word in words if word not in _ARTICLES)


@METRICS.register("exact_match")
def exact_match(output: str, reference: str) -> float:
    """1.0 when both are equal up to white space, else 0.0."""
    return float(output.split() == reference.split())


@METRICS.register("vqa_accuracy")
class VqaAccuracy(Metric):
    """Share of people who gave the answer, three of them being enough.

    With several answers it is the mean over leaving out each one once, as VQA has it; a sole one
    is right or wrong.
    """

    needs = "answers, a list of what people said, or an answer"

    def score(self, row: Row) -> float | None:
        said = plain_answer(row["output"])
        hits = [plain_answer(other) == said for other in row["references"]]
        if len(hits) < 2:
            return float(hits[0]) if hits else None
        others = (sum(hits) - hit for hit in hits)
        enough = min(_AGREEING, len(hits) - 1)
        return sum(min(count / enough, 1.0) for count in others) / len(hits)


@METRICS.register("multiple_choice")
class MultipleChoice(Metric):
    """Share of questions whose likeliest choice is the right one, by the choices' probability."""

    needs = "choices, a list in the row, with an answer that is one of them"

    def score(self, row: Row) -> float | None:
        if "choice" not in row:
            return None
        return float(row["output"] == row["choices"][row["choice"]])


@METRICS.register("multiple_choice_per_token")
class MultipleChoicePerToken(MultipleChoice):
    """Likewise by the mean over a choice's tokens, which does not favour short ones."""

    def score(self, row: Row) -> float | None:
        if "choice" not in row or "log_probabilities" not in row:
            return None
        means = [p / n for p, n in zip(row["log_probabilities"], row["tokens"], strict=True)]
        return float(means.index(max(means)) == row["choice"])
