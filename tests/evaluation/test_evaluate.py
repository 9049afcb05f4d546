"""``evaluate`` as it is called: rows of one's own, other metrics, another question, a judge."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from minigpt4.__main__ import main as command
from minigpt4.chat import load_chat
from minigpt4.chat.likelihood import choice_likelihoods
from tests.helpers.chat_server import chat_server, completion
from tests.helpers.data_files import read_rows
from tests.helpers.repo import EntryPoint

TINY = "eval_configs/tiny_evaluate.yaml"


def summary_of(output: Path) -> dict[str, Any]:
    found = json.loads((output / "summary.json").read_text(encoding="utf-8"))["mine"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def evaluated(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of those rows, done once."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    names = ["bleu", "cider", "multiple_choice", "vqa_accuracy", "generation_failure"]
    config = str(few / "mine.yaml")
    command(["evaluate", "--cfg-path", config, "--output", str(output), "--metrics", *names])
    return output


def copied(evaluated: Path, to: Path) -> Path:
    to.mkdir()
    for file in evaluated.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_what_rows_say_comes_along(evaluated: Path) -> None:
    rows = read_rows(evaluated / "mine.jsonl")
    assert rows[0]["references"] == ["a red circle", "one circle"]
    assert rows[0]["reference"] == "a red circle"
    assert rows[1]["reference"] == "a blue square"
    assert rows[1]["objects"] == ["square"]
    assert rows[2]["question"] == "What is it?"
    assert rows[2]["references"] == ["cross"] * 9 + ["x"]
    assert rows[2]["reference"] == "cross"
    assert (rows[3]["choices"], rows[3]["choice"]) == (["circle", "a star"], 1)
    assert rows[3]["reference"] == "a star"
    assert rows[4]["choice"] == 0
    assert list(rows[4])[:2] == ["image", "reference"]
    assert rows[4]["notes"] == {"failures": ["unfinished"]}


def test_the_summary_has_figures_intervals_and_counts(evaluated: Path) -> None:
    summary = summary_of(evaluated)
    metrics = ["bleu", "cider", "multiple_choice", "vqa_accuracy", "generation_failure"]
    assert list(summary) == ["samples", "unreadable", *metrics, "intervals", "counts"]
    for metric in metrics:
        low, high = summary["intervals"][metric]
        assert low <= summary[metric] <= high
    assert summary["counts"]["multiple_choice"] == {"unscored": 3}


def test_the_output_is_the_likeliest_choice(few: Path, evaluated: Path) -> None:
    chat = load_chat(str(few / "mine.yaml"))
    (image,) = chat.encode_images([few / "heldout_seen" / "image" / "3.jpg"])
    asked = chat.start()
    asked.conversation.add_image()
    asked.conversation.ask("Which is it?")
    (told,) = choice_likelihoods(
        chat,
        [asked.conversation.prompt()],
        [[image]],
        [["circle###", "a star###"]],  # with the end of an answer
    )
    row = read_rows(evaluated / "mine.jsonl")[3]
    totals = [choice.log_probability for choice in told]
    assert row["log_probabilities"] == pytest.approx(totals, abs=1e-3)
    assert row["tokens"] == [choice.tokens for choice in told]
    assert row["output"] == row["choices"][totals.index(max(totals))]
    assert row["score"]["multiple_choice"] == float(row["output"] == "a star")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_rescoring_generates_nothing_and_takes_the_scores_place(
    run_entry: EntryPoint, evaluated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = copied(evaluated, tmp_path / "out")
    before = read_rows(output / "mine.jsonl")
    arguments = ["evaluate", "--rescore", "--output", output]
    with caplog.at_level(logging.INFO):
        code, stderr = run_entry(command, *arguments, "--metrics", "rouge_l", "chair_s")
    assert code == 0, stderr
    after = read_rows(output / "mine.jsonl")
    assert [row["output"] for row in after] == [row["output"] for row in before]
    assert {*after[1]["score"]} == {"rouge_l", "chair_s"}
    assert {*after[0]["score"]} == {"rouge_l"}
    summary = summary_of(output)
    assert list(summary) == ["samples", "unreadable", "rouge_l", "chair_s", "intervals", "counts"]
    assert summary["counts"] == {"chair_s": {"unscored": 4}}
    assert "mine: chair_s: unscored 4" in caplog.text
    # The first metrics again: the very files of the evaluation.
    names = ["bleu", "cider", "multiple_choice", "vqa_accuracy", "generation_failure"]
    assert run_entry(command, *arguments, "--metrics", *names)[0] == 0
    for name in ("mine.jsonl", "summary.json"):
        assert (output / name).read_bytes() == (evaluated / name).read_bytes()


def test_one_question_for_all_samples(run_entry: EntryPoint, few: Path, tmp_path: Path) -> None:
    asked = "Write a poem about this image."
    arguments = ["evaluate", "--cfg-path", few / "mine.yaml", "--output", tmp_path / "out"]
    more = ["--prompt", asked, "--metrics", "length"]
    run_entry.ok(command, *arguments, *more)
    chat = load_chat(str(few / "mine.yaml"))
    files = [few / "heldout_seen" / "image" / f"{n}.jpg" for n in range(5)]
    answers = [chat.ask(asked, [file], do_sample=False) for file in files]
    assert [row["output"] for row in read_rows(tmp_path / "out" / "mine.jsonl")] == answers
    assert {row["question"] for row in read_rows(tmp_path / "out" / "mine.jsonl")} == {asked}


# A judge


def test_a_judge_is_asked_about_each_caption_once_in_all(
    run_entry: EntryPoint, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-this-test")
    output = copied(evaluated, tmp_path / "out")
    metrics = ["--metrics", "judged_captions"]
    with chat_server() as server:
        server.answer = lambda text, _: completion(
            "Yes." if "Caption: a red circle" in text else "No, it does not."
        )
        judge = ["--api-base", server.api_base, "--model", "judge-1"]
        arguments = ["evaluate", "--rescore", "--output", output, *metrics, *judge]
        run_entry.ok(command, *arguments)
        assert set(server.asked.values()) == {1}
        assert server.keys[0] == "Bearer a-key-of-this-test"
        assert {body["temperature"] for body in server.requests} == {0.0}
        asked = len(server.requests)
        assert run_entry(command, *arguments)[0] == 0
        assert len(server.requests) == asked, "verdicts are kept"
    first = read_rows(output / "mine.jsonl")[0]
    assert first["score"] == {"judged_captions": 1.0}
    assert first["notes"] == {"judged": ["yes", "no"]}
    assert {file.name for file in output.iterdir()} == {"mine.jsonl", "summary.json", "judge"}


def test_a_judge_that_answers_nonsense_is_asked_again_and_counted(
    run_entry: EntryPoint, evaluated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = copied(evaluated, tmp_path / "out")
    with chat_server() as server:
        server.answer = lambda text, _: completion(
            "yes" if "single word" in text and "Caption: a square" in text else "Bananas! Yes, no?"
        )
        arguments = ["evaluate", "--rescore", "--output", output, "--api-base", server.api_base]
        run_entry.ok(command, *arguments, "--metrics", "judged_captions", "length")
        questions = len(server.asked)
    pairs = {
        (row["output"], text)
        for row in read_rows(output / "mine.jsonl")
        for text in row.get("references", [row["reference"]])
    }
    assert questions == 2 * len(pairs), "once, and once with a reminder"
    assert read_rows(output / "mine.jsonl")[1]["notes"] == {"judged": ["unclear", "yes"]}
    summary = summary_of(output)
    assert summary["judged_captions"] == 1.0
    counts = summary["counts"]["judged_captions"]
    assert counts == {"unclear": 15, "unscored": 4}
    assert "the judge: unclear to 15 of 16 questions" in caplog.text


def test_a_judge_that_has_gone_is_one_line_and_the_outputs_stay(
    run_entry: EntryPoint, evaluated: Path, tmp_path: Path
) -> None:
    output = copied(evaluated, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    judge = ["--api-base", "http://127.0.0.1:9/v1", "--attempts", "1"]
    arguments = ["evaluate", "--rescore", "--output", output, "--metrics", "judged_captions"]
    assert "http://127.0.0.1:9/v1: no reply to 3 texts in a row" in run_entry.refused(
        command, *arguments, *judge
    )
    assert {name: (output / name).read_bytes() for name in before} == before


# What a user can get wrong


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rescore"], "--rescore: name the metrics, with --metrics or by --cfg-path"),
        (["--rescore", "--metrics", "bleu"], "holds no outputs (.jsonl) to score again"),
        (["--rescore", "--metrics", "blue"], "unknown metric 'blue'; known: "),
        (["--rescore", "--metrics", "bleu", "--prompt", "x"], "--prompt: nothing is asked with"),
        (["--metrics", "bleu"], "--cfg-path: missing"),
        (["--cfg-path", TINY, "--metrics", "blue"], "run.metrics: unknown metric 'blue'; known: "),
        (["--cfg-path", TINY, "--prompt", " "], "--prompt: empty"),
        (["--cfg-path", TINY, "--metrics", "judged_captions"], "judged_captions asks a judge"),
        (["--cfg-path", TINY, "--api-base", "judge"], "--api-base judge: is no address"),
        (["--cfg-path", TINY, "--attempts", "0"], "--attempts: 0 must be greater than 0"),
        (["--cfg-path", TINY, "--max-cost", "3"], "--max-cost: needs --price-in"),
        (["--cfg-path", TINY, "--objects", "gone.json"], "--objects gone.json: cannot be read"),
        (["--cfg-path", TINY, "--object-words", "gone.yaml"], "--object-words gone.yaml: cannot"),
    ],
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_mistake_is_one_line_before_anything_is_loaded(
    run_entry: EntryPoint, few: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    options = [
        f"model.ckpt={few}/projection.pth",
        f"datasets.cc_sbu_align.build_info.storage={few}/heldout_seen",
    ]
    more = ["--options", *options] if TINY in arguments else []
    assert expected in run_entry.refused(
        command, "evaluate", "--output", tmp_path, *arguments, *more
    )


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_folder_of_another_evaluation_is_left_alone(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "--cfg-path", few / "mine.yaml", "--output", tmp_path]
    for content, expected in (
        ('{"coco": {"samples": 3}}', "holds the results of coco"),
        ("[]", "holds the results of another program"),
        ("no json", "its summary.json cannot be read"),
    ):
        (tmp_path / "summary.json").write_text(content)
        error = run_entry.refused(command, *arguments)
        assert f"run.output_dir: {tmp_path} {expected}" in error
        assert "choose another folder" in error
        assert (tmp_path / "summary.json").read_text() == content


def test_any_text_is_scored_again(run_entry: EntryPoint, tmp_path: Path) -> None:
    texts = ["one\u2028two\x85three", "größer 🍓", "\ud83c half"]
    rows = [{"image": "a", "reference": text, "output": text} for text in texts]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "mine.jsonl").write_bytes("".join(lines).encode(errors="backslashreplace"))
    metrics = ["exact_match", "bleu", "chrf", "rouge_l", "cider", "coverage", "vqa_accuracy"]
    arguments = ["evaluate", "--rescore", "--output", tmp_path, "--metrics", *metrics]
    run_entry.ok(command, *arguments)
    assert summary_of(tmp_path)["exact_match"] == 1.0
    text = (tmp_path / "mine.jsonl").read_text(encoding="utf-8")
    after = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert [row["output"] for row in after] == texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("nothing\n", "mine.jsonl:1: is not json"),
        ('{"image": "a", "caption": "b"}\n', "mine.jsonl:1: has neither reference and output"),
        ("", "datasets.mine: holds no sample to evaluate"),
        ('{"image": "a", "error": "gone"}\n', "datasets.mine: no readable sample; the first: a: "),
    ],
)
def test_outputs_that_are_none_are_one_line(
    run_entry: EntryPoint, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "mine.jsonl").write_text(content)
    arguments = ["evaluate", "--rescore", "--output", tmp_path, "--metrics", "length"]
    assert expected in run_entry.refused(command, *arguments)


def test_an_empty_split_is_one_line(run_entry: EntryPoint, few: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--cfg-path", few / "mine.yaml", "--output", tmp_path / "out"]
    options = ["--options", "datasets.mine.val_fraction=0.000001"]
    assert "datasets.mine: " in run_entry.refused(command, *arguments, *options)
    assert not (tmp_path / "out").exists()
