"""The preflight: every fault of a run at once, each with file, key and mend; nothing is loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import demo
import train
from minigpt4.__main__ import main
from minigpt4.config import load_config
from minigpt4.preflight.preflight import preflight
from minigpt4.registry import BUILDERS, MODELS
from tests.helpers.data_files import pair, picture, write_pairs, write_tar
from tests.helpers.llama_folders import llama_folder, llama_tensors, write_llama, write_weights
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, STAGE2, stage1_options

CHAT = "eval_configs/tiny_eval.yaml"
Checked = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> list[str]:
    return stage1_options(scenes, tmp_path / "out")


@pytest.fixture
def checked(run_entry: EntryPoint, options: list[str]) -> Checked:
    """Exit code and faults of ``check`` on stage 1 with more options."""

    def check(*more: str) -> tuple[int, list[str]]:
        code, stderr = run_entry(main, "check", STAGE1, "--options", *options, *more)
        lines = stderr.removeprefix("error: ").splitlines()
        return code, [line for line in lines if line.startswith(STAGE1)]

    return check


@pytest.fixture(autouse=True)
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        pytest.fail("something was built")

    for registry in (BUILDERS, MODELS):
        monkeypatch.setattr(registry, "build", built)


# All at once


def test_a_sound_config_has_no_fault(checked: Checked) -> None:
    assert checked() == (0, [])


def test_faults_of_every_kind_come_at_once(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("Describe it.\n")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 and then nothing")
    write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": b'{"text": "no caption"}'})
    projection = {"llama_proj.weight": torch.zeros(4096, 768), "llama_proj.bias": torch.zeros(4096)}
    torch.save({"model": projection}, tmp_path / "7b.pth")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    code, lines = checked(
        "modle.arch=minigpt4",
        "model.max_text_len=3",
        "model.end_sym=[1]",
        f"model.vit_model={tmp_path}/broken.pth",
        f"model.ckpt={tmp_path}/7b.pth",
        f"model.prompt_path={tmp_path}/prompts.txt",
        "datasets.laion.build_info.storage=/path/to/laion",
        f"datasets.cc_sbu.build_info.storage={tmp_path}/0.tar",
        "run.min_lr=-1",
        "run.device=cuda" if not torch.cuda.is_available() else "run.device=mps",
        "chat.template=llama_2",
        "chat.temprature=1",
    )
    assert code == 2
    expected = [
        "modle: unknown section; did you mean 'model'?",
        "model.max_text_len: unknown key; did you mean 'max_txt_len'?",
        "model.end_sym: [1]: input should be a valid string",
        f"model.vit_model: {tmp_path}/broken.pth: damaged or cut short",
        f"model.ckpt: {tmp_path}/7b.pth: llama_proj.weight is [4096, 768], this model",
        f"model.prompt_path: {tmp_path}/prompts.txt has no line with <ImageHere>",
        "datasets.laion.build_info.storage: '/path/to/laion' is a placeholder",
        "datasets.cc_sbu: no readable sample at the start of",
        "run.min_lr: -1.0 must not be negative",
        "run.output_dir: ",
        "run.device: ",
        "chat.temprature: unknown key; did you mean 'temperature'?",
    ]
    for text in expected:
        assert [line for line in lines if line.startswith(f"{STAGE1}: {text}")], text
    assert len(lines) == len(expected), lines


def test_train_and_demo_start_with_the_same_checks(
    run_entry: EntryPoint, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    wrong = [f"model.ckpt={tmp_path}/broken.pth", "model.max_text_len=3"]
    code, stderr = run_entry(train.main, "--cfg-path", STAGE1, "--options", *options, *wrong)
    assert code == 2
    assert f"{STAGE1}: model.ckpt: {tmp_path}/broken.pth: " in stderr
    assert f"{STAGE1}: model.max_text_len: unknown key" in stderr
    arguments = ["--cfg-path", CHAT, "--port", "0", "--gpu-id", "99"]
    code, stderr = run_entry(demo.main, *arguments, "--device", "cuda", "--options", *wrong)
    assert code == 2
    assert f"{CHAT}: model.ckpt: {tmp_path}/broken.pth: " in stderr
    assert f"{CHAT}: model.max_text_len: unknown key" in stderr
    assert re.search(r"^(error: )?--(device cuda|gpu-id 99): ", stderr, re.MULTILINE)


# Weights


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.ckpt", "not a MiniGPT-4 checkpoint"),
        ("model.vit_model", "not a visual encoder"),
        ("model.q_former_model", "not a BLIP-2 Q-Former"),
        ("run.resume_ckpt_path", "not a MiniGPT-4 checkpoint"),
    ],
)
def test_weights_of_something_else(checked: Checked, tmp_path: Path, key: str, kind: str) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"something": torch.zeros(3)}, file)
    code, (line,) = checked(f"{key}={file}")
    assert code == 2
    assert line.startswith(f"{STAGE1}: {key}: {file}: {kind}")
    torch.save({"model": {"something": torch.zeros(3)}}, file, _use_new_zipfile_serialization=False)
    assert checked(f"{key}={file}")[0] == 2
    file.write_bytes(file.read_bytes()[:100])
    _, (line,) = checked(f"{key}={file}")
    assert line.startswith(f"{STAGE1}: {key}: {file}: ")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("model.visual_encoder.embed_dim=64", "patch_embed.proj.weight is [128, 3, 14, 14]"),
        ("model.visual_encoder.depth=9", "52 missing (first: blocks.5.attn.proj.bias"),
        ("model.num_query_token=8", "query_tokens is [1, 16, 128], the model wants [1, 8, 128]"),
        ("model.q_former.num_hidden_layers=3", "missing (first: Qformer.bert.encoder.layer.2."),
        ("model.visual_encoder.num_heads=3", "128 is no multiple of the number of heads, 3"),
        ("model.image_size=7", "7 pixels are less than a patch (14)"),
        ("model.has_qformer=False", "llama_proj.weight is [160, 128], this model wants [160, 512]"),
        ("model.visual_encoder.depth=0", "depth: 0 must be from 1 to 1,000"),
        ("model.visual_encoder.mlp_ratio=2.0", "mlp.fc1.weight is [512, 128], the model wants [25"),
        ("model.visual_encoder.mlp_ratio=1e308", "must be greater than 0 and at most 1,000"),
        ("model.q_former.hidden_size=9223372036854775807", "hidden_size: 9223372036854775807 must"),
    ],
)
def test_dimensions_that_the_weights_do_not_have(
    checked: Checked, projection: Path, option: str, text: str
) -> None:
    code, lines = checked(option, f"model.ckpt={projection}")
    assert code == 2
    assert any(text in line for line in lines), lines


@pytest.mark.parametrize(
    ("key", "file", "name"),
    [
        ("vit_model", "eva_vit.pth", "blocks.2.attn.proj.bias"),
        ("q_former_model", "q_former.pth", "Qformer.bert.embeddings.LayerNorm.weight"),
        ("q_former_model", "q_former.pth", "ln_vision.bias"),
    ],
)
def test_every_weight_of_a_tower_is_compared(
    checked: Checked, tmp_path: Path, key: str, file: str, name: str
) -> None:
    content = torch.load(f"assets/tiny/{file}", weights_only=True)
    weights = content.get("model", content)
    del weights[name]
    torch.save(content, tmp_path / file)
    code, (line,) = checked(f"model.{key}={tmp_path}/{file}")
    assert code == 2
    assert f"{tmp_path}/{file}: does not fit this model: 1 missing (first: {name})" in line


def test_more_blocks_and_positions_in_a_visual_encoder_are_no_fault(
    checked: Checked, tmp_path: Path
) -> None:
    weights = torch.load("assets/tiny/eva_vit.pth", weights_only=True)
    weights["pos_embed"] = torch.zeros(1, 1 + 16**2, 128)
    torch.save(weights, tmp_path / "eva.pth")
    options = [f"model.vit_model={tmp_path}/eva.pth", "model.visual_encoder.depth=3"]
    assert checked(*options) == (0, [])


def test_without_a_q_former_its_file_is_not_looked_at(checked: Checked, tmp_path: Path) -> None:
    assert checked("model.has_qformer=False", f"model.q_former_model={tmp_path}") != (0, [])
    (tmp_path / "any.pth").write_bytes(b"anything")
    assert checked("model.has_qformer=False", f"model.q_former_model={tmp_path}/any.pth") == (0, [])


def test_a_published_file_that_is_in_the_cache_already_is_looked_at(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT4_CACHE", str(tmp_path / "cache"))
    url = "model.vit_model=https://example.invalid/eva.pth"
    assert checked(url) == (0, [])  # it is fetched later
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "eva.pth").write_bytes(b"an error page")
    _, (line,) = checked(url)
    assert "eva.pth" in line


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("none", None),
        ("no weights", "holds no weights (model.safetensors or pytorch_model.bin)"),
        ("lost shard", "lacks 1 of 2 files of weights (first: model-00002-of-00002.safetensors)"),
        ("cut shard", "model-00001-of-00002.safetensors: damaged or cut short"),
        ("index", "model.safetensors.index.json is not readable"),
    ],
)
def test_a_language_model_with_half_its_weights(
    checked: Checked, tmp_path: Path, damage: str, text: str | None
) -> None:
    folder = write_llama(tmp_path / "llama", llama_tensors(32001, seed=0), form="safetensors")
    first, second = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if damage == "no weights":
        for file in (first, second, index):
            file.unlink()
    elif damage == "lost shard":
        second.unlink()
    elif damage == "cut shard":
        first.write_bytes(first.read_bytes()[:1000])
    elif damage == "index":
        index.write_text("[1, 2]")
    code, lines = checked(f"model.llama_model={folder}")
    assert code == (2 if text else 0), lines
    if text:
        (line,) = lines
        assert line.startswith(f"{STAGE1}: model.llama_model: ")
        assert text in line


def test_a_language_model_in_old_files_is_sound(checked: Checked, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "llama", llama_tensors(32001, seed=0), form="old bin", shards=1)
    assert checked(f"model.llama_model={folder}") == (0, [])
    write_weights(folder, llama_tensors(32001, seed=0), shards=2)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    assert checked(f"model.llama_model={folder}")[0] == 2


def test_template_and_vocabulary_are_held_together_with_other_faults(
    checked: Checked, tmp_path: Path
) -> None:
    folder = llama_folder(tmp_path / "llama", "Llama-2-7B")
    write_weights(folder, {"weight": torch.zeros(1)}, form="safetensors", shards=1)
    code, lines = checked(f"model.llama_model={folder}", "chat.num_beams=0", "run.init_lr=fast")
    assert code == 2
    assert any("none of them knows the separator ###" in line for line in lines)
    assert len(lines) == 3


# Data


def test_a_few_broken_samples_at_the_start_are_no_fault(checked: Checked, tmp_path: Path) -> None:
    broken = [{f"{n}.jpg": b"noise", f"{n}.json": b"{}"} for n in range(5)]
    write_tar(tmp_path / "0.tar", *broken, pair("good"))
    assert checked(f"datasets.laion.build_info.storage={tmp_path}/0.tar") == (0, [])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.jpg": picture()},
        {"a.txt": b"a caption", "a.jpg": picture()},
        {"a.json": b'{"caption": "x"}'},
        {"a.jpg": b"noise", "a.json": b'{"caption": "x"}'},
        {"a.jpg": picture(), "a.json": b'{"text": "x"}'},
        {"a.jpg": picture(), "a.json": b'{"caption": 3}'},
    ],
)
def test_a_shard_without_what_is_read(
    checked: Checked, tmp_path: Path, files: dict[str, bytes]
) -> None:
    write_tar(tmp_path / "0.tar", files)
    # The first that exists is looked at; those that are not there are told when they are read.
    code, (line,) = checked(f"datasets.laion.build_info.storage={tmp_path}/{{1..0}}.tar")
    assert code == 2
    assert f"datasets.laion: no readable sample at the start of {tmp_path}/0.tar; the first" in line


def test_a_folder_of_pairs_without_what_is_read(
    run_entry: EntryPoint, tmp_path: Path, projection: Path
) -> None:
    options = ["--options", f"model.ckpt={projection}", f"run.output_dir={tmp_path}/out"]
    for number, (entries, images) in enumerate(
        [([("a", "a scene")], {"b.jpg": picture()}), ([("a", "a scene")], {"a.jpg": b"noise"})]
    ):
        folder = write_pairs(tmp_path / str(number), entries, images)
        storage = f"datasets.cc_sbu_align.build_info.storage={folder}"
        code, stderr = run_entry(main, "check", STAGE2, *options, storage)
        assert code == 2
        assert f"error: {STAGE2}: datasets.cc_sbu_align: " in stderr


# Run and machine


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("run.iters_per_epoch=null", "run.iters_per_epoch: missing; streams of shards have no"),
        ("run.batch_size_train=null", "run.batch_size_train: missing, and datasets.laion has no"),
        ("model.precision=fp16", "model.precision: fp16 needs a GPU"),
        ("datasets.laion.sample_ratio=0 datasets.cc_sbu.sample_ratio=0", "every sample_ratio is 0"),
    ],
)
def test_a_fault_of_the_run(checked: Checked, change: str, text: str) -> None:
    code, (line,) = checked(*change.split(), "run.device=cpu")
    assert code == 2
    assert text in line


def test_a_config_json_of_impossible_dimensions_is_no_traceback(
    checked: Checked, tmp_path: Path, projection: Path
) -> None:
    folder = write_llama(tmp_path / "llama", llama_tensors(32001, seed=0), form="safetensors")
    settings = json.loads((folder / "config.json").read_text())
    widths: tuple[object, ...] = (10**30, -1, 0, "wide", None, [], True)
    for width in widths:
        (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": width}))
        checked(f"model.llama_model={folder}", f"model.ckpt={projection}")


def test_a_disk_without_room_for_the_checkpoints(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 10**6))  # type: ignore[attr-defined]
    code, (line,) = checked()
    assert code == 2
    assert "run.output_dir: " in line
    assert "has 1.0 MB free, and 2 checkpoints of 0.2 MB need about" in line
    assert line.endswith("free space or choose another folder")


def test_more_processes_than_gpus(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("minigpt4.preflight.preflight.memory_warning", lambda _: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for device in ("auto", "cuda"):
        code, (line,) = checked(f"run.device={device}")
        assert code == 2
        assert "run.device: torchrun started 4 processes on 2 GPUs; --nproc-per-node 2" in line
    assert checked("run.device=cpu") == (0, [])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert checked("run.device=cuda") == (0, [])


def test_a_gpu_that_is_too_small_is_a_warning(
    options: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Small:
        total_memory = 1_001_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Small)
    preflight(load_config(STAGE1, options), "training")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith(f"{STAGE1}: a batch of 4 needs about 1.0 GB of GPU memory")


@pytest.mark.parametrize(
    ("gpu", "texts"),
    [
        (True, ["GPU memory of one process", r"language model +13\.5 GB", "fit: 30 in 24 GiB"]),
        (False, ["Main memory of one process", r"language model +27\.0 GB"]),
    ],
)
def test_check_tells_the_memory_of_a_full_size_model_where_it_will_run(
    run_entry: EntryPoint,
    tmp_path: Path,
    scenes: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    texts: list[str],
) -> None:
    folder = llama_folder(tmp_path / "llama", "Vicuna-7B")
    write_weights(folder, {"weight": torch.zeros(1)}, form="safetensors", shards=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    monkeypatch.setattr("minigpt4.preflight.machine.total_memory", lambda _: 10**15)
    given = [f"model.llama_model={folder}", f"run.output_dir={tmp_path}/out", "run.device=auto"]
    given += [
        f"datasets.{name}.build_info.storage={scenes}/{name}/" for name in ("laion", "cc_sbu")
    ]
    with caplog.at_level("INFO"):
        yaml_file = "train_configs/minigpt4_stage1_pretrain.yaml"
        code, stderr = run_entry(main, "check", yaml_file, "--options", *given)
    assert code == 0, stderr
    (table,) = [r.getMessage() for r in caplog.records if "memory of one" in r.getMessage()]
    for text in (*texts, r"activations of 66 tokens, × 64 "):
        assert re.search(text, table)


# The command line


def test_check_takes_the_file_in_both_forms_and_exactly_one(
    run_entry: EntryPoint, options: list[str]
) -> None:
    assert run_entry(main, "check", STAGE1, "--options", *options)[0] == 0
    assert run_entry(main, "check", "--cfg-path", STAGE1, "--options", *options)[0] == 0
    for arguments in ([], [STAGE1, "--cfg-path", STAGE1]):
        code, stderr = run_entry(main, "check", *arguments)
        assert code == 2
        assert "name one YAML" in stderr


def test_a_main_takes_its_arguments_from_the_caller_too(options: list[str]) -> None:
    main(["check", STAGE1, "--options", *options])
    train.main(["--cfg-path", STAGE1, "--print-config", "--options", *options])
    demo.main(["--cfg-path", CHAT, "--print-config", "--options", "model.ckpt="])


@pytest.mark.parametrize("entry", ["check", "train", "demo"])
def test_print_config_shows_every_value_and_its_source(
    options: list[str], capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    file = CHAT if entry == "demo" else STAGE1
    given = ["model.ckpt="] if entry == "demo" else [*options, "run.seed=7"]
    given += ["processors.blip2_image_train.min_scale=0.7", "model.end_sym='\\n'"]
    run = {"check": main, "train": train.main, "demo": demo.main}[entry]
    before = ["check"] if entry == "check" else []
    run([*before, "--cfg-path", file, "--print-config", "--options", *given])
    printed = capsys.readouterr().out
    config = load_config(file, given)
    shown = yaml.safe_load(printed)
    for section, values in config.resolved().items():
        for key, value in values.items():
            if not isinstance(value, dict):
                assert shown[section][key] == value or float(shown[section][key]) == value
    expected = {
        "num_query_token: 16": "preset minigpt4_tiny",
        "arch: minigpt4": file,
        "vit_precision: fp16": "default",
        "storage: /path/to/cc_sbu_align/": "preset cc_sbu_align",
        "seed: 7": "--options",
        "seed: 42": "default",
        "min_scale: 0.7": "--options, processors.blip2_image_train",
        "template: vicuna_v0": "preset minigpt4_tiny",
        "max_epoch: 2": "--options",
        "lr_sched: linear_warmup_cosine_lr": file if entry != "demo" else "default",
    }
    found = dict(line.strip().split("  # ", 1) for line in printed.splitlines() if "  # " in line)
    for line, source in expected.items():
        if line in found:
            assert found[line] == source
    assert {"num_query_token: 16", "arch: minigpt4", "vit_precision: fp16"} <= found.keys()
    unmarked = [line for line in printed.splitlines() if "  # " not in line]
    assert all(line.endswith(":") for line in unmarked), unmarked


def test_print_config_tells_faults_all_the_same(
    run_entry: EntryPoint, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--cfg-path", STAGE1, "--print-config", "--options", *options, "run.max_epcoh=3"]
    code, stderr = run_entry(train.main, *arguments)
    assert code == 2
    assert "run.max_epcoh: unknown key; did you mean 'max_epoch'?" in stderr


def test_print_config_of_a_broken_config_is_no_traceback(
    run_entry: EntryPoint, tmp_path: Path
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(
        json.dumps({"model": {"arch": [1], 3: None}, "datasets": {"laion": 5, "x": {"y": []}}})
    )
    code, stderr = run_entry(main, "check", file, "--print-config")
    assert code == 2
    assert f"{file}: datasets.x: unknown data set" in stderr
