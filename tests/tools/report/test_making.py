"""The report as a user gets it: its page, its files, and what it makes of broken folders."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.__main__ import main
from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.report.charts import smooth
from minigpt4.tools.report.making import make_report
from tests.helpers.data_files import write_rows
from tests.helpers.repo import EntryPoint
from tests.tools.report.folders import (
    HOSTILE,
    PARTS,
    TEXTS,
    add_validation,
    log_rows,
    make_evaluation,
    make_full_runs,
    make_run,
    settings,
    valid_row,
)  # fmt: skip
from tests.tools.report.pages import Page

LOSSES = [{"epoch": 0, "step": 10 * n, "loss": 4 / n} for n in range(1, 11)]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a report on everything; no warning, of missing letters or else, was given."""
    folder = tmp_path_factory.mktemp("full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_report(make_full_runs(folder / "runs"), folder / "report")
    return folder / "report"


@pytest.fixture(scope="module")
def page(full: Path) -> Page:
    return Page(full / "report.html")


def report(*folders: Path, output: Path) -> Page:
    return Page(make_report(folders, output))


def test_it_needs_nothing_beside_itself(page: Page):
    assert "script" not in page.tags
    assert not page.handlers
    assert {link.partition(":")[0] for link in page.links if not link.startswith("#")} == {"data"}
    assert "url(http" not in page.content
    assert "@import" not in page.content


def test_every_part_is_there_and_in_the_contents(page: Page):
    for part in PARTS:
        assert f"#{part}" in page.links
        assert page.texts[part].strip()


def test_charts_lie_beside_it_as_pictures(full: Path):
    for name in ("loss", "lr", "grad_norm", "samples_per_second", "data_wait", "memory_gb",
                 "valid_loss", "valid_token_accuracy", "valid_perplexity",
                 "valid_contains"):  # fmt: skip
        with Image.open(full / f"{name}.png") as picture:
            assert picture.width > 800


def test_the_head_says_what_the_runs_were(page: Page):
    runs = page.texts["runs"]
    for text in ("stage1", "stage2", "finished", "minigpt4 tiny", "cc_sbu, laion", "2 × Tesla T4",
                 "train.py --cfg-path 'a b.yaml'", "0123456789ab on main, with changes",
                 "22 November 2026, 08:16 UTC", "torch 2.15.0"):  # fmt: skip
        assert text in runs
    assert "Take checkpoint_best.pth: the best loss 0.25, at epoch 3, step 100." in runs


def test_the_sheet_joins_what_the_runs_said_of_a_picture(page: Page):
    told = page.texts["samples"]
    order = [told.index(text) for text in ("reference", "before stage1", "after stage1",
                                           "after stage2")]  # fmt: skip
    assert order == sorted(order)
    assert "the the the the" in told
    assert "The picture shows a small" in told


def test_failures_are_those_that_score_lowest(page: Page):
    told = page.texts["failures"]
    places = [told.index(text) for text in TEXTS]
    assert places == sorted(places)
    assert "The picture shows" not in told  # these are right


def test_texts_are_texts(page: Page):
    """Of other scripts, of both directions, and what looks like a page's own."""
    for text in TEXTS:
        assert text in page.text
    assert HOSTILE not in page.content


def test_an_evaluation_shows_its_intervals(page: Page):
    told = " ".join(page.texts["evaluations"].split())
    assert "contains 0.42 0.31 – 0.5" in told
    assert "6 (1 unreadable)" in told
    assert "contains: found 2, missed 3" in told


def test_looks_show_words_and_overlays_of_their_folder_only(page: Page):
    told = page.texts["looks"]
    assert "token 16" in told
    assert "rouge" in told
    assert "gone" not in told
    assert "'../../config.yaml' cannot be read" in page.texts["notes"]


def test_bad_samples_by_data_set_and_cause(page: Page):
    told = " ".join(page.texts["bad"].split())
    assert "laion unreadable image 7 00001.tar/0" in told
    assert "cc_sbu broken shard 1 00003.tar" in told
    assert "epoch 0, step 60, rank 0 nan llama_model.layers.3 00001/5, 00001/6" in told


def test_only_keys_that_differ_are_listed(page: Page):
    told = page.texts["differences"]
    assert "run.init_lr" in told
    assert "model.prompt_path" in told
    assert "run.iters_per_epoch" not in told


def test_runs_with_other_keys_go_together(tmp_path: Path):
    one = make_run(tmp_path / "one", LOSSES, settings(extra=1))
    rows = [{"epoch": 0, "step": 5, "train_speed": 3, "lr": 1e-4}]
    two = make_run(tmp_path / "two", rows, {"run": {"max_epoch": 1}})
    page = report(one, two, output=tmp_path / "report")
    assert "run.extra" in page.texts["differences"]
    assert (tmp_path / "report" / "loss.png").exists()
    assert (tmp_path / "report" / "lr.png").exists()


def test_a_loss_that_is_no_number_is_marked(tmp_path: Path):
    rows = [{"epoch": 0, "step": n, "loss": None if n > 7 else 1 / n} for n in range(1, 10)]
    (tmp_path / "a").mkdir()
    run = make_run(tmp_path / "a" / "b", rows)
    with open(run / "log.txt", "a") as file:
        file.write('{"epoch": 0, "step": 10, "loss": NaN}\n')
    page = report(run, output=tmp_path / "report")
    assert "Crosses: 3 lines of the log have no finite figure." in page.texts["curves"]
    assert page.content.count("var(--bad)") > 6  # the crosses, beside the page's own use
    rows = [{"epoch": 0, "step": n, "loss": None} for n in range(1, 9)]
    page = report(make_run(tmp_path / "none", rows), output=tmp_path / "report")
    assert "8 lines of the log have no finite figure" in page.texts["curves"]


def test_broken_lines_and_half_a_last_one_are_noted(tmp_path: Path):
    run = make_run(tmp_path / "run", LOSSES)
    whole = (run / "log.txt").read_bytes()
    odd = b'not json\n[1, 2]\n\xff\xfe\n{"epoch": "x", "step": {}}\n'
    (run / "log.txt").write_bytes(odd + whole + b'{"epoch": 0, "st')
    page = report(run, output=tmp_path / "report")
    assert "3 lines are no JSON objects and left out (the first is line 1)" in page.texts["notes"]
    assert "the last line was cut short" in page.texts["notes"]
    assert "1 lines are neither a step, an epoch nor a validation" in page.texts["notes"]
    assert "4 at first" in page.texts["runs"]


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00", "a: !!python/object:os.system {}"])
def test_a_broken_config_is_noted(tmp_path: Path, text: str):
    run = make_run(tmp_path / "run", LOSSES)
    for name in ("config.yaml", "environment.json", "best.json"):
        (run / name).write_text(text)
    page = report(run, output=tmp_path / "report")
    assert "config.yaml" in page.texts["notes"]
    assert page.texts["curves"]


def test_values_of_any_kind_in_the_files(tmp_path: Path):
    """Whatever json can hold where something else is expected."""
    run = make_run(tmp_path / "run", LOSSES)
    odd: list[Any] = [None, True, -1, 1e999, 10**400, "x", [], {}, [[]], "\ud800"]
    fields = (
        *("epoch", "step", "loss", "valid", "data_set", "image", "picture", "reference", "output"),
        *("score", "dataset", "cause", "keys", "shard", "train_loss"),
    )
    for name in ("log.txt", "validation.jsonl", "bad_samples.jsonl", "nonfinite.jsonl"):
        with open(run / name, "a") as file:
            for key in fields:
                for value in odd:
                    row: dict[str, Any] = {"epoch": 0, "step": 1, "output": "a", "image": "b"}
                    file.write(json.dumps(row | {"score": {"x": 1}, key: value}) + "\n")
    for value in odd:
        for name in ("environment.json", "best.json"):
            keys = ("started", "command", "git", "gpus", "packages", "metric", "value", "epoch")
            record = dict.fromkeys([*keys, "step", "processes", "earlier_launches"], value)
            (run / name).write_text(json.dumps(record))
        looks = [{"picture": value, "nearest_words": value, "overlays": [value]}, value]
        (run / "looks").mkdir(exist_ok=True)
        (run / "looks" / "looks.json").write_text(json.dumps(looks))
        evaluation = {"a": {"samples": 1, "b": value, "intervals": {"b": value}}, "c": value}
        (run / "summary.json").write_text(json.dumps(evaluation))
        assert report(run, output=tmp_path / "report").texts["runs"]


def test_a_name_of_any_script(tmp_path: Path):
    name = "训练 تدريب 🙂 $x_1$ _<b>"
    one, two = (make_run(tmp_path / n, LOSSES) for n in (name, f"_{name}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = report(one, two, output=tmp_path / "report")
    assert name in page.texts["curves"]
    assert "<b>" not in page.content.replace("&lt;b&gt;", "")


def test_missing_pictures_leave_the_texts(tmp_path: Path):
    run = make_run(tmp_path / "run", [*LOSSES, valid_row(0, 100, 1.0)])
    add_validation(run, {(0, 0): "nothing", (0, 100): "something"})
    (run / "pictures" / "0.png").unlink()
    (run / "pictures" / "1.png").write_text("no picture")
    page = report(run, output=tmp_path / "report")
    assert page.texts["samples"].count("no picture") == 2
    assert "2 of 3 pictures cannot be read or are gone" in page.texts["notes"]
    assert page.texts["samples"].count("something") == 3


def test_a_long_log_makes_a_small_page(tmp_path: Path):
    run = make_run(tmp_path / "run", [], settings(max_epoch=1, iters_per_epoch=100_000))
    lines = (f'{{"epoch":0,"step":{n},"loss":{1 + (n % 97) / n},"lr":0.1}}\n'
             for n in range(1, 100_001))  # fmt: skip
    (run / "log.txt").write_text("".join(lines))
    page = report(run, output=tmp_path / "report")
    assert len(page.content) < 400_000
    assert "finished" in page.texts["runs"]


def test_smoothing_begins_at_the_first_value_and_follows():
    noisy = [(float(n), 1.0 + (-1) ** n) for n in range(1000)]
    smoothed = smooth(noisy)
    assert smoothed[0] == noisy[0]
    assert all(abs(value - 1) < 0.1 for _, value in smoothed[200:])
    assert smooth([(1.0, 5.0)]) == [(1.0, 5.0)]
    assert smooth([]) == []


def test_a_run_given_twice_is_shown_once(tmp_path: Path):
    run = make_run(tmp_path / "run", LOSSES)
    page = report(run, tmp_path / "." / "run", output=tmp_path / "report")
    assert "given more than once" in page.texts["notes"]
    assert "differences" not in page.texts


def test_a_run_without_a_log_beside_another(tmp_path: Path):
    one, two = (make_run(tmp_path / name, LOSSES) for name in ("one", "two"))
    (two / "log.txt").unlink()
    page = report(one, two, output=tmp_path / "report")
    assert "two: has no log.txt, so no curves" in page.texts["notes"]
    assert "no steps logged" in page.texts["runs"]


def test_failures_of_an_evaluation_show_pictures_that_are_still_there(tmp_path: Path):
    folder = make_evaluation(tmp_path / "heldout")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    images = [str(tmp_path / "red.png"), str(tmp_path / "gone.png"), "00000.tar/000000001"]
    text = {"reference": "a", "output": "b", "score": {"x": 0}}
    write_rows(folder / "heldout.jsonl", [text | {"image": image} for image in images])
    page = report(folder, output=tmp_path / "report")
    assert page.tags.count("img") == 1
    assert "no picture" not in page.text
    assert "runs" not in page.texts
    assert page.texts["evaluations"]


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path):
    page = report(make_run(tmp_path / "run", log_rows(2)), output=tmp_path / "report")
    assert "not finished: step 200 of 400" in page.texts["runs"]


def test_runs_are_called_by_what_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stamps = ("20261122-081615", "20261122-091615")
    one, two = (make_run(tmp_path / "stage1" / stamp, LOSSES) for stamp in stamps)
    other = make_run(tmp_path / "mine", LOSSES)
    told = report(one, two, other, output=tmp_path / "report").texts["curves"]
    for name in ("stage1/20261122-081615", "stage1/20261122-091615", "mine"):
        assert name in told
    monkeypatch.chdir(one)
    assert "stage1" in report(Path("."), output=tmp_path / "report").texts["curves"]


def test_mistakes_are_one_line(tmp_path: Path, run_entry: EntryPoint):
    empty = make_run(tmp_path / "runs" / "empty", LOSSES)
    (empty / "log.txt").unlink()
    good = make_run(tmp_path / "runs" / "good", LOSSES)
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").mkdir()
    for folders, output, told in (
        ([tmp_path / "none"], "report", "none: no such folder"),
        ([tmp_path / "file"], "report", "is a file; name its folder"),
        ([tmp_path / "nothing"], "report", "neither a run's folder"),
        ([tmp_path / "runs"], "report", f"did you mean {good}?"),
        ([empty], "report", "nothing to report on yet"),
        ([good], "file", "cannot be written"),
        ([good], "file/report", "cannot be written"),
    ):
        arguments = ["report", *folders, "--output", tmp_path / output]
        assert told in run_entry.refused(main, *arguments)
    assert run_entry(main, "report", good, "--output", tmp_path / "a" / "b") == (0, "")
    assert (tmp_path / "a" / "b" / "report.html").stat().st_size > 10_000


def test_an_output_that_cannot_be_written_fails_before_the_end(tmp_path: Path):
    run = make_run(tmp_path / "run", LOSSES)
    (tmp_path / "report" / "loss.png").mkdir(parents=True)
    with pytest.raises(MiniGPT4Error, match="cannot be written"):
        make_report([run], tmp_path / "report")


def test_lists_of_lines_may_be_empty(tmp_path: Path):
    run = make_run(tmp_path / "run", LOSSES)
    for name in ("validation.jsonl", "bad_samples.jsonl", "nonfinite.jsonl"):
        write_rows(run / name, [])
    page = report(run, output=tmp_path / "report")
    assert not {"samples", "failures", "bad", "notes"} & set(page.texts)


def test_long_names_and_many_causes_and_figures_make_a_page_of_usual_size(tmp_path: Path):
    figures = {"f" * 400: 0.5, "f" * 401: 0.5} | {f"figure_{n:03}": 0.1 for n in range(60)}
    valid = {"epoch": 0, "step": 10, "valid": {"cc_sbu": figures}}
    run = make_run(tmp_path / "run", [*log_rows(1), valid])
    causes = [{"dataset": "d", "cause": f"cause {n} {'x' * 2000}"} for n in range(3000)]
    write_rows(run / "bad_samples.jsonl", causes)
    page = report(run, output=tmp_path / "out")
    assert len(page.content) < 3_000_000
    assert "2,950 rarer causes are not listed here" in page.text
    assert "more figures of validations have no chart here" in page.text
    assert max(len(file.name) for file in (tmp_path / "out").iterdir()) < 130
    assert len(list((tmp_path / "out").glob("valid_f*.png"))) > 30
