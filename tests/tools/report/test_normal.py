"""Sentences on a run: each is decided by its figures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from minigpt4.config import load_config
from minigpt4.tools.report import normal
from minigpt4.tools.report.normal import judge, reference_charts, vocabulary_size
from minigpt4.tools.report.runs import Run, Series
from tests.tools.report.folders import settings

CURVES = json.loads(Path(normal.__file__).with_name("tiny_curves.json").read_text())


def a_run(
    losses: list[float], config: dict[str, Any] | None = None, every: int = 10, **curves: Series
) -> Run:
    steps = [every * n for n in range(1, len(losses) + 1)]
    return Run(Path("a"), "a", config or {}, curves={"loss": Series(steps, losses), **curves})


def full_size(model: str, **run: Any) -> dict[str, Any]:
    config = settings(2, **run)
    config["model"] |= {"model_type": "pretrain_vicuna0", "llama_model": model}
    return config


def told(run: Run, level: str) -> str:
    return " ".join(verdict.text for verdict in judge(run) if verdict.level == level)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_recorded_curves_are_inside_their_own_band(stage: int, seed: int):
    curve = CURVES["stages"][f"stage{stage}"][seed]
    run = a_run([loss for _, loss in curve], settings(stage, **CURVES["settings"][f"stage{stage}"]))
    assert "Inside the band of the embedded default's three seeds throughout." in told(run, "good")
    assert told(run, "bad") == told(run, "note") == ""
    (chart,) = reference_charts(run, 0, "normal")
    assert chart.band is not None
    steps, lows, highs = chart.band
    assert steps == [step for step, _ in curve]
    assert all(low < high for low, high in zip(lows, highs, strict=True))


@pytest.mark.parametrize(
    ("stage", "name"), [(1, "tiny_stage1_pretrain"), (2, "tiny_stage2_finetune")]
)
def test_the_recorded_curves_are_those_of_the_shipped_files(stage: int, name: str):
    shipped = load_config(f"train_configs/{name}.yaml").run
    recorded = CURVES["settings"][f"stage{stage}"]
    assert {key: shipped[key] for key in recorded} == recorded


def test_a_log_that_is_written_less_often_is_compared_over_the_same_steps():
    curve = [loss for _, loss in CURVES["stages"]["stage1"][0]]
    means = [sum(curve[n : n + 5]) / 5 for n in range(0, len(curve), 5)]
    run = a_run(means, settings(), every=50)
    assert "Inside the band of the embedded default's three seeds throughout." in told(run, "good")


def test_a_run_that_learns_less_is_above_the_band_and_says_what_was_other():
    losses = [loss for _, loss in CURVES["stages"]["stage1"][0]]
    worse = [loss if n < 12 else losses[11] for n, loss in enumerate(losses)]
    run = a_run(worse, settings(init_lr=0.5))
    assert "Above the band of the embedded default's three seeds from step " in told(run, "note")
    assert "run.init_lr 0.5 instead of 0.01" in told(run, "note")


def test_own_data_is_not_held_against_the_scenes():
    config = settings()
    config["datasets"] = {"my_pairs": {}}
    run = a_run([4.0, 3.0, 2.0, 1.0], config)
    assert "band" not in told(run, "good")
    assert reference_charts(run, 0, "normal") == []


@pytest.mark.parametrize("loss", [10.375, math.log(32_000)])
def test_a_dead_model_stays_at_the_logarithm_of_its_vocabulary(loss: float):
    run = a_run([loss] * 20, full_size("/weights/vicuna-7b"))
    assert "which is ln 32,000 = 10.373" in told(run, "bad")
    assert "does not fall" not in told(run, "bad")


def test_the_vocabulary_is_that_of_the_models_folder():
    assert vocabulary_size({"model": {"llama_model": "assets/tiny/llama"}}) == 640
    assert vocabulary_size({"model": {"llama_model": "/path/to/vicuna"}}) is None
    assert vocabulary_size(full_size("/path/to/vicuna")) == 32_000
    assert vocabulary_size({}) is None


def test_a_loss_that_does_not_fall_or_rises_again():
    assert "The loss does not fall: 3 at the start, 3 at the end." in told(a_run([3.0] * 20), "bad")
    rising = [3 - 0.1 * n for n in range(20)] + [1.1 + 0.1 * n for n in range(20)]
    assert "The loss rises again: 1.15 about step 220" in told(a_run(rising), "note")
    assert "The loss falls from 3 to 1." in told(a_run([3.0, 2.5, 2.0, 1.5, 1.0]), "good")


def test_figures_that_people_reported_of_7b():
    run = a_run([1.5, 1.2, 1.0, 0.9], full_size("/weights/vicuna-7b-v0"), every=250)
    run.epoch_losses = {0: 1.21, 1: 0.98, 2: 0.93}
    assert "Mean loss of epoch 3 is 0.930, near the 0.927" in told(run, "good")
    run.epoch_losses = {0: 2.21}
    assert "Mean loss of epoch 1 is 2.210, above the 1.212" in told(run, "note")
    (chart,) = reference_charts(run, 0, "normal")
    assert [line.name for line in chart.lines] == ["a", "as reported"]
    assert [value for _, value in chart.lines[1].points] == [1.212, 0.979, 0.927, 0.905, 0.891]


def test_figures_that_people_reported_of_13b():
    run = a_run([3.8, 3.0, 2.2, 1.9], full_size("/weights/vicuna-13b"))
    assert "people reported 3.8 and 1.9 for 13B stage 2" in told(run, "good")
    assert not reference_charts(run, 0, "normal")


def test_pictures_that_are_not_looked_at():
    run = a_run([])
    for shuffled, level in ((1.001, "bad"), (1.5, "good")):
        run.valid = {"a": {"loss": Series([9], [1.0]), "shuffled_loss": Series([9], [shuffled])}}
        assert f"with exchanged pictures {shuffled:.3g}" in told(run, level)
    assert "The model does not look at the pictures." not in told(run, "bad")


def test_samples_learnt_by_heart():
    run = a_run([])
    run.valid = {"a": {"loss": Series([1, 2, 3, 4], [2.0, 1.0, 1.2, 1.4])}}
    assert "lowest (1) at step 2 and is 1.4 at the end" in told(run, "note")


def test_waiting_for_data():
    run = a_run([], data_wait=Series([1, 2, 3], [0.4, math.nan, 0.6]))
    assert "50% of the time went into waiting for data" in told(run, "note")
