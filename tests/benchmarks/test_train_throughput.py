"""The throughput table measures every mode it names, and bars that were not met are told."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import train_throughput, training_steps
from benchmarks.training_steps import MODES, SIZES, Mode, Steps
from minigpt4.errors import NothingCheckedError
from minigpt4.models.minigpt4 import MiniGPT4

CPU = torch.device("cpu")
TINY = ["--size", "tiny", "--batch", "2", "--repeats", "1", "--device", "cpu"]
EAGER = [mode for mode in MODES if mode != "compiled"]  # compiling takes its time


@pytest.fixture(scope="module")
def model() -> MiniGPT4:
    torch.manual_seed(0)
    return training_steps.build(SIZES["tiny"], CPU)


def losses(model: MiniGPT4, mode: Mode, stage: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step; nothing is learnt from it."""
    found: list[Any] = []

    def keep(trained: Any) -> None:
        found.append(trained[0].grad.clone())
        for parameter in trained:
            parameter.grad = None  # the optimizer leaves it out

    steps = Steps(model, averaged=keep)
    with torch.random.fork_rng():
        torch.manual_seed(stage)
        inputs = training_steps.draw(model, SIZES["tiny"], stage, [4, 9, 20], random.Random(0))
    handle = model.register_forward_hook(lambda *given: found.append(given[2].item()))
    try:
        steps.step(mode, inputs)
    finally:
        handle.remove()
    return (found[0], found[1]) if mode.sdpa else (float("nan"), found[0])


def test_every_mode_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert train_throughput.main([*TINY, "--modes", *EAGER, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert {"size", "device", "torch", "date", "threads"} <= set(figures)
    rows = figures["rows"]
    assert [(row["stage"], row["mode"]) for row in rows] == [(s, m) for s in (1, 2) for m in EAGER]
    measured = ("samples_per_second", "tokens_per_second", "share_of_ceiling", "ratio")
    assert all(row[name] > 0 for row in rows for name in measured)
    memory = {(row["stage"], row["mode"]): row["peak_memory_bytes"] for row in rows}
    for stage in (1, 2):
        assert memory[stage, "cached"] < memory[stage, "prefix"]
        assert memory[stage, "checkpointed"] < memory[stage, "packed"] < memory[stage, "trainable"]
    assert memory[2, "packed"] < memory[2, "sdpa"] < memory[2, "original"]
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.slow
def test_the_compiled_mode_is_a_row_too() -> None:
    assert train_throughput.main([*TINY, "--modes", "compiled", "cached", "--stages", "1"]) == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_every_mode_on_pixels_computes_the_same_step(model: MiniGPT4, stage: int) -> None:
    loss, gradient = losses(model, MODES["packed"], stage)
    for name in ("original", "sdpa", "prefix", "trainable", "checkpointed"):
        found, got = losses(model, MODES[name], stage)
        if MODES[name].sdpa:
            assert found == pytest.approx(loss, abs=1e-5)
        assert (got - gradient).abs().max() < 1e-5 * gradient.abs().max(), name
    # What a mode changed is as it was.
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "llama_proj.weight",
        "llama_proj.bias",
    ]
    assert all("forward" not in vars(m) for m in model.llama_model.modules())


def test_cached_features_leave_the_towers_alone(model: MiniGPT4) -> None:
    called = []
    assert model.visual_encoder is not None
    patches = model.visual_encoder.patch_embed
    handle = patches.register_forward_hook(lambda *_: called.append(1))  # type: ignore[operator,union-attr]
    losses(model, Mode(cached=True), 1)
    assert not called
    losses(model, Mode(), 1)
    assert called
    handle.remove()


def test_large_models_are_made_on_the_device_alone() -> None:
    """On the device without memory, nothing of the 55 GB is made on the CPU first."""
    made: list[MiniGPT4] = []
    allocated = training_steps.peak_memory(
        CPU, lambda: made.append(training_steps.build(SIZES["13b"], torch.device("meta")))
    )
    assert allocated < 1e6
    assert all(parameter.is_meta for parameter in made[0].parameters())


def row(stage: int, mode: str, **figures: float) -> dict[str, Any]:
    given = {"step_seconds": 1.0, "peak_memory_bytes": 10, "samples_per_second": 1e9, "ratio": 9.0}
    return {"stage": stage, "mode": mode, **given, **figures}


GOOD = [
    row(stage, mode, **figures)
    for stage in (1, 2)
    for mode, figures in {
        "packed": {},
        "compiled": {},
        "cached": {"step_seconds": 0.9, "peak_memory_bytes": 9},
        "trainable": {"step_seconds": 1.31},
    }.items()
]


def test_only_bars_that_were_missed_or_not_measured_are_told() -> None:
    assert train_throughput.missed(GOOD, SIZES["7b"]) == []
    rows = [
        row(1, "packed", samples_per_second=300.0, ratio=1.1),
        row(1, "prefix"),
        row(1, "cached", peak_memory_bytes=10),
        row(1, "trainable", step_seconds=1.2),
        row(2, "packed") | {"out_of_memory": True},
    ]
    assert train_throughput.missed(rows, SIZES["7b"]) == [
        "stage 1, packed: ratio 1.10 is below 1.15",
        "stage 1, compiled: ratio was not measured",
        "stage 1, step_seconds of trainable over packed: 1.20, more than 1.3 is asked for",
        "stage 1, step_seconds of prefix over cached: 1.00, more than 1.0 is asked for",
        "stage 1, peak_memory_bytes of prefix over cached: 1.00, more than 1.0 is asked for",
        "stage 2, packed: samples_per_second was not measured",
        "stage 2, step_seconds of trainable over packed: not measured",
        "stage 2, step_seconds of prefix over cached: not measured",
        "stage 2, peak_memory_bytes of prefix over cached: not measured",
    ]


def test_a_missed_bar_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = {1: {"packed": {"ratio": 1e6}}}
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], bars=bars))
    assert train_throughput.main([*TINY, "--modes", "--stages", "1"]) == 1
    assert "is below 1000000.0" in capsys.readouterr().out


def test_nothing_measured_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(Steps, "step", fail)
    with pytest.raises(NothingCheckedError, match="ran out of memory"):
        train_throughput.main([*TINY, "--modes", "--stages", "1"])
    assert NothingCheckedError.exit_code == 1
