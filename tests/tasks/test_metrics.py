import pytest

from minigpt4.errors import MiniGPT4Error
from minigpt4.registry import METRICS
from minigpt4.tasks.metrics import exact_match, score
from tests.messages import one_line


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("a red circle", "a red circle", 1.0),
        (" a  red\ncircle\t", "a red circle", 1.0),
        ("", " ", 1.0),
        ("A red circle", "a red circle", 0.0),
        ("a red circle.", "a red circle", 0.0),
        ("a redcircle", "a red circle", 0.0),
        ("", "a", 0.0),
        ("größer", "größer", 1.0),
    ],
)
def test_exact_match_minds_everything_but_white_space(
    output: str, reference: str, expected: float
) -> None:
    assert exact_match(output, reference) == expected


@pytest.fixture
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    METRICS.names()
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))


@pytest.mark.usefixtures("own_metrics")
def test_every_named_metric_scores_in_the_order_of_the_names() -> None:
    METRICS.register("words")(lambda output, _: len(output.split()))
    scores = score(["words", "exact_match"], "two words", "two words")
    assert list(scores.items()) == [("words", 2.0), ("exact_match", 1.0)]
    assert isinstance(scores["words"], float)
    assert score([], "a", "b") == {}


@pytest.mark.parametrize(
    ("metric", "mention"),
    [
        (lambda output, reference: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda output, reference: None, "TypeError"),
        (lambda output, reference: "many", "ValueError"),
        (lambda output: 1.0, "TypeError"),
        (lambda output, reference: float("nan"), "gives nan"),
        (lambda output, reference: float("inf"), "gives inf"),
    ],
)
@pytest.mark.usefixtures("own_metrics")
def test_a_metric_that_gives_no_number_is_one_line_that_names_it(
    metric: object, mention: str
) -> None:
    METRICS.register("mine")(metric)  # type: ignore[type-var]
    with one_line(MiniGPT4Error, "run.metrics: mine", r"'what\nis this'", mention):
        score(["mine"], "what\nis this", "the reference")
