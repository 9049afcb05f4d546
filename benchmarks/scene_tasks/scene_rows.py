"""What the tasks of this folder tell lmms-eval about a row; the YAML files name these functions."""

from typing import Any

from PIL import Image

Row = dict[str, Any]


def picture(row: Row) -> list[Image.Image]:
    return [Image.open(row["picture"]).convert("RGB")]


def compare_yes_no(row: Row, results: list[str]) -> dict[str, float]:
    said = results[0].lower()
    return {"accuracy": float(said == row["answer"]), "says_yes": float(said == "yes")}


def next_round(
    row: Row,
    lmms_eval_specific_kwargs: dict[str, Any] | None = None,
    previous_output: list[str] | None = None,
    round_idx: int = 0,
    previous_round_info: Any = None,
) -> Any:
    """The first question; or, after a round, what is shown, asked and kept, and whether to end."""
    if previous_output is None:
        return row["questions"][0]
    done = round_idx == len(row["questions"])
    question = "" if done else row["questions"][round_idx]
    return picture(row), question, done, previous_output, None


def compare_rounds(row: Row, results: list[Any]) -> dict[str, float]:
    (said,) = results
    pairs = zip(said, row["answers"], strict=True)
    return {"accuracy": sum(a == b for a, b in pairs) / len(row["answers"])}
