import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from minigpt4.checked import check_sections
from minigpt4.config import Config, load_config
from minigpt4.errors import ConfigError
from minigpt4.preflight.preflight import preflight
from tests.helpers.data_files import pair, write_tar
from tests.helpers.messages import one_line, several_lines

Sections = dict[str, Any]
BILLION_LAUGHS = "run: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)


@pytest.fixture
def sections(tmp_path: Path) -> Sections:
    """A config without faults."""
    shard = write_tar(tmp_path / "00000.tar", pair("scene"))
    return yaml.safe_load(f"""
        model: {{arch: minigpt4, model_type: pretrain_vicuna0, llama_model: somebody/vicuna}}
        datasets: {{laion: {{build_info: {{storage: {shard}}}}}}}
        run: {{lr_sched: linear_warmup_cosine_lr, init_lr: 0.0001, min_lr: 0.0, max_epoch: 1,
              batch_size_train: 2, iters_per_epoch: 5, output_dir: {tmp_path}/output}}
    """)


class Writer:
    """Writes YAML files into one folder and loads them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.yaml"

    def load(self, content: str | dict[str, Any], *options: str) -> Config:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        self.path.write_text(text, encoding="utf-8")
        return load_config(self.path, options)

    def check(self, content: str | dict[str, Any], *options: str) -> Config:
        config = self.load(content, *options)
        preflight(config, "training")
        return config


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


MISSING = object()


def with_value(sections: Sections, key: str, value: object) -> Sections:
    """The sections with one dotted key set, or without it."""
    *parents, last = key.split(".")
    place = sections
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    if value is MISSING:
        del place[last]
    return sections


# Layers


def test_a_config_without_faults_passes(writer: Writer, sections: Sections) -> None:
    config = writer.check(sections)
    assert config.arch == "minigpt4"
    assert not {"arch", "model_type"} & config.model_options().keys()


def test_yaml_wins_over_preset_and_options_over_both(writer: Writer, sections: Sections) -> None:
    config = writer.load(sections)
    assert config.model["num_query_token"] == 32  # preset
    assert config.chat["template"] == "vicuna_v0"
    del sections["run"]["lr_sched"]  # has a default
    sections["model"]["num_query_token"] = 16
    assert writer.load(sections).model["num_query_token"] == 16
    again = ["model.num_query_token=9", "model.num_query_token=8"]  # the last one counts
    config = writer.check(sections, *again, "chat.template=llama_2")
    assert config.model["num_query_token"] == 8
    assert config.chat["template"] == "llama_2"


@pytest.mark.parametrize(
    ("arch", "model_type", "expected"),
    [
        ("minigpt4", "pretrain_llama2", {"has_qformer": False}),
        ("minigpt4", "pretrain_vicuna0", {"has_qformer": True}),
        ("minigpt4", "tiny", {"image_size": 112}),
        ("mini_gpt4", "pretrain_vicuna", {"image_size": 224}),
    ],
)
def test_options_select_another_preset(
    writer: Writer, sections: Sections, arch: str, model_type: str, expected: dict[str, Any]
) -> None:
    config = writer.load(sections, f"model.arch={arch}", f"model.model_type={model_type}")
    assert config.arch == arch
    assert config.model["model_type"] == model_type
    assert expected.items() <= config.model.items()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("run.init_lr=1e-4", 1e-4),
        ("run.init_lr=3e-05", 3e-05),
        ("run.init_lr=null", None),
        ("run.init_lr=abc=def", "abc=def"),
        ("run.init_lr=[1, 2]", [1, 2]),
        ("run.init_lr=True", True),
    ],
)
def test_option_values_are_read_as_yaml(
    writer: Writer, sections: Sections, option: str, value: object
) -> None:
    assert writer.load(sections, option).run["init_lr"] == value


def test_first_release_and_last_state_differ_in_the_preset_only(
    writer: Writer, sections: Sections
) -> None:
    processor = {"train": {"name": "blip2_image_train", "image_size": 224}}
    with_value(sections, "datasets.laion.vis_processor", processor)
    sections["model"].update(arch="mini_gpt4", model_type="pretrain_vicuna")
    first = writer.check(sections)
    assert first.datasets["laion"]["vis_processor"]["train"]["random_crop"] is True
    assert first.chat["template"] == "vicuna_v0_first_release"
    sections["model"].update(arch="minigpt4", model_type="pretrain_vicuna0")
    last = writer.check(sections)
    assert "random_crop" not in last.datasets["laion"]["vis_processor"]["train"]
    assert last.chat["template"] == "vicuna_v0"


def test_a_data_sets_own_processor_option_wins_over_the_defaults(
    writer: Writer, sections: Sections
) -> None:
    spec = {"name": "blip2_image_train", "random_crop": False}
    with_value(sections, "datasets.laion.vis_processor", {"train": spec})
    sections["processors"] = {"blip2_image_train": {"random_crop": True, "min_scale": 0.7}}
    train = writer.check(sections).datasets["laion"]["vis_processor"]["train"]
    assert train["random_crop"] is False
    assert train["min_scale"] == 0.7


def test_resolved_config_can_be_loaded_again(
    writer: Writer, sections: Sections, tmp_path: Path
) -> None:
    config = writer.check(sections, "run.max_epoch=7")
    again = Writer(tmp_path).check(config.resolved())
    assert again.resolved() == config.resolved()


# Faults of single keys


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model.arch", "minigpt5", "model.arch: unknown model 'minigpt5'; known: mini_gpt4, "),
        ("model.arch", "minigpt_v2", "model.arch: MiniGPT-v2 is not supported"),
        ("model.arch", ["minigpt4"], "model.arch: "),
        ("model.model_type", "pretrain", "model.model_type: unknown model type 'pretrain'; known:"),
        ("model.model_type", 7, "model.model_type: unknown model type 7"),
        ("model.model_type", ["tiny"], "model.model_type: "),
        ("model.max_text_len", 3, "model.max_text_len: unknown key; did you mean 'max_txt_len'?"),
        ("model.max_txt_len", "long", "model.max_txt_len: 'long': input should be a valid integer"),
        ("model.prompt_template", "no place", "model.prompt_template: 'no place' must hold {}"),
        ("model.prompt_path", "/nowhere/p.txt", "model.prompt_path: no such file: /nowhere/p.txt"),
        ("model.llama_model", "/path/to/vicuna", "model.llama_model: '/path/to/vicuna' is a place"),
        ("model.llama_model", "/nowhere/vicuna", "model.llama_model: no such folder: /nowhere"),
        ("model.llama_model", "", "model.llama_model: missing"),
        ("model.ckpt", "/path/to/stage1.pth", "model.ckpt: '/path/to/stage1.pth' is a placeholder"),
        ("model.ckpt", "/absolute/path/to/it/", "is a placeholder"),
        ("model.ckpt", "/nowhere/c.pth", "model.ckpt: no such file: /nowhere/c.pth"),
        ("model.vit_model", "/nowhere/vit.pth", "model.vit_model: no such file"),
        ("model.precision", "fp8", "model.precision: 'fp8'"),
        ("model.freeze_vit", False, "model.freeze_vit: only True is supported"),
        ("model.visual_encoder", {"dept": 3}, "visual_encoder.dept: unknown key; did you mean 'de"),
        ("run.runner", "runner_bsae", "run.runner: unknown runner 'runner_bsae'; known: runner_b"),
        ("run.task", "captioning", "run.task: unknown task 'captioning'; known: image_text_pre"),
        ("run.lr_sched", "cosine", "run.lr_sched: unknown lr schedule 'cosine'; known: linear_wa"),
        ("run.batch_size", 3, "run.batch_size: unknown key; did you mean 'batch_size_"),
        ("run.init_lr", "fast", "run.init_lr: 'fast': input should be a valid number"),
        ("run.init_lr", -1.0, "run.init_lr: -1.0 must be greater than 0"),
        ("run.init_lr", float("nan"), "run.init_lr: nan"),
        ("run.iters_per_epoch", 0, "run.iters_per_epoch: 0 must be greater than 0"),
        ("run.num_workers", -1, "run.num_workers: -1 must not be negative"),
        ("run.evaluate", "yes", "run.evaluate: 'yes': input should be a valid boolean"),
        ("run.metrics", "exact_match", "run.metrics: 'exact_match': input should be a valid"),
        ("run.metrics", ["exact_mach"], "run.metrics: unknown metric 'exact_mach'; known: "),
        ("run.device", "tpu", "run.device: 'tpu'"),
        ("run.output_dir", "/path/to/runs", "run.output_dir: '/path/to/runs' is a placeholder"),
        ("run.resume_ckpt_path", "/nowhere/c.pth", "run.resume_ckpt_path: no such file"),
        ("run.1", 2, "run.1: unknown key"),
        ("datasets.lion", {}, "datasets.lion: unknown data set; did you mean 'laion'?"),
        ("datasets.laion.sample_ratio", -1, "datasets.laion.sample_ratio: -1"),
        ("datasets.laion.smaple_ratio", 1, "did you mean 'sample_ratio'?"),
        ("datasets.laion.build_info.storage", "/nowhere/0.tar", "laion.build_info.storage"),
        ("datasets.laion.build_info.storage", "a{0..", "has unbalanced braces"),
        ("datasets.laion.build_info.storage", [], "names no shard"),
        ("datasets.laion.build_info.storage", None, "datasets.laion.build_info.storage: None"),
        ("datasets.laion.build_info", 3, "datasets.laion.build_info: 3 is not a set of keys"),
        (
            "datasets.laion.vis_processor",
            {"train": {"name": "blip2_image_trian"}},
            "datasets.laion.vis_processor.train.name: unknown image processor 'blip2_im",
        ),
        (
            "datasets.laion.vis_processor",
            {"train": {"name": "blip2_image_train", "image_size": 448}},
            "datasets.laion.vis_processor.train.image_size: 448, but model.image_size is 224",
        ),
        (
            "datasets.laion.vis_processor",
            {"eval": {"name": "blip2_image_eval"}},
            "datasets.laion.vis_processor: no 'train' in it",
        ),
        (
            "datasets.laion.text_processor",
            {"train": {"name": "blip_caption", "max_wrods": 3}},
            "datasets.laion.text_processor.train.max_wrods: unknown key; did you mean 'max_words'?",
        ),
        (
            "datasets.laion.vis_processor",
            {"train": {"name": "blip_caption"}},
            "datasets.laion.vis_processor.train.name: ",
        ),
        ("datasets", None, "datasets: no data set is named"),
        ("run.init_lr", MISSING, "run.init_lr: missing"),
        ("run.max_epoch", MISSING, "run.max_epoch: missing"),
        ("run.batch_size_train", MISSING, "run.batch_size_train: missing"),
        ("run.output_dir", MISSING, "run.output_dir: missing"),
        ("model.arch", MISSING, "model.arch: missing; known: "),
        ("model.model_type", MISSING, "model.model_type: missing; known: "),
        ("processors.blip2_image_trian", {"image_size": 3}, "blip2_image_trian: unknown"),
        ("processors.blip2_image_train", {"image_sise": 3}, "did you mean 'image_size'?"),
        ("processors.blip2_image_train", 5, "processors.blip2_image_train: "),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(
    writer: Writer, sections: Sections, key: str, value: object, text: str
) -> None:
    with one_line(ConfigError, str(writer.path), text):
        writer.check(with_value(sections, key, value))


def test_a_key_that_is_no_text_is_a_fault(writer: Writer, sections: Sections) -> None:
    sections["datasets"][1] = {}
    sections["run"][True] = 3  # YAML reads "on:", "yes:" so
    with several_lines(ConfigError, "datasets.1: unknown data set", "run.True: unknown key"):
        writer.check(sections)


def test_a_step_schedule_without_decay_is_found_before_loading(
    writer: Writer, sections: Sections
) -> None:
    sections["run"].update(lr_sched="linear_warmup_step_lr", max_epoch=2)
    with one_line(ConfigError, str(writer.path), "run.lr_decay_rate: "):
        writer.check(sections)
    sections["run"]["lr_decay_rate"] = 0.9
    writer.check(sections)


def test_several_faults_come_at_once(writer: Writer, sections: Sections) -> None:
    sections["model"].update(max_text_len=3, llama_model="/path/to/vicuna")
    sections["run"].update(init_lr="fast", lr_sched="cosine")
    del sections["run"]["max_epoch"]
    sections["datasets"]["coco"] = {}
    with several_lines(
        ConfigError,
        f"{writer.path}: model.max_text_len: ",
        f"{writer.path}: model.llama_model: ",
        f"{writer.path}: datasets.coco: ",
        f"{writer.path}: run.init_lr: ",
        f"{writer.path}: run.lr_sched: ",
        f"{writer.path}: run.max_epoch: missing",
    ):
        writer.check(sections)


def test_a_demo_needs_no_run_section(writer: Writer, sections: Sections) -> None:
    config = writer.load({"model": sections["model"]})
    check_sections(config, "chat")


# Files, sections and options that cannot be read


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("", "must hold sections"),
        ("5", "must hold sections"),
        ("just some words", "must hold sections"),
        ("- model", "must hold sections"),
        ("model: [", "not readable as YAML"),
        ("\tmodel: 1", "not readable as YAML"),
        ("run: {a: 1, a: 2}", "duplicate key a"),
        ("run: {seed: !!bool x}", "not readable as YAML"),
        ("run: {seed: !!timestamp x}", "not readable as YAML"),
        ("run: {seed: " + "9" * 5000 + "}", "not readable as YAML"),
        ("run: &a {b: *a}", "an anchor that holds itself"),
        ("run: " + "[" * 5000, "not readable as YAML"),
        ("run: " + "{a: " * 40 + "1" + "}" * 40, "nested deeper than 20 levels"),
        (BILLION_LAUGHS, "more than 200,000 values"),
        ("model: ${", "not readable as YAML"),
        ("model: !!python/object:os.system {}", "not readable as YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(writer: Writer, text: str, mention: str) -> None:
    with one_line(ConfigError, str(writer.path), mention):
        writer.load(text)


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("modle: {}", "modle: unknown section; did you mean 'model'?"),
        ("MODEL: {}", "MODEL: unknown section; did you mean 'model'?"),
        ("whatever: {}", "known: chat, datasets, model, plugins, processors, run"),
        ("model: 5", "model: must be a set of keys, not 5"),
        ("run: [1]", "run: must be a set of keys"),
        ("processors: [a]", "processors: must be a set of keys"),
        ("datasets: {laion: 5}", "datasets.laion: must be a set of keys, not 5"),
        ("datasets: [laion]", "datasets: must be a set of keys"),
        ("plugins: mine.py", "plugins: must be a list"),
        ("model: ${nothing}", "nothing"),
        ("plugins: ${nothing}", "nothing"),
        ("datasets:\n  laion: ${nothing}", "nothing"),
        ("model:\n  arch: ${nothing}", "nothing"),
        ("run:\n  seed: ${nothing}\nmodel: {arch: minigpt4, model_type: tiny}", "nothing"),
        ("model: ???", "model: Missing"),
        ("model: ${run}\nrun: ${model}", "model: Recursive interpolation"),
        ("model:\n  lora: ${model}", "model.lora"),
        ("plugins: [./nowhere.py, 3]", "plugins: 3 is not a file or module"),
    ],
)
def test_a_section_that_cannot_be_used_is_told_with_the_other_faults(
    writer: Writer, text: str, mention: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        writer.check(text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{writer.path}: ") for line in lines)
    assert any(mention in line for line in lines)
    assert any("run.init_lr: missing" in line or ": run: " in line for line in lines)


def test_keys_of_a_mistyped_section_and_an_unknown_model_are_held_too(
    writer: Writer, sections: Sections
) -> None:
    sections["rnu"] = sections.pop("run") | {"max_epcoh": 3}
    sections["model"].update(arch="minigpt5", max_text_len=3)
    with several_lines(
        ConfigError,
        "rnu: unknown section; did you mean 'run'?",
        "run.max_epcoh: unknown key; did you mean 'max_epoch'?",
        "model.arch: unknown model 'minigpt5'",
        "model.max_text_len: unknown key; did you mean 'max_txt_len'?",
    ):
        writer.check(sections)


@pytest.mark.parametrize(
    "text", ["9223372036854775808", "1" + "0" * 400, ".inf", "-.inf", ".nan", "0x" + "f" * 6000]
)
def test_no_number_is_too_large_to_be_refused(
    writer: Writer, sections: Sections, text: str
) -> None:
    for key in ("run.seed", "run.warmup_steps", "run.max_epoch"):
        with one_line(ConfigError, str(writer.path), f"{key}: "):
            writer.check(sections, f"{key}={text}")


@pytest.mark.parametrize("value", ["x" * 5000, "a\0b", "\n", "x/" * 3000 + "y", "http://[", "é"])
def test_no_name_of_a_file_is_too_odd_to_be_refused(
    writer: Writer, sections: Sections, value: str
) -> None:
    keys = ["model.ckpt", "model.llama_model", "model.vit_model", "model.prompt_path"]
    for key in (*keys, "datasets.laion.build_info.storage", "run.resume_ckpt_path"):
        with one_line(ConfigError, str(writer.path), f"{key}: "):
            writer.check(with_value(copy.deepcopy(sections), key, value))


def test_a_range_of_too_many_shards_is_not_written_out(writer: Writer, sections: Sections) -> None:
    for pattern in ("{0..99999999999}.tar", "{0..9999}/{0..9999}.tar", "{0.." + "9" * 5000 + "}"):
        with one_line(ConfigError, "datasets.laion.build_info.storage", "more than 1,000,000"):
            writer.check(with_value(sections, "datasets.laion.build_info.storage", pattern))


def test_a_fault_stays_one_line_whatever_its_key_and_value_hold(
    writer: Writer, sections: Sections
) -> None:
    sections["run"]["a\nb" + "c" * 3000] = 1
    with one_line(ConfigError, "run.a\\nb"):
        writer.check(sections)
    del sections["run"]["a\nb" + "c" * 3000]
    with one_line(ConfigError, "run.init_lr: ['x', 'x'") as _:
        writer.check(with_value(sections, "run.init_lr", ["x"] * 5000))


def test_a_file_that_is_missing_or_no_text_is_one_line(tmp_path: Path) -> None:
    with one_line(ConfigError, tmp_path / "none.yaml", "no such file"):
        load_config(tmp_path / "none.yaml")
    with one_line(ConfigError, tmp_path):
        load_config(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with one_line(ConfigError, tmp_path / "run.yaml", "not readable as YAML"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "option", ["model.arch", "=", "=3", "model.=3", ".arch=3", "run..seed=1", "model.ckpt=["]
)
def test_an_option_that_cannot_be_read_is_one_line(
    writer: Writer, sections: Sections, option: str
) -> None:
    with one_line(ConfigError, f"--options {option}"):
        writer.load(sections, option)
    with one_line(ConfigError, "modle: unknown section; did you mean 'model'?"):
        writer.check(sections, "modle.arch=minigpt4")


def test_an_option_that_replaces_a_section_is_one_line(writer: Writer, sections: Sections) -> None:
    with several_lines(
        ConfigError, "model: must be a set of keys, not 5", "model.arch: missing; known: "
    ):
        writer.check(sections, "model=5")


# The original's own files

RETIRED = """
model:
  arch: mini_gpt4
  model_type: pretrain_vicuna
  freeze_vit: True
  freeze_qformer: True
  drop_path_rate: 0
  use_grad_checkpoint: False
  prompt: ""
run:
  train_splits: ["train"]
  world_size: 8
  dist_url: "env://"
  distributed: True
  job_name: minigpt4
  wandb_log: True
"""


def test_retired_keys_are_accepted_with_one_line_each(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        config = writer.load(RETIRED)
    lines = [record.getMessage() for record in caplog.records]
    model = ("freeze_vit", "freeze_qformer", "drop_path_rate", "use_grad_checkpoint", "prompt")
    run = ("train_splits", "world_size", "dist_url", "distributed", "job_name", "wandb_log")
    for key in (*(f"model.{name}" for name in model), *(f"run.{name}" for name in run)):
        (line,) = [line for line in lines if f"{key} " in line]
        assert line.startswith(f"{writer.path}: {key} is ignored: ")
        assert "\n" not in line
    assert not {*run, *model} & {*config.run, *config.model}
    assert config.faults == ()
