"""The original's recorded numbers and words are ours; and the comparison can fail.

``tests/parity.py`` does the same for any folder. No recording is known by name here.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minigpt4.models.minigpt4 import MiniGPT4
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.checking import check_unit, find_units, main, unchecked_files
from tests.helpers.recorded.comparison import Recorded, Unit, compare, equal, failures
from tests.helpers.recorded.model import (
    Case,
    Mode,
    build_model,
    compare_mode,
    compare_vision,
    find_cases,
    one_case,
)
from tests.helpers.repo import ROOT

UNITS = find_units(GOLDEN)
CASES = find_cases(GOLDEN)


def title(unit: Unit) -> str:
    return f"{unit.kind}: {unit.name}"


@pytest.mark.parametrize("unit", UNITS, ids=title)
def test_everything_recorded_is_reproduced(unit: Unit) -> None:
    results = check_unit(unit)
    assert failures(results) == []
    assert results


def test_no_recording_is_left_out() -> None:
    assert unchecked_files(GOLDEN, UNITS) == []
    assert {unit.kind for unit in UNITS} == {
        "tokenizer",
        "conversation",
        "schedule",
        "images",
        "captions",
        "positions",
        "model",
        "training",
        "manifest",
    }


@cache
def built(case: Case) -> MiniGPT4:
    return build_model(case)


def prompted(case: Case) -> Mode:
    """A mode with one prompt for the batch and no answer that looks like padding."""
    return next(m for m in case.modes() if m.prompts and m.image is not None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_departure_is_stated_where_an_answer_looks_like_padding(case: Case) -> None:
    """Ours learns such a token, the original does not: one target in each case."""
    notes = [result.note for mode in case.modes() for result in compare_mode(built(case), mode)]
    departures = [note for note in notes if note]
    assert len(departures) == 1
    assert departures[0].startswith("departure: 1 more target than the original, loss ")


def _norm_eps(part: str, eps: float) -> Callable[[MiniGPT4], None]:
    def change(model: MiniGPT4) -> None:
        for module in model.get_submodule(part).modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    return change


def _tanh_gelu(model: MiniGPT4) -> None:
    parts = list(model.get_submodule("visual_encoder").modules())
    blocks = [part for part in parts if isinstance(getattr(part, "act", None), nn.GELU)]
    assert blocks
    for block in blocks:
        block.act = nn.GELU(approximate="tanh")  # type: ignore[assignment]


def _square_groups(model: MiniGPT4) -> None:
    """2 × 2 neighbours make an image token instead of four consecutive patches."""
    consecutive = model.encode_frozen

    def encode_frozen(image: torch.Tensor) -> torch.Tensor:
        grouped = consecutive(image)
        batch, tokens, width = grouped.shape
        side = int((4 * tokens) ** 0.5)
        grid = grouped.reshape(batch, side // 2, 2, side // 2, 2, width // 4)
        return grid.transpose(2, 3).reshape(batch, tokens, width)

    model.encode_frozen = encode_frozen  # type: ignore[method-assign]


MUTATIONS: list[tuple[str, dict[str, bool], Callable[[MiniGPT4], None]]] = [
    ("ViT norm eps", {"q_former": True}, _norm_eps("visual_encoder", 1e-5)),
    ("small ViT norm eps", {"small_activations": True}, _norm_eps("visual_encoder", 1e-5)),
    ("ln_vision eps", {"small_activations": True}, _norm_eps("ln_vision", 1e-6)),
    ("Q-Former norm eps", {"q_former": True}, _norm_eps("q_former", 1e-5)),
    ("ViT GELU", {"q_former": True}, _tanh_gelu),
    ("ViT GELU, no Q-Former", {"q_former": False}, _tanh_gelu),
    ("token grouping", {"q_former": False}, _square_groups),
]


@pytest.mark.parametrize(
    ("kind", "change"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_a_changed_model_is_noticed(
    kind: dict[str, bool], change: Callable[[MiniGPT4], None]
) -> None:
    case = one_case(**kind)
    model = build_model(case)
    change(model)
    assert failures(compare_vision(model, case)) != []
    assert failures(compare_mode(model, prompted(case))) != []


def test_a_changed_final_norm_of_the_language_model_is_noticed() -> None:
    case = one_case()
    model = build_model(case)
    model.llama_model.model.norm.variance_epsilon = 1e-3
    assert any("logits" in line for line in failures(compare_mode(model, prompted(case))))


@pytest.mark.parametrize("q_former", [True, False])
@pytest.mark.parametrize("place", ["before the question", "at the end"])
def test_a_missing_prompt_space_is_noticed(q_former: bool, place: str) -> None:
    case = one_case(q_former=q_former)
    mode = prompted(case)
    assert mode.prompts is not None
    for index, prompt in enumerate(mode.prompts):
        changed = prompt.rstrip() if place == "at the end" else prompt.replace("> ", ">")
        assert changed != prompt
        mode.prompts[index] = changed
    assert failures(compare_mode(built(case), mode)) != []


# A recording that differs is noticed, whichever of its parts it is.


def changed(tensor: torch.Tensor) -> torch.Tensor:
    """One entry is another: a real position of the first row."""
    copy = tensor.clone()
    flat = copy.view(-1)
    flat[0] = 1 - flat[0] if copy.dtype == torch.int64 else 1.02 * flat[0] + 0.01
    return copy


def copy_unit(unit: Unit, folder: Path) -> None:
    """The files of a recording, at the same places."""
    files = set(unit.files)
    if unit.kind == "training":  # also needs the model that it starts from
        files |= {f for other in UNITS if other.kind == "model" for f in other.files}
    for file in files:
        target = folder / file.relative_to(GOLDEN)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def check_copy(unit: Unit, folder: Path) -> list[str]:
    (copy,) = (u for u in find_units(folder) if (u.name, u.kind) == (unit.name, unit.kind))
    return failures(check_unit(copy))


def _next(content: Any, *path: Any) -> None:
    """Change one recorded value."""
    for key in path[:-1]:
        content = content[key] if key != "any" else next(iter(content.values()))
    last = path[-1]
    value = content[last]
    if isinstance(value, str):
        content[last] = value + " "
    elif isinstance(value, list):
        value.append(value[-1] if value else 0)
    else:
        content[last] = value + (1 if isinstance(value, int) else max(1e-3, abs(value) * 1e-3))


JSON_CHANGES: dict[str, list[tuple[Any, ...]]] = {
    "tokenizer": [("encode", 3, "ids"), ("decode", 3, "text")],
    "conversation": [("any", "cases", 1, "final_prompt"), ("any", "cases", 1, "messages", 1, 1)],
    "schedule": [(0, "epoch_step_lr", 2, 2)],
    "images": [("train_v1", "any", "torch_manual_seed"), ("images", "any", "size_wh", 0)],
    "captions": [("default", 2, "output")],
    "training": [("runs", "any", "loss", 3), ("runs", "any", "lr", 3)],
    "manifest": [("state_dict", "any", "shape"), ("used", "any", "shape")],
    "model": [
        ("modes", "any", "loss"),
        ("generation", "runs", "any", "turns", 1, "output_ids"),
        ("generation", "batch_generate", "any", "answers", 1),
    ],
}


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind, paths in JSON_CHANGES.items() for path in paths],
    ids=str,
)
def test_a_changed_json_is_noticed(tmp_path: Path, kind: str, path: tuple[Any, ...]) -> None:
    """The first recording of the kind that has such an entry, changed there."""
    for unit in (unit for unit in UNITS if unit.kind == kind):
        for file in (file for file in sorted(unit.files) if file.suffix == ".json"):
            content = json.loads(file.read_text())
            try:
                _next(content, *path)
            except (KeyError, TypeError):
                continue
            copy_unit(unit, tmp_path)
            (tmp_path / file.relative_to(GOLDEN)).write_text(json.dumps(content))
            assert check_copy(unit, tmp_path) != []
            return
    raise AssertionError("no recording has such an entry")


def test_an_unknown_tensor_is_noticed(tmp_path: Path) -> None:
    unit = next(unit for unit in UNITS if unit.kind == "positions")
    copy_unit(unit, tmp_path)
    (file,) = unit.files
    save_file({**Recorded(file), "more": torch.ones(1)}, tmp_path / file.relative_to(GOLDEN))
    assert check_copy(unit, tmp_path) != []


def test_nan_never_holds() -> None:
    nan = torch.tensor([float("nan")])
    assert not compare("x", nan, torch.ones(1)).holds
    assert not compare("x", torch.ones(1), nan).holds
    assert not equal("x", [1, [2, 3]], [1, [2, 4]]).holds


# The program.


def test_the_program_tells_each_figure(tmp_path: Path) -> None:
    folder, lines = tmp_path / "recorded", tmp_path / "lines.json"
    copy_unit(next(unit for unit in UNITS if unit.kind == "tokenizer"), folder)
    program = [sys.executable, str(ROOT / "tests/parity.py"), str(folder), "--json", str(lines)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("figures, 0 over their limit or unchecked")
    assert {line["kind"] for line in json.loads(lines.read_text())} == {"tokenizer"}


def test_the_program_fails_where_a_file_goes_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_unit(next(unit for unit in UNITS if unit.kind == "tokenizer"), tmp_path)
    (tmp_path / "more.json").write_text("{}")
    (tmp_path / "damaged.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("no check reads it") == 2


def test_the_program_fails_where_there_is_nothing_to_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "nothing was checked" in capsys.readouterr().out
    assert main([str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_damaged_recording_is_a_figure_that_does_not_hold(tmp_path: Path) -> None:
    unit = next(unit for unit in UNITS if unit.kind == "model")
    copy_unit(unit, tmp_path)
    weights = next(file for file in unit.files if file.name == "weights.safetensors")
    (tmp_path / weights.relative_to(GOLDEN)).write_bytes(b"damaged")
    (line,) = check_copy(unit, tmp_path)
    assert line.startswith("cannot be checked")
