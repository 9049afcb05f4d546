import pytest

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics import score_rows
from minigpt4.metrics.question_answering import plain_answer
from tests.helpers.messages import one_line


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Yes.", "yes"),
        ("  on   the\ntable. ", "on table"),
        ("A Cat", "cat"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black-and-white", "black and white"),
        ("yes, it is", "yes it is"),
        ("dont know", "don't know"),
        ("New York!", "new york"),
        ("größer", "größer"),
    ],
)
def test_answers_are_compared_without_what_vqa_takes_away(text: str, plain: str) -> None:
    assert plain_answer(text) == plain


def accuracy(output: str, *answers: str) -> float:
    rows = [{"output": output, "references": list(answers)}]
    return score_rows(["vqa_accuracy"], rows).means["vqa_accuracy"]


@pytest.mark.parametrize(
    ("hits", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_of_ten_people_each_is_left_out_once(hits: int, expected: float) -> None:
    # With 2 of 10: left out are 2 × (1 of 3) and 8 × (2 of 3), so 0.6.
    assert accuracy("Two.", *["2"] * hits, *["3"] * (10 - hits)) == pytest.approx(expected)


def test_a_sole_answer_is_right_or_wrong_and_two_need_one_who_agrees() -> None:
    assert accuracy("The cat.", "cat") == 1.0
    assert accuracy("dog", "cat") == 0.0
    assert accuracy("cat", "cat", "dog") == 0.5


def test_multiple_choice_by_the_whole_and_by_the_token() -> None:
    row = {
        "output": "no",
        "references": ["a long answer"],
        "choices": ["no", "a long answer"],
        "choice": 1,
        "log_probabilities": [-2.0, -3.0],
        "tokens": [1, 3],
    }
    names = ["multiple_choice", "multiple_choice_per_token"]
    assert score_rows(names, [row]).means == {names[0]: 0.0, names[1]: 1.0}
    other = {"output": "no", "references": ["no"]}
    assert score_rows(names[:1], [row, other]).counts == {names[0]: {"unscored": 1}}
    with one_line(MiniGPT4Error, "multiple_choice: none of the 1 samples", "choices"):
        score_rows(names[:1], [other])
