"""Forms in which the original's own YAML files came over its life; they load as they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.__main__ import main
from minigpt4.config import Config, load_config
from minigpt4.errors import ConfigError
from minigpt4.preflight.preflight import preflight
from minigpt4.registry import MODELS
from tests.helpers.llama_folders import TRAINED, llama_folder
from tests.helpers.repo import EntryPoint
from tests.helpers.stand_ins import stand_in_paths

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
    config = load_config(file, [*given, "run.device=auto", *options])
    preflight(config, "training")
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


# Whole files as the original had them, unmodified: both generations, both language models.

_ALIGN = """
datasets:
  cc_sbu_align:{batch}
    vis_processor: {{train: {{name: {image}, image_size: 224}}}}
    text_processor: {{train: {{name: blip_caption}}}}
"""


def model_section(first_release: bool, llama2: bool, ckpt: bool = True) -> str:
    lines = [f"arch: {'mini_gpt4' if first_release else 'minigpt4'}"]
    kind = "pretrain_llama2" if llama2 else "pretrain_vicuna" + "0" * (not first_release)
    lines.append(f"model_type: {kind}")
    if first_release:
        lines += ["freeze_vit: True", "freeze_qformer: True"]
    if ckpt:
        lines += [
            "max_txt_len: 160",
            'end_sym: "</s>"' if llama2 else 'end_sym: "###"',
            'prompt_path: "prompts/alignment.txt"',
            "prompt_template: '[INST] {} [/INST] '"
            if llama2
            else "prompt_template: '###Human: {} ###Assistant: '",
            "ckpt: '/path/to/stage1/checkpoint/'",
        ]
    return "model:" + "".join(f"\n  {line}" for line in lines) + "\n"


def original_stage1(first_release: bool, llama2: bool) -> str:
    data = stage1("minigpt4", "", "data_type: images" if first_release else "batch_size: 64")
    rest = "datasets:" + data.split("datasets:", 1)[1]
    if first_release:
        rest = rest.replace("    data_type: images\n", "")
        rest += "  batch_size_train: 64\n  batch_size_eval: 64\n"
    return model_section(first_release, llama2, ckpt=False) + rest


def original_stage2(first_release: bool, llama2: bool) -> str:
    run, batch = RUN.replace("5000", "200"), "\n    batch_size: 12"
    if first_release:
        run = run[: run.index("  wandb_log")] + "  batch_size_train: 12\n  batch_size_eval: 12\n"
        batch = ""
    data = _ALIGN.format(batch=batch, image="blip2_image_train")
    return model_section(first_release, llama2) + data + run


def original_eval(first_release: bool, llama2: bool) -> str:
    model = model_section(first_release, llama2) + "  low_resource: True\n"
    data = _ALIGN.format(batch="", image="blip2_image_eval")
    return model + data + "run:\n  task: image_text_pretrain\n"


FORMS = {"stage 1": original_stage1, "stage 2": original_stage2, "chat": original_eval}
GENERATIONS = [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("first_release", "llama2"), GENERATIONS)
def test_an_original_file_lacks_nothing_but_its_paths(
    tmp_path: Path, run_entry: EntryPoint, form: str, first_release: bool, llama2: bool
) -> None:
    file = tmp_path / "original.yaml"
    file.write_text(FORMS[form](first_release, llama2))
    device = "run.device=auto"  # the original's files name cuda, which may not be here
    code, stderr = run_entry(main, "check", "--cfg-path", file, "--options", device)
    assert code == 2
    faults = [line for line in stderr.splitlines() if ": " in line and "ignored" not in line]
    paths = ("model.llama_model", "model.ckpt", "build_info.storage")
    for fault in faults[1:] or faults:
        assert any(path in fault for path in paths), fault
        assert "placeholder" in fault, fault

    folder = tmp_path / "stand_ins"
    folder.mkdir()
    given = stand_in_paths(folder)
    size = "Llama-2-7B" if llama2 else "Vicuna-7B"
    given["model.llama_model"] = str(llama_folder(folder / "llama", size))
    save_file({"weight": torch.zeros(1)}, folder / "llama" / "model.safetensors")
    reading = 5632 if llama2 else 768
    weight, bias = torch.zeros(1).expand(4096, reading), torch.zeros(4096)
    trained = {"llama_proj.weight": weight, "llama_proj.bias": bias}
    torch.save({"model": trained}, given["model.ckpt"])
    text = file.read_text()
    names = {
        "model.ckpt": "ckpt:" in text,
        "datasets.laion.build_info.storage": "laion:" in text,
        "datasets.cc_sbu.build_info.storage": "cc_sbu:" in text,
        "datasets.cc_sbu_align.build_info.storage": form == "stage 2",
        "model.llama_model": True,
    }
    options = [f"{name}={given[name]}" for name, wanted in names.items() if wanted] + [device]
    run_entry.ok(main, "check", "--cfg-path", file, "--options", *options)
    config = load_config(file, [*options, "model.ckpt="])
    model = MODELS.build(config.arch, config.model_options(), device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED[size]


def test_minigpt_v2_is_refused_in_one_line(tmp_path: Path, run_entry: EntryPoint) -> None:
    file = tmp_path / "v2.yaml"
    file.write_text(
        "model: {arch: minigpt_v2, model_type: pretrain, llama_model: /path/to/llama}\n"
    )
    code, stderr = run_entry(main, "check", "--cfg-path", file)
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "minigpt_v2" in stderr
