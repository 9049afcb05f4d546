"""The quantisation benchmark compares gradients, and a wrong one fails it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks import quantization
from minigpt4.models.minigpt4 import MiniGPT4

SMALL = ["--device", "cpu", "--width", "64", "--layers", "2", "--batch", "2", "--repeats", "1"]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install -e '.[quantize]'",
)


def test_gradients_of_both_language_models_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert quantization.main([*SMALL, "--json", str(file)]) == 0
    models = json.loads(file.read_text())["models"]
    rows = {(name, row["quantize"]): row for name, found in models.items() for row in found}
    assert set(rows) == {(name, kind) for name in models for kind in ("int8", "nf4")}
    # Of the embedded default's widths NF4 can have none on a CPU.
    assert "multiples of 64" in rows.pop(("embedded", "nf4"))["refused"]
    assert all(0.9 < row["cosine"] < 1 for row in rows.values())
    assert rows["random", "int8"]["cosine"] > rows["random", "nf4"]["cosine"]
    assert all(row["speed"] > 0 for row in rows.values())
    assert "cosine" in capsys.readouterr().out


def test_a_wrong_gradient_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gradient = quantization.gradient

    def wrong(model: MiniGPT4, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
        right = gradient(model, pixels, texts)
        exact = model.llama_model.model.layers[0].mlp.up_proj.weight.is_floating_point()
        return right if exact else -right

    monkeypatch.setattr(quantization, "gradient", wrong)
    assert quantization.main(SMALL) == 1
    assert "random, int8: cosine -" in capsys.readouterr().out


def test_what_was_not_measured_is_told() -> None:
    refused = {"quantize": "nf4", "refused": "no"}
    good, nan = ({"quantize": "int8", "cosine": cosine} for cosine in (0.995, float("nan")))
    assert quantization.missed({"embedded": [refused, good]}) == ["nf4: not measured"]
    assert "embedded, int8: cosine nan is below 0.99" in quantization.missed({"embedded": [nan]})
