"""Tasks for lmms-eval about drawn scenes: small ones that need no network.

    python benchmarks/make_scene_tasks.py --scenes output/quickstart/scenes/heldout_seen \
        --output output/scene_tasks

The folder is then what lmms-eval takes as ``--include_path``. ``scene_yes_no`` compares a generated
yes or no, ``scene_choice`` the probabilities of four answers, ``scene_rounds`` the answers of two
rounds. Chance is 0.5 and 0.25 for the first two.
"""

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt4.errors import ConfigError, MiniGPT4Error, run_guarded
from minigpt4.tools.tiny_world.data_sets import read_heldout
from minigpt4.tools.tiny_world.phrases import Question, questions
from minigpt4.tools.tiny_world.scenes import COLORS, Scene

TASKS = Path(__file__).parent / "scene_tasks"
_CHOICES = 4

Row = dict[str, Any]


def yes_no_row(asked: dict[str, Question], rng: random.Random) -> Row:
    question = asked["yesno"]
    return {"question": question.text, "answer": "yes" if "Yes" in question.answer else "no"}


def choice_row(asked: dict[str, Question], rng: random.Random) -> Row | None:
    """The right answer among three that name another colour; None where no shape is alone."""
    if "color" not in asked:
        return None
    question = asked["color"]
    (right,) = (color for color in COLORS if color in question.answer)
    colors = [right, *rng.sample([color for color in COLORS if color != right], _CHOICES - 1)]
    rng.shuffle(colors)
    choices = [question.answer.replace(right, color) for color in colors]
    return {"question": question.text, "choices": choices, "answer": colors.index(right)}


def rounds_row(asked: dict[str, Question], rng: random.Random) -> Row:
    rounds = [asked["count"], asked["background"]]
    return {
        "questions": [question.text for question in rounds],
        "answers": [question.answer for question in rounds],
    }


KINDS = {"scene_yes_no": yes_no_row, "scene_choice": choice_row, "scene_rounds": rounds_row}


def write_tasks(scenes: Sequence[tuple[Scene, Path]], output: Path, seed: int) -> dict[str, int]:
    """Rows of every task with its YAML; how many rows each has.

    Raises:
        ConfigError: for a folder that holds something else.
    """
    if output.exists() and not (output / "scene_yes_no.yaml").is_file() and any(output.iterdir()):
        raise ConfigError(f"--output {output}: holds other files; name a folder of its own")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy(TASKS / "scene_rows.py", output)
    counts = {}
    for name, make in KINDS.items():
        rng = random.Random(f"{seed}/{name}")
        rows = []
        for scene, file in scenes:
            row = make({question.kind: question for question in questions(scene, rng)}, rng)
            if row is not None:
                rows.append({"picture": str(file.absolute()), **row})
        file = output / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = (TASKS / f"{name}.yaml").read_text()
        (output / f"{name}.yaml").write_text(task.replace("ROWS", str(file.absolute())))
        counts[name] = len(rows)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=Path, required=True, help="a held-out split")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tasks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        counts = write_tasks(read_heldout(arguments.scenes), arguments.output, arguments.seed)
    except OSError as error:
        raise MiniGPT4Error(f"{arguments.output}: cannot be written ({error})") from error
    for name, count in counts.items():
        print(f"{name}: {count} questions in {arguments.output / name}.jsonl")


if __name__ == "__main__":
    run_guarded(main)
