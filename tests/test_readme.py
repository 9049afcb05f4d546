"""Every command in the README and the data set pages is known here, and tried in some way."""

import argparse
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from minigpt4.cli import (
    apply_delta,
    caption,
    chat,
    check,
    check_data,
    look,
    make_alignment_set,
    serve,
)
from tests.helpers.pages import commands_of
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.stand_ins import stand_in_paths

PAGES = [
    "README.md",
    "assets/tiny/README.md",
    *sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("dataset/*.md")),
    # Commands and links of docs/*.md: tests/test_docs.py.
]
CHECK_SHARDS = (
    "python -m minigpt4 check-shards '/data/laion/{00000..00010}.tar' --output bad_samples.jsonl"
)
REPORT = (
    "python -m minigpt4 report output/quickstart/stage1/* output/quickstart/stage2/* "
    "--output output/report"
)
# Commands that another test or .ci/run runs as they stand.
TRIED_ELSEWHERE = {
    "make quickstart": "tests/tools/tiny_world/test_quickstart.py, and whole in .ci/run",
    "make quickstart SEED=1": "tests/tools/tiny_world/test_quickstart.py passes a seed",
    "make test": ".ci/run",
    "make demo": "tests/apps/test_demo_browser.py starts demo.py on the same YAML",
    "make lint": ".ci/run",
    "python demo.py --cfg-path eval_configs/tiny_eval.yaml": "tests/apps/test_demo_browser.py",
    "python -m minigpt4 make-scenes --output output/scenes": "tests/tools/tiny_world",
    "python -m assets.tiny.making --output output/tiny_towers": "test_make_tiny_towers.py",
    "python benchmarks/tiny_world.py --seeds 3 --json output/tiny_world.json": "tests/benchmarks",
    "python benchmarks/kill_resume.py --kills 100 --processes 2": "tests/test_survival.py, reduced",
    "python benchmarks/bad_shards.py": "tests/benchmarks/test_bad_shards.py, reduced",
    "python benchmarks/config_fuzz.py --mutations 1000 --seed 0": "tests/benchmarks",
    "python benchmarks/chat_sessions.py --sessions 50": "tests/benchmarks, reduced",
    "python benchmarks/chat_prefill.py": "tests/benchmarks, reduced",
    "python benchmarks/caption_throughput.py": "tests/benchmarks, reduced",
    "python benchmarks/server_fuzz.py --requests 1000": "tests/benchmarks, reduced",
    "python benchmarks/looks.py --json output/looks.json --sheet output/looks.png": (
        "tests/benchmarks/test_looks.py, reduced"
    ),
    "make lmms-env": "slow tests of tests/apps/test_lmms_eval.py",
    REPORT: "tests/tools/report, and tests/tools/tiny_world/test_quickstart.py",
    CHECK_SHARDS: "tests/tools/data_check/test_check_shards.py",
    "make dataset-env": "slow tests of tests/dataset/test_download.py",
    "bash dataset/download_cc_sbu.sh": "tests/dataset/test_download.py",
    "bash dataset/download_laion.sh": "tests/dataset/test_download.py",
    "python -m minigpt4 check-shards data/cc_sbu data/laion --output bad_samples.jsonl": (
        "tests/tools/data_check/test_check_shards.py"
    ),
    "python tests/parity.py tests/golden": "tests/test_parity.py checks the same, unit by unit",
}


# Run with these and other arguments in a test of their own, most of them in tests/cli.
CHATTING: dict[str, ModuleType] = {
    "chat": chat,
    "caption": caption,
    "serve": serve,
    "look": look,
    "check-data": check_data,
    "make-alignment-set": make_alignment_set,
}


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def test_there_are_commands():
    assert "make quickstart" in COMMANDS
    assert "make test" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, run_entry: EntryPoint, tmp_path: Path):
    words = shlex.split(command)
    if command in commands_of("docs/export.md"):
        return  # tests/tools/export/test_export.py runs the whole page on the embedded default
    if command in commands_of("docs/your_data.md"):
        return  # tests/datasets/own_rows/test_own_data.py runs the whole page likewise
    if command in commands_of("docs/extending.md"):
        return  # tests/test_extending.py runs its examples
    if words[:2] == ["python", "dataset/convert_links.py"]:
        return  # tests/dataset/test_convert_links.py runs each of them on lists of its own
    if command in commands_of("dataset/README_OXFORD_HIC.md") and not {"train.py", "demo.py"} & {
        *words
    }:
        return  # tests/dataset/test_prepare_oxford_hic.py takes them from the page
    if command in TRIED_ELSEWHERE:
        if words[0] == "make":
            dry = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False
            )
            assert dry.returncode == 0, dry.stderr
        return
    if words[2:3] == ["minigpt4"] and words[3] in CHATTING:
        parser = argparse.ArgumentParser()
        CHATTING[words[3]].add_arguments(parser)
        parser.parse_args(words[4:])
        return
    if {"train.py", "demo.py", "check", "evaluate"} & set(words):
        before = "--cfg-path" if "--cfg-path" in words else "check"
        yaml_file = words[words.index(before) + 1]
        given = words[words.index("--options") + 1 :] if "--options" in words else []
        stand_ins = stand_in_paths(tmp_path)
        keys = [option.split("=")[0] for option in given]
        text = (ROOT / yaml_file).read_text()
        if "datasets.cc_sbu_align.features" in keys:
            stand_ins |= cached_features(run_entry, yaml_file, stand_ins, tmp_path)
        options = [
            f"{key}={stand_ins.get(key, given[i].split('=', 1)[1])}" for i, key in enumerate(keys)
        ]
        options += [
            f"{key}={value}"
            for key, value in stand_ins.items()
            if key not in keys and yaml_names(key, text)
        ]
        arguments = [
            "check",
            "--cfg-path",
            yaml_file,
            *(["--options", *options] if options else []),
        ]
        from minigpt4.__main__ import main

        code, stderr = run_entry(main, *arguments)
        assert code == 0, stderr
        return
    if words[3:4] == ["cache-features"]:
        stand_ins = stand_in_paths(tmp_path)
        cached_features(run_entry, words[words.index("--cfg-path") + 1], stand_ins, tmp_path)
        return
    if command in commands_of("docs/server.md"):
        return  # tests/apps/test_server.py runs the page's requests and its first command
    if words[:4] == ["python", "-m", "minigpt4", "apply-delta"]:  # run in test_apply_delta.py
        parser = argparse.ArgumentParser()
        apply_delta.add_arguments(parser)
        parser.parse_args(words[4:])
        return
    if words[:2] == ["conda", "env"]:
        environment = yaml.safe_load((ROOT / "environment.yml").read_text())
        assert {"pip": ["-e ."]} in environment["dependencies"]
        return
    if words[:3] == ["pip", "install", "-e"] or words[0] in {"git", "cd", "conda"}:
        return
    raise AssertionError(f"no test knows this command: {command}")


def cached_features(
    run_entry: EntryPoint, yaml_file: str, stand_ins: dict[str, str], folder: Path
) -> dict[str, str]:
    """Features of a stand-in data set, made by the command itself."""
    from minigpt4.__main__ import main

    storage = "datasets.cc_sbu_align.build_info.storage"
    options = ["--options", f"{storage}={stand_ins[storage]}", "run.num_workers=0"]
    output = folder / "features"
    arguments = ["cache-features", "--cfg-path", yaml_file, "--output", output, *options]
    code, stderr = run_entry(main, *arguments)
    assert code == 0, stderr
    return {"datasets.cc_sbu_align.features": str(output)}


def test_environment_and_package_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "minigpt4"
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert tuple(map(int, python.split("=")[1].split("."))) >= (3, 10)
    pinned = (ROOT / "constraints.txt").read_text()
    for requirement in metadata.requires("minigpt4") or []:
        name = re.split(r"[<>=;]", requirement)[0].strip()
        if "extra ==" in requirement:
            continue
        assert re.search(rf"^{re.escape(name)}==", pinned, flags=re.M), f"{name} is not pinned"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "train_configs").glob("*.yaml")), ids=lambda f: f.name
)
def test_every_training_yaml_is_sound_but_for_its_paths(
    file: Path, run_entry: EntryPoint, tmp_path: Path
):
    from minigpt4.__main__ import main

    text = file.read_text()
    options = [f"{k}={v}" for k, v in stand_in_paths(tmp_path).items() if yaml_names(k, text)]
    code, stderr = run_entry(main, "check", "--cfg-path", file, "--options", *options)
    assert code == 0, stderr


def yaml_names(key: str, text: str) -> bool:
    value = yaml.safe_load(text)
    parts = key.split(".")
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


@pytest.mark.parametrize(
    "file", sorted((ROOT / "eval_configs").glob("*.yaml")), ids=lambda f: f.name
)
def test_every_chat_yaml_is_sound_but_for_its_paths(
    file: Path, run_entry: EntryPoint, tmp_path: Path
):
    from minigpt4.__main__ import main

    text = file.read_text()
    options = [
        f"{key}={path}"
        for key, path in stand_in_paths(tmp_path).items()
        if key in ("model.ckpt", "model.llama_model") or yaml_names(key, text)
    ]
    code, stderr = run_entry(main, "check", "--cfg-path", file, "--options", *options)
    assert code == 0, stderr


def test_check_is_a_command():
    assert check.__doc__
