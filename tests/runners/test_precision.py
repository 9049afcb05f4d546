"""``run.precision``, the original's ``run.amp``, and ``run.device``."""

from pathlib import Path

import pytest
import torch

from minigpt4.assembly import build_accelerator, build_model
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.errors import ConfigError
from minigpt4.models.build import choose_dtype
from minigpt4.preflight.preflight import preflight
from minigpt4.registry import RUNNERS, bind
from minigpt4.runners.options import ComputeOptions
from tests.helpers.messages import one_line, several_lines
from tests.helpers.training import STAGE1, stage1_options

TINY = "eval_configs/tiny_eval.yaml"
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def dtype_of(*options: str, device: torch.device = CPU) -> torch.dtype:
    config = load_config(TINY, ["model.ckpt=", *options])
    model = build_model(check_sections(config, "chat"), device)
    for name in ("llama_model.lm_head.weight", "visual_encoder.blocks.0.mlp.fc1.weight"):
        assert model.get_parameter(name).dtype == model.compute_dtype
    assert model.llama_proj.weight.dtype == torch.float32
    return model.compute_dtype


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], torch.float32),
        (["run.precision=bf16"], torch.bfloat16),
        (["model.precision=bf16"], torch.bfloat16),
        (["model.precision=bf16", "run.precision=fp32"], torch.float32),
        (["model.precision=fp32", "run.precision=bf16"], torch.bfloat16),
        (["model.precision=bf16", "run.amp=True"], torch.bfloat16),
        (["run.amp=True"], torch.float32),
        (["run.amp=False"], torch.float32),
        (["run.amp=False", "run.precision=fp32"], torch.float32),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_which_setting_decides(options: list[str], expected: torch.dtype) -> None:
    assert dtype_of(*options) == expected


def test_on_a_gpu_auto_is_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda value=has_bf16: value)
        assert choose_dtype("auto", GPU) == expected
    assert choose_dtype("auto", torch.device("mps")) == torch.bfloat16
    for name, expected in (("fp32", torch.float32), ("fp16", torch.float16)):
        assert choose_dtype(name, GPU) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_next_to_amp_false_is_an_error(
    precision: str, scenes: Path, tmp_path: Path
) -> None:
    options = [*stage1_options(scenes, tmp_path), "run.amp=False", f"run.precision={precision}"]
    with one_line(ConfigError, f"run.precision: {precision} contradicts run.amp: False"):
        preflight(load_config(STAGE1, options), "training")
    with several_lines(ConfigError, "model.precision: bf16", f"run.precision: {precision}"):
        preflight(load_config(STAGE1, [*options, "model.precision=bf16"]), "training")


@pytest.mark.parametrize("section", ["run", "model"])
def test_fp16_on_a_cpu_names_the_key_that_asked_for_it(section: str) -> None:
    with one_line(ConfigError, f"{section}.precision: fp16 needs a GPU"):
        dtype_of(f"{section}.precision=fp16")


@pytest.mark.parametrize(
    "option", [{"precision": "fp8"}, {"precision": 16}, {"device": "tpu"}, {"shard": "ddp"}]
)
def test_unknown_words_are_faults_of_the_config(option: dict[str, object]) -> None:
    (fault,) = bind(RUNNERS.get("runner_base"), option, "run", partial=True)[1]
    (key,) = option
    assert fault.key == f"run.{key}"


@pytest.mark.parametrize(("device", "mention"), [("cuda", "no usable GPU"), ("mps", "has none")])
def test_a_device_that_is_not_there_is_one_line(
    device: str, mention: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with one_line(ConfigError, f"run.device: {device}, but this machine", mention):
        options = stage1_options(scenes, tmp_path, device=device)
        preflight(load_config(STAGE1, options), "training")


def test_a_cpu_can_be_chosen() -> None:
    assert build_accelerator(ComputeOptions(device="cpu")).device.type == "cpu"


@pytest.mark.gpu
def test_fp32_on_a_gpu_is_not_tf32() -> None:
    on_gpu = dtype_of("run.precision=fp32", device=torch.device("cuda", 0))
    assert on_gpu == torch.float32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
