"""Every YAML of the repo at full size, without the memory: built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from minigpt4.config import load_config
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.registry import MODELS
from tests.helpers.llama_folders import SIZES, TRAINED, llama_folder
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.comparison import files_of, read_json
from tests.helpers.recorded.manifests import build_on_meta
from tests.helpers.repo import ROOT

YAMLS = sorted(file for part in ("train", "eval") for file in (ROOT / f"{part}_configs").glob("*"))


def build(file: Path, *options: str) -> MiniGPT4:
    config = load_config(file, options)
    return MODELS.build(config.arch, config.model_options(), device=torch.device("meta"))


def language_models(file: Path) -> list[str]:
    model = yaml.safe_load(file.read_text())["model"]
    if model["model_type"] == "tiny":
        return [""]
    return ["Llama-2-7B"] if "llama2" in model["model_type"] else ["Vicuna-7B", "Vicuna-13B"]


@pytest.mark.parametrize(
    ("file", "name"),
    [(file, name) for file in YAMLS for name in language_models(file)],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_every_yaml_is_built(file: Path, name: str, tmp_path: Path) -> None:
    options = ["model.ckpt="]
    if name:
        options.append(f"model.llama_model={llama_folder(tmp_path / 'llama', name)}")
    model = build(file, *options)
    trained = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, _ in trained] == ["llama_proj.weight", "llama_proj.bias"]
    if name:
        assert sum(count for _, count in trained) == TRAINED[name]
        frozen = [part for n, part in model.named_parameters() if not n.startswith("llama_proj")]
        assert all(part.is_meta for part in frozen if part.numel() > 10_000)


def test_all_sizes_are_covered() -> None:
    assert {name for file in YAMLS for name in language_models(file)} == {"", *SIZES}
    for stage in "12":
        files = [file for file in YAMLS if f"_stage{stage}" in file.name]
        assert {name for file in files for name in language_models(file)} >= {*SIZES}


def test_the_start_up_table_tells_parameters_gigabytes_and_dtypes() -> None:
    facts = read_json(next(files_of(GOLDEN / "manifests", "main*vicuna7b*.json")))
    lines = parameter_table(build_on_meta(facts, precision="fp16")).splitlines()
    rows = {line.split()[0]: line.split() for line in lines[:-1]}
    assert rows["llama_model"][1:] == ["frozen", "6,738,423,808", "13.4768", "GB", "float16"]
    assert rows["llama_proj"][1:] == ["trained", "3,149,824", "0.0126", "GB", "float32"]
    assert rows["visual_encoder"][-2:] == ["float16,", "float32"]
    assert lines[-1].strip() == "3,149,824 parameters are trained, 0.0402 % of all"
