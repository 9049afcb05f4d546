"""The shipped YAML files are valid but for a user's paths; the environment fits the package."""

import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from minigpt4.__main__ import main
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.stand_ins import stand_in_paths

YAMLS = sorted([*ROOT.glob("train_configs/*.yaml"), *ROOT.glob("eval_configs/*.yaml")])


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.name)
def test_shipped_yaml_passes_check_with_existing_paths(
    file: Path, run_entry: EntryPoint, tmp_path: Path
):
    config = yaml.safe_load(file.read_text())
    always = ("model.ckpt", "model.llama_model") if file.parent.name == "eval_configs" else ()
    options = [
        f"{key}={path}"
        for key, path in stand_in_paths(tmp_path).items()
        if key in always or has_key(config, key)
    ]
    run_entry.ok(main, "check", "--cfg-path", file, "--options", *options)


def has_key(config: object, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def test_environment_and_package_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "minigpt4"
    assert {"pip": ["-e ."]} in environment["dependencies"]
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert tuple(map(int, python.split("=")[1].split("."))) >= (3, 10)
    pinned = (ROOT / "constraints.txt").read_text()
    for requirement in metadata.requires("minigpt4") or []:
        name = re.split(r"[<>=;]", requirement)[0].strip()
        if "extra ==" in requirement:
            continue
        assert re.search(rf"^{re.escape(name)}==", pinned, flags=re.M), f"{name} is not pinned"
