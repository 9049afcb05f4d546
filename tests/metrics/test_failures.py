import pytest

from minigpt4.metrics import score_rows
from minigpt4.metrics.failures import description_faults

SOUND = [
    "The image shows a dog. It sits on a sofa, and looks very, very happy.",
    'A sign on the wall says "Open 24 hours."',
    "Ein Hund läuft über die Straße.",
    "犬がソファの上に座っています。",
    "1. A dog on the left.\n2. A cat on the right.",
]


@pytest.mark.parametrize("text", SOUND)
def test_a_sound_description_has_no_fault(text: str) -> None:
    assert description_faults(text) == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["empty"]),
        (" ...\n", ["empty"]),
        ("The image shows a dog sitting on", ["unfinished"]),
        ("The image shows a dog, a cat,", ["unfinished"]),
        ("A dog sits here. It is big. A dog sits here.", ["repeated"]),
        ("There is a dog and a dog and a dog and a dog in it.", ["repeated"]),
        ("A dog the the the the", ["unfinished", "repeated"]),
        ("A dog on a sofa. ### Human: what else?", ["broken"]),
        ("A dog <Img> on a sofa.", ["broken"]),
        ("A d\ufffdg on a sofa.", ["broken"]),
        ("x 12 %% 34 -- 56 ;; 78 .", ["broken"]),
    ],
)
def test_what_is_wrong_with_a_description_has_a_name(text: str, faults: list[str]) -> None:
    assert description_faults(text) == faults


def test_rates_and_reasons_are_told() -> None:
    outputs = ["A dog.", "A dog", "A dog. It is a dog. It is a dog", ""]
    rows = [{"output": text, "references": ["a dog"]} for text in outputs]
    scores = score_rows(["generation_failure", "length"], rows)
    assert scores.means == {"generation_failure": 0.75, "length": 3.5}
    counts = {"unfinished": 2, "repeated": 1, "empty": 1}
    assert scores.counts == {"generation_failure": counts}
    assert scores.notes[0] == {}
    assert scores.notes[2] == {"failures": ["unfinished", "repeated"]}
