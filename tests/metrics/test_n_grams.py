"""Known values: by hand, of the metric's paper, or of the library or program that defines it."""

import importlib
from typing import Any

import pytest
import sacrebleu

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics import build_metrics, score_rows
from tests.helpers.messages import one_line

# The captions of no corpus: written for this.
OUTPUTS = {
    "a man riding a wave on a surfboard in the ocean": [
        "a man rides a wave on a surfboard",
        "a surfer on a big wave in the ocean",
    ],
    "a hot dog and a dog on a table": ["a hot dog on a plate"],
    "two cats are sleeping on a couch": [
        "two kittens asleep on a sofa",
        "cats sleeping on a couch",
        "two cats on a couch",
    ],
    "a red bus parked on the street": [
        "a red bus parked on the side of the street",
        "a bus on a street",
    ],
}
ROWS = [{"output": output, "references": texts} for output, texts in OUTPUTS.items()]


def one(metric: str, output: str, *references: str) -> float:
    return score_rows([metric], [{"output": output, "references": list(references)}]).means[metric]


def test_cider_gives_what_the_authors_program_gives() -> None:
    scores = score_rows(["cider"], ROWS)
    # pycocoevalcap 1.2, Cider().compute_score, on these texts
    expected = [3.17932661, 3.04758604, 3.10846974, 3.94504067]
    assert [row["cider"] for row in scores.rows] == pytest.approx(expected, abs=1e-8)
    assert scores.means["cider"] == pytest.approx(3.320105764961386, abs=1e-12)


def test_cider_forgives_case_and_punctuation() -> None:
    loud = [{**row, "output": f"{str(row['output']).upper()}!"} for row in ROWS]
    assert score_rows(["cider"], loud).means == score_rows(["cider"], ROWS).means


@pytest.mark.parametrize(("metric", "ours"), [("bleu", "corpus_bleu"), ("chrf", "corpus_chrf")])
def test_the_corpus_score_is_sacrebleus_and_no_mean(metric: str, ours: str) -> None:
    most = max(map(len, OUTPUTS.values()))
    padded = [[*texts, *[None] * most] for texts in OUTPUTS.values()]
    streams = [[texts[n] for texts in padded] for n in range(most)]
    scores = score_rows([metric], ROWS)
    assert scores.means[metric] == pytest.approx(
        getattr(sacrebleu, ours)(list(OUTPUTS), streams).score, abs=1e-9
    )
    mean = sum(row[metric] for row in scores.rows) / 4
    assert abs(scores.means[metric] - mean) > 1
    low, high = scores.intervals()[metric]
    assert low < scores.means[metric] < high


def test_bleu_of_four_words_by_hand() -> None:
    # n-gram precisions 5/6, 3/5, 1/4 and, smoothed as sacrebleu does, 1/2/3; equal lengths
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert one("bleu", "the cat sat on the mat", "the cat is on the mat") == pytest.approx(expected)
    assert one("bleu", "the cat sat on the mat", "x", "the cat sat on the mat") == pytest.approx(
        100
    )


def test_rouge_l_of_its_papers_example() -> None:
    # Lin (2004): S2 and S3 share a subsequence of 3 and of 2 words of 4 with S1.
    reference = "police killed the gunman"
    assert one("rouge_l", "police kill the gunman", reference) == pytest.approx(3 / 4)
    assert one("rouge_l", "the gunman kill police", reference) == pytest.approx(2 / 4)
    assert one("rouge_l", "police kill the gunman", "no", reference) == pytest.approx(3 / 4)
    assert one("rouge_l", "größer", "größer") == 1.0


def test_nothing_said_is_scored_and_no_fault() -> None:
    rows: list[dict[str, Any]] = [{"output": "", "references": ["a dog"]}]
    scores = score_rows(["bleu", "chrf", "rouge_l", "cider", "coverage"], rows)
    assert set(scores.means.values()) == {0.0}


@pytest.mark.parametrize(
    ("metric", "package"),
    [("bleu", "sacrebleu"), ("rouge_l", "rouge-score"), ("coverage", "nltk")],
)
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, metric: str, package: str
) -> None:
    monkeypatch.setattr("importlib.import_module", _without(package))
    with one_line(MiniGPT4Error, f"{metric} needs {package}", "minigpt4[metrics]"):
        build_metrics([metric])


def _without(package: str) -> Any:
    real = importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name.startswith(package.replace("-", "_")):
            raise ImportError(name)
        return real(name, *rest)

    return load
