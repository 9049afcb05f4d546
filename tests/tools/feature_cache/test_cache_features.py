"""cache-features on real files, and what is trained from it: the numbers of the pictures."""

import itertools
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from minigpt4.__main__ import main as command
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.features import save_features
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import to_device
from minigpt4.files import write_json
from minigpt4.models.towers import Towers
from minigpt4.preflight import feature_identity
from minigpt4.registry import BUILDERS
from minigpt4.runners.run_folder import RunFolder
from minigpt4.runners.trainer import Trainer
from minigpt4.tools.feature_cache import cache_folder, feature_cache
from tests.helpers.data_files import pair, plant_pairs, plant_shards, read_rows, write_tar
from tests.helpers.processes import finished, started
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.training import STAGE1, STAGE2, Stop, compare, only_run, stage1_options

Caplog = pytest.LogCaptureFixture
PIXELS = {"train": {"name": "blip2_image_train", "image_size": 112}}


def cache(config: str, output: Path, *options: object, dtype: str = "auto") -> Path:
    """Run the command in this process."""
    arguments = ["cache-features", "--cfg-path", config, "--output", output, "--dtype", dtype]
    command([str(argument) for argument in (*arguments, "--options", *options)])
    return output


def from_features(cached: Path, *names: str) -> list[str]:
    return [f"datasets.{name}.features={cached}" for name in names or ("laion", "cc_sbu")]


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_rows(only_run(output) / "log.txt") if "loss" in row]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def error_of(run_entry: EntryPoint, config: str, *options: object) -> str:
    """The one line with which a training is refused."""
    return run_entry.refused(train.main, "--cfg-path", config, "--options", *options)


def refused(run_entry: EntryPoint, output: Path, *options: object, dtype: str = "auto") -> str:
    """The one line with which the command ends."""
    arguments = ["cache-features", "--cfg-path", STAGE2, "--output", output, "--dtype", dtype]
    return run_entry.refused(command, *arguments, "--options", *options)


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """Stage 1's features, in the arithmetic of a CPU."""
    folder = tmp_path_factory.mktemp("cached")
    return cache(STAGE1, folder, *stage1_options(scenes, folder))


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch, caplog: Caplog) -> None:
    """A folder's groups of four pairs; everything that is told is caught."""
    monkeypatch.setattr(AlignmentSource, "units_per_group", 4)
    caplog.set_level(logging.INFO)


# The numbers


def logged(run_entry: EntryPoint, *options: object, config: str = STAGE1) -> None:
    run_entry.ok(train.main, "--cfg-path", config, "--options", *options)


@pytest.mark.parametrize(
    ("more", "names", "dtype"),
    [
        ("run.num_workers=1", ("laion", "cc_sbu"), b"F32"),
        ("run.precision=bf16", ("laion", "cc_sbu"), b"BF16"),
        ("model.has_qformer=False", ("laion", "cc_sbu"), b"F32"),
        ("datasets.cc_sbu.sample_ratio=4", ("laion",), b"F32"),  # with pictures of the other
    ],
)
def test_every_number_of_a_training_is_that_of_the_pictures(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, more: str, names: list[str], dtype: bytes
) -> None:
    cached = cache(STAGE1, tmp_path / "cached", *stage1_options(scenes, tmp_path), more)
    (file,) = (cached / "laion").glob("*.safetensors")
    assert b'"dtype":"%s"' % dtype in file.read_bytes()[:200]
    for name, features in (("pictures", []), ("features", from_features(cached, *names))):
        options = stage1_options(scenes, tmp_path / name, log_freq=1)
        logged(run_entry, *options, more, *features)
    assert len(losses(tmp_path / "pictures")) == 6
    assert compare(tmp_path / "features", tmp_path / "pictures") == []


def test_fp16_features_are_close_and_the_difference_is_told(
    run_entry: EntryPoint, scenes: Path, cached: Path, tmp_path: Path, caplog: Caplog
) -> None:
    options = stage1_options(scenes, tmp_path / "fp32", log_freq=1)
    logged(run_entry, *options, *from_features(cached))
    assert "rounding" not in caplog.text
    short = cache(STAGE1, tmp_path / "cached", *options, dtype="fp16")
    assert sum(map(len, contents(short).values())) < 0.6 * sum(map(len, contents(cached).values()))
    more = stage1_options(scenes, tmp_path / "fp16", log_freq=1)
    logged(run_entry, *more, *from_features(short))
    assert "computed in fp32 and kept in fp16, this run computes in fp32" in caplog.text
    assert losses(tmp_path / "fp16") != losses(tmp_path / "fp32")
    assert losses(tmp_path / "fp16") == pytest.approx(losses(tmp_path / "fp32"), rel=1e-3)


def test_stage_2_and_another_language_model_text_and_lora_share_a_cache(
    run_entry: EntryPoint, scenes: Path, projection: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    storage = f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align"
    # The YAML's model.ckpt is still a placeholder, and no language model need be there either.
    away = "model.llama_model=/weights/not-yet-there"
    cached = cache(STAGE2, tmp_path / "cached", storage, away, "run.num_workers=0")
    short = ["run.max_epoch=1", "run.iters_per_epoch=4", "run.batch_size_train=5", "run.log_freq=1"]
    changed = ["model.trainable=[llama_proj,lora]", "model.max_txt_len=20", "run.num_workers=0"]
    options = [storage, f"model.ckpt={projection}", *short, *changed]
    for name, more in (("pictures", []), ("features", from_features(cached, "cc_sbu_align"))):
        logged(run_entry, *options, *more, f"run.output_dir={tmp_path / name}", config=STAGE2)
    assert compare(tmp_path / "features", tmp_path / "pictures") == []


@pytest.mark.slow
def test_compiled_too(run_entry: EntryPoint, scenes: Path, cached: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("compiled", ["run.compile=True"])):
        options = stage1_options(scenes, tmp_path / name, log_freq=1)
        logged(run_entry, *options, *from_features(cached), *more)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


# The towers


def test_the_towers_are_neither_loaded_nor_fetched(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, caplog: Caplog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The weights came from an address, and this machine has not fetched them."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("MINIGPT4_CACHE", str(home))
    addresses = []
    for key, name in (("vit_model", "eva_vit.pth"), ("q_former_model", "q_former.pth")):
        shutil.copy(f"assets/tiny/{name}", home)
        addresses.append(f"model.{key}=https://nowhere.invalid/{name}")
    options = [*stage1_options(scenes, tmp_path / "out"), *addresses]
    features = from_features(cache(STAGE1, tmp_path / "cached", *options))
    shutil.rmtree(home)
    seen: list[Trainer] = []
    run = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self) or run(self))  # type: ignore[func-returns-value]
    caplog.clear()
    logged(run_entry, *options, *features)
    assert "loading the visual encoder" not in caplog.text
    table = next(r.getMessage() for r in caplog.records if "what is trained" in r.getMessage())
    assert "llama_proj" in table
    assert not any(part in table for part in ("visual_encoder", "ln_vision", "q_former", "query"))
    assert seen[0].model.visual_encoder is None
    assert not home.exists()
    other = "model.vit_model=https://nowhere.invalid/another/eva_vit.pth"
    line = error_of(run_entry, STAGE1, *options, other, *features)
    assert "made with another vit_model (https://nowhere.invalid/eva_vit.pth, now" in line


def test_an_evaluation_reads_pictures(
    run_entry: EntryPoint, scenes: Path, projection: Path, tmp_path: Path
) -> None:
    few = ["chat.max_new_tokens=3", "run.evaluate=True", f"model.ckpt={projection}"]
    storage = f"datasets.cc_sbu_align.build_info.storage={scenes}/heldout_seen"
    nowhere = from_features(tmp_path / "nowhere", "cc_sbu_align")
    options = [*few, storage, "run.num_workers=0", f"run.output_dir={tmp_path / 'out'}"]
    logged(run_entry, *options, *nowhere, config=STAGE2)
    assert (tmp_path / "out" / "summary.json").is_file()


def test_the_memory_of_the_towers_is_not_asked_for(
    scenes: Path, cached: Path, tmp_path: Path, caplog: Caplog
) -> None:
    options = stage1_options(scenes, tmp_path)
    for more, told in (([], True), (from_features(cached), False)):
        caplog.clear()
        command(["check", STAGE1, "--options", *options, *more])
        assert "no fault found" in caplog.text
        assert ("visual encoder" in caplog.text) is told
        assert "projection's AdamW" in caplog.text


# The sequence


Planted = tuple[str, str, Path]  # data set, where it lies, its cache


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planted]:
    folder = tmp_path_factory.mktemp("planted")
    shards, pairs = plant_shards(folder / "shards"), plant_pairs(folder / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(AlignmentSource, "units_per_group", 4)
        one = ["datasets.cc_sbu.sample_ratio=0", f"datasets.cc_sbu.build_info.storage={shards}"]
        storage = f"datasets.laion.build_info.storage={shards}"
        cache(STAGE1, folder / "one", storage, *one, "run.num_workers=2")
        two = f"datasets.cc_sbu_align.build_info.storage={pairs}"
        cache(STAGE2, folder / "two", two, "run.num_workers=2", "run.batch_size_train=3")
    return {
        "laion": ("laion", shards, folder / "one"),
        "cc_sbu_align": ("cc_sbu_align", pairs, folder / "two"),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["laion", "cc_sbu_align"])
def test_samples_come_in_the_order_of_the_pictures(
    planted: dict[str, Planted], name: str, workers: int
) -> None:
    _, storage, cached = planted[name]
    entry: dict[str, Any] = {"build_info": {"storage": storage}, "vis_processor": PIXELS}
    if name == "laion":
        entry["buffer_size"] = 5
    found = []
    for features in ({}, {"features": str(cached)}):
        dataset = BUILDERS.build(name, entry | features, name=name)
        loader = MixedLoader([dataset], 3, workers, 7)
        batches = list(itertools.islice(loader, 25))
        told = [(batch["keys"], batch["text"]) for batch in batches]
        bad = [(bad.key, bad.cause, bad.shard, bad.detail) for _, bad in loader.take_bad()]
        found.append((told, bad, loader.state(), dataset.length))
        shape = to_device(batches[0], torch.device("cpu"))["image"].shape
        assert shape == ((3, 16, 128) if features else (3, 3, 112, 112))
        loader.close()
    assert found[0] == found[1]
    causes = {cause for _, cause, *_ in found[0][1]}
    wanted = {"laion": {"no json", "broken shard", "empty shard", "empty caption"}}
    assert wanted.get(name, {"no image", "no caption"}) | {"unreadable image"} <= causes


def test_processors_and_windows_may_change(planted: dict[str, Planted]) -> None:
    """They are no part of what is cached."""
    name, storage, cached = planted["laion"]
    words = {"train": {"name": "blip_caption", "prompt": "look: "}}
    entry = {"build_info": {"storage": storage}, "features": str(cached), "text_processor": words}
    dataset = BUILDERS.build(name, entry | {"buffer_size": 1}, name=name)
    batch = next(iter(MixedLoader([dataset], 30, 0, 7)))
    assert "look: a 3" in batch["text"]
    assert "look: " in batch["text"], "a caption that was empty is judged as it is now"


# Wherever it was cut short


def command_line(output: Path, options: list[str], launcher: str = "") -> list[object]:
    start = [sys.executable, "-m", *launcher.split(), "minigpt4", "cache-features"]
    return [*start, "--cfg-path", STAGE1, "--output", output, "--options", *options]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> tuple[list[str], Path]:
    """Options for a data set of many shards, and their cache, made at one go."""
    folder = tmp_path_factory.mktemp("many")
    for data in ("laion", "cc_sbu"):
        (folder / data).mkdir()
    for number in range(12):
        shutil.copy(scenes / "cc_sbu" / "00000.tar", folder / "laion" / f"{number:05d}.tar")
    shutil.copy(scenes / "cc_sbu" / "00000.tar", folder / "cc_sbu")
    options = stage1_options(folder, folder / "out", num_workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return options, cache(STAGE1, folder / "cached", *options)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(many: tuple[list[str], Path], tmp_path: Path) -> None:
    options, whole = many
    launcher = "torch.distributed.run --standalone --nproc-per-node 2 -m"
    done = finished(command_line(tmp_path / "two", options, launcher))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("720 samples, 0 of them bad") == 1, "only the main process speaks"
    assert contents(tmp_path / "two") == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_where_it_was_stopped(
    many: tuple[list[str], Path], tmp_path: Path, number: signal.Signals
) -> None:
    options, whole = many
    arguments = command_line(tmp_path / "cut", options)
    laion = tmp_path / "cut" / "laion"
    until = time.monotonic() + 200
    with started([str(argument) for argument in arguments]) as process:
        while len(list(laion.glob("0*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert "Traceback" not in stderr
    before = len(list(laion.glob("0*.json")))
    assert 3 <= before < 12
    assert not (laion / "features.json").exists()
    done = finished(arguments)
    assert done.returncode == 0, done.stderr
    told = f"laion: {before} of 12 groups ({60 * before} samples) are there already"
    assert told in done.stderr
    assert contents(tmp_path / "cut") == contents(whole)


def test_only_what_is_damaged_or_changed_is_made_anew(
    planted: dict[str, Planted], tmp_path: Path, caplog: Caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, storage, _ = planted["laion"]
    shutil.copytree(storage, tmp_path / "data")
    data = f"build_info.storage={tmp_path / 'data'}"
    options = [f"datasets.laion.{data}", f"datasets.cc_sbu.{data}", "run.num_workers=0"]
    cached = cache(STAGE1, tmp_path / "cached", *options)
    whole = contents(cached)
    folder = cached / "laion"
    read: list[str] = []
    digest = feature_identity._digest

    def noted(file: Path, *status: int) -> str:
        read.append(file.name)
        return digest(file, *status)

    with monkeypatch.context() as patch:
        patch.setattr(feature_identity, "_digest", noted)
        cache(STAGE1, cached, *options)
    assert "eva_vit.pth" in read
    assert not any(name.endswith(".tar") for name in read), "untouched shards are not read again"
    assert contents(cached) == whole
    (folder / "00000-000.safetensors").write_bytes(b"cut")
    (folder / "00001.json").write_text("{")
    (folder / "00002-000.safetensors").unlink()
    (folder / "features.json").unlink()
    (folder / ".00002-000.safetensors.writing").touch()
    caplog.clear()
    cache(STAGE1, cached, *options)
    assert "laion: 2 of 5 groups" in caplog.text
    left_over = {name: b"" for name in contents(cached) if name.endswith(".writing")}
    assert contents(cached) == whole | left_over
    before = (folder / "00001-000.safetensors").read_bytes()
    write_tar(tmp_path / "data" / "1.tar", pair("another"))
    caplog.clear()
    cache(STAGE1, cached, *options)
    assert "laion: 4 of 5 groups" in caplog.text
    assert (folder / "00001-000.safetensors").read_bytes() != before


def test_large_groups_lie_in_several_files(
    run_entry: EntryPoint, scenes: Path, cached: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cache_folder, "_FILE_BYTES", 500_000)  # 61 samples
    options = stage1_options(scenes, tmp_path / "one", log_freq=1)
    split = cache(STAGE1, tmp_path / "cached", *options)
    assert len(list((split / "laion").glob("*.safetensors"))) == 4
    for name, folder in (("one", cached), ("other", split)):
        more = stage1_options(scenes, tmp_path / name, log_freq=1)
        logged(run_entry, *more, *from_features(folder))
    assert compare(tmp_path / "one", tmp_path / "other") == []


def test_a_training_from_features_goes_on_as_it_was(
    run_entry: EntryPoint, scenes: Path, cached: Path, tmp_path: Path, stop_after: Stop
) -> None:
    def options(name: str) -> list[str]:
        short = {"iters_per_epoch": 6, "log_freq": 4, "num_workers": 2}
        return [*stage1_options(scenes, tmp_path / name, **short), *from_features(cached)]

    logged(run_entry, *options("alone"))
    stop_after(5, signal.SIGTERM)
    arguments = ["--cfg-path", STAGE1, "--options", *options("cut")]
    assert run_entry(train.main, *arguments)[0] == 143
    logged(run_entry, *options("cut"), "run.resume=auto")
    assert compare(tmp_path / "cut", tmp_path / "alone") == []


# What is refused


Own = tuple[list[str], Path, Path]


@pytest.fixture
def own(planted: dict[str, Planted], tmp_path: Path) -> Own:
    """Options of a training from features, its data and its cache: copies, to be spoilt."""
    _, storage, cached = planted["cc_sbu_align"]
    # shutil keeps the times of the files.
    shutil.copytree(storage, tmp_path / "pairs")
    shutil.copytree(cached, tmp_path / "cached")
    for name in ("eva_vit.pth", "q_former.pth"):
        shutil.copy2(f"assets/tiny/{name}", tmp_path)
    options = [
        f"datasets.cc_sbu_align.build_info.storage={tmp_path}/pairs",
        f"datasets.cc_sbu_align.features={tmp_path}/cached",
        f"model.vit_model={tmp_path}/eva_vit.pth",
        f"model.q_former_model={tmp_path}/q_former.pth",
        "model.ckpt=null",
        f"run.output_dir={tmp_path}/out",
        *["run.max_epoch=1", "run.iters_per_epoch=1", "run.num_workers=0"],
    ]
    return options, tmp_path / "pairs", tmp_path / "cached" / "cc_sbu_align"


def spoil_weights(data: Path, cached: Path) -> None:
    file = data.parent / "eva_vit.pth"
    weights = torch.load(file, weights_only=True)
    weights["pos_embed"] += 1e-3
    torch.save(weights, file)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


def unfinished(data: Path, cached: Path) -> None:
    (cached / "features.json").unlink()
    (cached / "00001.json").unlink()


def one_more_pair(data: Path, cached: Path) -> None:
    file = data / "filter_cap.json"
    told = json.loads(file.read_text())
    told["annotations"] += [{"image_id": str(i), "caption": "more"} for i in range(5)]
    file.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "mentions"),
    [
        (spoil_weights, ["made with another vit_model", "eva_vit.pth", "take features out"]),
        (
            lambda data, _: replace(data / "filter_cap.json", "text 1", "text 8"),
            ["filter_cap.json has changed since", "into another folder"],
        ),
        (lambda data, _: flip_a_bit(data / "image" / "9.png"), ["9.png has changed since"]),
        (one_more_pair, ["made of 3 groups of files, this data set has 4"]),
        (
            lambda _, cached: os.truncate(cached / "00001-000.safetensors", 999),
            ["00001-000.safetensors", "damaged", "the same cache-features command"],
        ),
        (
            lambda _, cached: (cached / "00002-000.safetensors").unlink(),
            ["00002-000.safetensors", "not there", "the same cache-features command"],
        ),
        (unfinished, ["1 of 3 groups are missing", "the same cache-features command"]),
        (lambda _, cached: shutil.rmtree(cached), ["not a feature cache, or not complete"]),
        (
            lambda _, cached: write_json(cached / "features.json", {"identity": {}, "groups": []}),
            ["cached/cc_sbu_align: damaged"],
        ),
    ],
)
def test_another_cache_is_refused_with_what_differs(
    run_entry: EntryPoint, own: Own, spoil: Callable[[Path, Path], None], mentions: Sequence[str]
) -> None:
    options, data, cached = own
    spoil(data, cached)
    line = error_of(run_entry, STAGE2, *options)
    assert "datasets.cc_sbu_align.features: " in line
    for mention in mentions:
        assert mention in line


@pytest.mark.parametrize(
    ("option", "mention"),
    [
        ("model.vit_precision=fp32", "model.vit_precision 'fp16', now 'fp32'"),
        ("datasets.cc_sbu_align.vis_processor.train.mean=[0.5,0.5,0.5]", "another image processor"),
        ("datasets.cc_sbu_align.vis_processor.train.image_backend=torchvision", "image processor"),
        ("datasets.cc_sbu_align.vis_processor.train.random_crop=True", "is random: each pass"),
        ("model.trainable=[llama_proj,q_former]", "q_former: what is trained there changes"),
        ("model.trainable=[llama_proj,ln_vision]", "ln_vision: what is trained there changes"),
        ("model.has_qformer=False", "has_qformer True, now False"),
        (
            "model.image_size=56 datasets.cc_sbu_align.vis_processor.train.image_size=56",
            "made with model.image_size 112, now 56",
        ),
    ],
)
def test_other_settings_are_refused(
    run_entry: EntryPoint, own: Own, option: str, mention: str
) -> None:
    assert mention in error_of(run_entry, STAGE2, *own[0], *option.split())


def test_a_file_with_the_same_content_is_the_same_file(
    run_entry: EntryPoint, own: Own, caplog: Caplog
) -> None:
    """Touched, copied without its times, renamed: the content is compared, and is equal."""
    options, data, cached = own
    logged(run_entry, *options, config=STAGE2)
    assert "touched" not in caplog.text
    for file in (data / "filter_cap.json", data / "image" / "9.png", data.parent / "eva_vit.pth"):
        os.utime(file)
    (data.parent / "eva_vit.pth").rename(data.parent / "renamed.pth")
    renamed = [*options, f"model.vit_model={data.parent}/renamed.pth"]
    logged(run_entry, *renamed, config=STAGE2)
    assert "2 files" in caplog.text
    assert "their content is compared" in caplog.text
    # Once more notes the new times.
    features = (cached / "00002-000.safetensors").stat()
    cache(STAGE2, cached.parent, *renamed)
    assert (cached / "00002-000.safetensors").stat() == features
    caplog.clear()
    logged(run_entry, *options[:2], *renamed[4:], renamed[-1], options[3], config=STAGE2)
    assert "touched" not in caplog.text


PLUGIN = """
import random
from minigpt4.processors import ImageProcessor
from minigpt4.registry import IMAGE_PROCESSORS
plain = ImageProcessor(112)
def process(image):
    return plain(image).flip(-1) if random.random() < 0.5 else plain(image)
@IMAGE_PROCESSORS.register("flipping")
def build():
    return process
"""


def test_what_cannot_be_cached_is_told_before_anything_loads(
    run_entry: EntryPoint, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("loaded before the fault was told")

    monkeypatch.setattr(feature_cache, "build_towers", fail)
    options, _, cached = own
    new = tmp_path / "new"
    crop = "datasets.cc_sbu_align.vis_processor.train.random_crop=True"
    assert "datasets.cc_sbu_align: its image processor is random" in refused(
        run_entry, new, *options, crop
    )
    trained = "model.trainable=[llama_proj,q_former]"
    assert "model.trainable: q_former" in refused(run_entry, new, *options, trained)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    yaml = Path(STAGE2).read_text().replace("        image_size: 112\n", "")
    config = tmp_path / "flipping.yaml"
    config.write_text(
        yaml.replace("blip2_image_train", "flipping") + f"plugins: [{tmp_path}/plugin.py]\n"
    )
    arguments = ["cache-features", "--cfg-path", config, "--output", new, "--options", *options]
    assert "its image processor is random" in run_entry.refused(command, *arguments)
    (tmp_path / "file").touch()
    assert "--output: " in refused(run_entry, tmp_path / "file" / "x", *options)
    for option, mention in (
        ("model.vit_precision=fp32", "model.vit_precision"),
        ("run.precision=bf16", "made with arithmetic fp32, now bf16"),
    ):
        line = refused(run_entry, cached.parent, *options, option)
        assert mention in line
        assert "choose another folder" in line
    line = refused(run_entry, cached.parent, *options, dtype="bf16")
    assert "made with dtype fp32, now bf16" in line
    assert not new.exists()


@pytest.mark.parametrize(
    ("factor", "dtype", "mention"),
    [(1e6, "fp16", "use --dtype bf16"), (float("nan"), "auto", "give Inf or NaN")],
)
def test_numbers_that_no_file_can_hold_are_refused(
    run_entry: EntryPoint, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    factor: float, dtype: str, mention: str,
) -> None:  # fmt: skip
    encode = Towers.encode_frozen
    monkeypatch.setattr(Towers, "encode_frozen", lambda *a: encode(*a) * factor)
    line = refused(run_entry, tmp_path / "new", *own[0], dtype=dtype)
    assert mention in line
    assert not list((tmp_path / "new").rglob("*.json"))


def test_a_folder_that_cannot_be_written_or_is_busy_are_one_line(
    run_entry: EntryPoint, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, _, _ = own
    new = tmp_path / "new"
    written: list[Path] = []

    def full(features: torch.Tensor, file: Path) -> None:
        written.append(file)
        save_features(features, file if len(written) == 1 else Path("/dev/full/features"))

    with monkeypatch.context() as patch:
        patch.setattr(cache_folder, "save_features", full)
        line = refused(run_entry, new, *options)
    assert "cannot be written" in line
    assert len(list((new / "cc_sbu_align").glob("0*.json"))) == 1
    busy = RunFolder(new)
    assert busy.lock()
    assert "another process fills it" in refused(run_entry, new, *options)
    busy.unlock()
    cache(STAGE2, new, *options)
    assert (new / "cc_sbu_align" / "features.json").is_file()
