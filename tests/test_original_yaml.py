"""Forms in which the original's own YAML files came over its life; they load as they are."""

from pathlib import Path

import pytest

from minigpt4.config import Config, check_config, load_config
from minigpt4.errors import ConfigError
from minigpt4.runners.preparation import check_run
from tests.test_readme import stand_in_paths

PROCESSORS = """
    vis_processor: {train: {name: blip2_image_train, image_size: 224}}
    text_processor: {train: {name: blip_caption}}"""
RUN = """
run:
  task: image_text_pretrain
  lr_sched: linear_warmup_cosine_lr
  init_lr: 1e-4
  min_lr: 8e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 4
  num_workers: 4
  warmup_steps: 5000
  iters_per_epoch: 5000
  seed: 42
  output_dir: output/minigpt4_stage1_pretrain
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: [train]
  device: cuda
  world_size: 1
  dist_url: env://
  distributed: True
  wandb_log: True
  job_name: minigpt4_pretrain
"""


def stage1(arch: str, model_type: str, batch_size: str = "batch_size: 64") -> str:
    data = "".join(
        f"\n  {name}:\n    {batch_size}{PROCESSORS}\n    sample_ratio: {ratio}"
        for name, ratio in (("laion", 115), ("cc_sbu", 14))
    )
    return f"model: {{arch: {arch}, model_type: {model_type}}}\ndatasets:{data}\n{RUN}"


def load(tmp_path: Path, text: str, *options: str) -> Config:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    names = ("model.llama_model", "datasets.laion.build_info.storage")
    paths = stand_in_paths(tmp_path)
    paths["datasets.cc_sbu.build_info.storage"] = paths["datasets.laion.build_info.storage"]
    given = [f"{name}={paths[name]}" for name in (*names, "datasets.cc_sbu.build_info.storage")]
    config = load_config(file, [*given, *options])
    check_config(config, across=check_run)
    return config


@pytest.mark.parametrize(
    ("arch", "model_type", "random_crop"),
    [
        ("minigpt4", "pretrain_vicuna0", None),
        ("minigpt4", "pretrain_llama2", None),
        ("mini_gpt4", "pretrain_vicuna", True),
        ("mini_gpt4", "pretrain_vicuna0", True),
        ("mini_gpt4", "pretrain_llama2", None),
    ],
)
def test_every_name_of_the_model(
    tmp_path: Path, arch: str, model_type: str, random_crop: bool | None
) -> None:
    config = load(tmp_path, stage1(arch, model_type))
    train = config.datasets["laion"]["vis_processor"]["train"]
    assert train.get("random_crop") == random_crop
    assert config.chat["template"].startswith("llama" if "llama" in model_type else "vicuna")


def test_the_batch_size_stands_with_the_data_sets_or_with_the_run(tmp_path: Path) -> None:
    config = load(tmp_path, stage1("minigpt4", "pretrain_vicuna0"))
    assert config.datasets["laion"]["batch_size"] == 64
    (tmp_path / "b").mkdir()
    text = stage1("minigpt4", "pretrain_vicuna0", batch_size="data_type: images")
    with pytest.raises(ConfigError, match=r"run\.batch_size_train: missing, and datasets\.laion"):
        load(tmp_path / "b", text)
    (tmp_path / "c").mkdir()
    load(tmp_path / "c", text, "run.batch_size_train=32")


@pytest.mark.parametrize("path", ["/path/to/it", "/absolute/path/to/it/", "./path/to/weights.pth"])
def test_placeholders_of_any_form_are_faults(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="placeholder"):
        load(tmp_path, stage1("minigpt4", "pretrain_vicuna0"), f"model.ckpt={path}")
