"""lmms-eval itself, in an environment of its own: it asks what it should, and counts what was said.

Runs on a random projection: what matters here is that its figures are those of the chat.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.make_scene_tasks import write_tasks
from minigpt4.apps.short_answers import short_answer
from minigpt4.chat import Chat, load_chat
from minigpt4.chat.likelihood import choice_likelihoods
from minigpt4.tools.tiny_world.data_sets import read_heldout
from tests.helpers.data_files import read_rows
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, tiny_assets

YAML = "eval_configs/tiny_eval.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python() -> Path:
    command = ["make", "--no-print-directory", "lmms-env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".lmms-env" / "bin" / "python"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(read_heldout(scenes / "heldout_seen"), folder, seed=0)
    return folder


def evaluate(
    command: list[str | Path], tasks: Path, output: Path, names: str, *model_args: str
) -> subprocess.CompletedProcess[str]:
    arguments = [
        *("-m", "lmms_eval", "--model", "minigpt4", "--include_path", tasks, "--tasks", names),
        *("--model_args", ",".join([f"cfg_path={YAML}", *model_args]), "--device", "cpu"),
        *("--batch_size", "4", "--output_path", output, "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output)}
    return finished([*command, *arguments], ROOT, **offline)


def samples(output: Path, task: str) -> list[dict[str, Any]]:
    (file,) = output.glob(f"*/*_samples_{task}.jsonl")
    return sorted(read_rows(file), key=lambda row: row["doc_id"])


def score(output: Path, task: str, metric: str) -> float:
    (file,) = output.glob("*/*_results.json")
    return float(json.loads(file.read_text())["results"][task][f"{metric},none"])


@pytest.fixture(scope="module")
def output(
    python: Path, tasks: Path, projection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What lmms-eval writes about all three tasks."""
    folder = tmp_path_factory.mktemp("evaluated")
    given = (f"model.ckpt={projection}", "answer=yes_no")
    names = "scene_yes_no,scene_choice,scene_rounds"
    done = evaluate([python], tasks, folder, names, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def chat(projection: Path) -> Chat:
    torch.manual_seed(0)
    return load_chat(ROOT / YAML, [f"model.ckpt={projection}", *tiny_assets()], device="cpu")


def test_generated_answers_are_the_chats(output: Path, tasks: Path, chat: Chat):
    rows, told = read_rows(tasks / "scene_yes_no.jsonl"), samples(output, "scene_yes_no")
    for row, sample in zip(rows, told, strict=True):
        said = chat.ask(row["question"], [Path(row["picture"])], max_new_tokens=16)
        assert sample["filtered_resps"] == short_answer(said, "yes_no")
    right = [sample["accuracy"] for sample in told]
    assert score(output, "scene_yes_no", "accuracy") == pytest.approx(sum(right) / len(right))


def test_the_likeliest_choice_is_taken(output: Path, tasks: Path, chat: Chat):
    rows, told = read_rows(tasks / "scene_choice.jsonl"), samples(output, "scene_choice")
    hits = []
    for row, sample in zip(rows, told, strict=True):
        conversation = chat.start().conversation
        conversation.add_image()
        conversation.ask(row["question"])
        image = chat.encode_images([Path(row["picture"])])
        choices = [choice + "###" for choice in row["choices"]]
        (scored,) = choice_likelihoods(chat, [conversation.prompt()], [[*image]], [choices])
        losses = [-one.log_probability / one.tokens for one in scored]
        found = [float(loss) for loss, _ in sample["filtered_resps"]]
        assert found == pytest.approx(losses, rel=1e-3)
        hits.append(losses.index(min(losses)) == row["answer"])
    assert score(output, "scene_choice", "acc") == pytest.approx(sum(hits) / len(hits))


def test_each_round_is_a_question_of_its_own(output: Path, tasks: Path, chat: Chat):
    rows, told = read_rows(tasks / "scene_rounds.jsonl"), samples(output, "scene_rounds")
    for row, sample in zip(rows, told, strict=True):
        asked = row["questions"]
        said = [chat.ask(q, [Path(row["picture"])], max_new_tokens=16) for q in asked]
        assert sample["filtered_resps"] == [short_answer(text, "yes_no") for text in said]


def test_two_processes_share_the_questions(
    python: Path, tasks: Path, output: Path, projection: Path, tmp_path: Path
):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = (f"model.ckpt={projection}", "answer=yes_no")
    done = evaluate([python, *launcher], tasks, tmp_path, "scene_yes_no", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = ("doc_id", "filtered_resps", "accuracy")
    alone, shared = (
        [{key: sample[key] for key in kept} for sample in samples(folder, "scene_yes_no")]
        for folder in (output, tmp_path)
    )
    assert shared == alone


def test_a_mistake_is_named(python: Path, tasks: Path, projection: Path, tmp_path: Path):
    given = (f"model.ckpt={projection}", "model.max_text_len=3")
    done = evaluate([python], tasks, tmp_path, "scene_yes_no", *given)
    # lmms-eval's exit code is 0 whatever happens.
    assert not [*tmp_path.glob("*/*_results.json")]
    expected = "model.max_text_len: unknown key; did you mean 'max_txt_len'?"
    assert expected in done.stdout + done.stderr
