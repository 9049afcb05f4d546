from collections.abc import Sequence

import pytest

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics import Parts, score_rows
from minigpt4.metrics.coverage import Verdict
from tests.helpers.messages import one_line

OUTPUT = "The image shows a man who is riding a big wave on his surfboards, far out in the ocean."


@pytest.mark.parametrize(
    ("caption", "covered"),
    [
        ("A man rides a wave on a surfboard.", True),  # other endings of the same words
        ("The man is riding the biggest wave of the summer.", False),  # man, ride, wave of five
        ("Two dogs on a sofa.", False),
        ("A man in the ocean", True),
        ("A surfer in the ocean", False),
    ],
)
def test_two_thirds_of_the_words_that_say_something_cover(caption: str, covered: bool) -> None:
    rows = [{"output": OUTPUT, "references": [caption]}]
    assert score_rows(["coverage"], rows).means["coverage"] == covered


def test_a_caption_without_a_content_word_is_unclear() -> None:
    captions = ["A man rides a wave.", "A dog.", "The ocean", "of it"]
    scores = score_rows(["coverage"], [{"output": OUTPUT, "references": captions}])
    assert scores.means == {"coverage": pytest.approx(2 / 3)}
    assert scores.counts["coverage"] == {"unclear": 1}
    assert scores.notes == [{"covered": ["yes", "no", "yes", "unclear"]}]


class Told:
    """A judge who says what a caption says."""

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        return [caption for _, caption in pairs]  # type: ignore[misc]


def test_a_judges_verdicts_count_and_unclear_ones_do_not() -> None:
    rows = [
        {"output": "x", "references": ["yes", "no", "no", "yes", "unclear"]},
        {"output": "y", "references": ["unclear", "no reply"]},
    ]
    scores = score_rows(["judged_captions"], rows, Parts(judge=Told()))
    assert scores.rows == [{"judged_captions": 2.0}, {}]
    counts = {"unclear": 2, "no reply": 1, "unscored": 1}
    assert scores.counts["judged_captions"] == counts


def test_a_judge_who_is_never_clear_leaves_no_figure_and_no_fault() -> None:
    rows = [{"output": "x", "references": ["unclear"]}]
    scores = score_rows(["judged_captions", "length"], rows, Parts(judge=Told()))
    assert scores.means == {"length": 1.0}
    assert scores.counts["judged_captions"] == {"unclear": 1, "unscored": 1}


def test_without_a_judge_one_is_asked_for() -> None:
    with one_line(MiniGPT4Error, "judged_captions asks a judge", "--api-base"):
        score_rows(["judged_captions"], [])
