from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import pytest

from minigpt4.errors import ConfigError, MiniGPT4Error
from minigpt4.metrics import (
    Figure,
    LowerIsBetter,
    Metric,
    Row,
    lower_is_better,
    score_rows,
)
from minigpt4.metrics.question_answering import exact_match
from minigpt4.registry import METRICS
from tests.helpers.messages import one_line


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


def rows_of(*pairs: tuple[str, list[str]]) -> list[dict[str, object]]:
    return [{"output": output, "references": references} for output, references in pairs]


@pytest.mark.usefixtures("own_metrics")
def test_every_named_metric_scores_in_the_order_of_the_names() -> None:
    METRICS.register("words")(lambda output, _: len(output.split()))
    rows = rows_of(("two words", ["two words"]), ("a word too many", ["no"]))
    scores = score_rows(["words", "exact_match"], rows)
    first, second = scores.rows
    assert list(first.items()) == [("words", 2.0), ("exact_match", 1.0)]
    assert second == {"words": 4.0, "exact_match": 0.0}
    assert isinstance(first["words"], float)
    assert scores.means == {"words": 3.0, "exact_match": 0.5}
    assert score_rows([], rows).rows == [{}, {}]
    assert score_rows(["words"], []).means == {}


@pytest.mark.usefixtures("own_metrics")
def test_of_several_references_the_best_counts() -> None:
    def away(output: str, reference: str) -> Annotated[float, LowerIsBetter]:
        return abs(len(output) - len(reference))

    METRICS.register("away")(away)
    (row,) = score_rows(["exact_match", "away"], rows_of(("one", ["other", "one", "x"]))).rows
    assert row == {"exact_match": 1.0, "away": 0.0}
    assert lower_is_better("away")
    assert not lower_is_better("exact_match")
    assert lower_is_better("chair_i")
    with one_line(ConfigError, "unknown metric 'awway'"):
        lower_is_better("awway")


@pytest.mark.usefixtures("own_metrics")
def test_a_metric_of_ones_own_may_look_at_all_rows_together() -> None:
    class Distinct(Metric):
        """Share of outputs that are no other's."""

        lower_is_better = False

        def measure(self, rows: Sequence[Row]) -> Figure:
            times = Counter(row["output"] for row in rows)
            return Figure([float(times[row["output"]] == 1) for row in rows])

    class Short(Metric):
        def measure(self, rows: Sequence[Row]) -> Figure:
            return Figure([])

    METRICS.register("distinct")(Distinct)
    METRICS.register("short")(Short)
    rows = rows_of(("a", ["x"]), ("a", ["x"]), ("b", ["x"]), ("c", ["x"]))
    assert score_rows(["distinct"], rows).means == {"distinct": 0.5}
    with one_line(MiniGPT4Error, "run.metrics: short gives 0 scores for 4 rows"):
        score_rows(["short"], rows)


def test_what_lacks_references_is_counted_and_an_error_where_nothing_has_them() -> None:
    lacking: list[str] = []
    scores = score_rows(["exact_match", "cider"], rows_of(("a", ["a"]), ("b", lacking)))
    assert scores.rows[1] == {}
    assert scores.means["exact_match"] == 1.0
    assert scores.counts == {"exact_match": {"unscored": 1}, "cider": {"unscored": 1}}
    with one_line(MiniGPT4Error, "run.metrics: cider", "none of the 1 samples", "reference"):
        score_rows(["cider"], rows_of(("b", lacking)))


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
        score_rows(["mine"], rows_of(("what\nis this", ["the reference"])))
