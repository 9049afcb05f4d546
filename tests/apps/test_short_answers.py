"""Short answers out of long ones."""

import pytest

from minigpt4.apps.short_answers import AnswerForm, check_form, short_answer
from minigpt4.errors import ConfigError
from tests.helpers.messages import one_line


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("Yes, there is a dog in the image.", "yes_no", "Yes"),
        ("no.", "yes_no", "No"),
        ("There is no dog, yes.", "yes_no", "No"),
        ("The nose of the dog cannot be known.", "yes_no", "The nose of the dog cannot be known."),
        ("B", "letter", "B"),
        ("(C) a cat", "letter", "C"),
        ("The answer is D.", "letter", "D"),
        ("A. a dog", "letter", "A"),
        ("A dog lies on a sofa.", "letter", "A dog lies on a sofa."),
        ("A dog, so I say B", "letter", "B"),
        ("It isn'T.", "letter", "It isn'T."),
        ("Yes: B.", "whole", "Yes: B."),
        ("", "yes_no", ""),
    ],
)
def test_what_is_compared(text: str, form: AnswerForm, expected: str):
    assert short_answer(text, form) == expected


def test_an_unknown_form_is_one_line():
    assert check_form("letter") == "letter"
    with one_line(ConfigError, "answer=yesno: unknown form", "whole, yes_no, letter"):
        check_form("yesno")
