"""The pages in docs: what is made from the code is up to date, what they name is there."""

import argparse
import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

import demo
import train
from docs.generate.configuration import flattened, keys_of, meanings_of
from minigpt4.config import Config, load_config
from minigpt4.config.layers import RETIRED, SECTIONS
from minigpt4.conversation import Template
from minigpt4.conversation.options import GenerationOptions
from minigpt4.errors import ConfigError, Fault
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    MODELS,
    RUNNERS,
    TEXT_PROCESSORS,
    bind,
    visible_parameters,
)
from tests.helpers.pages import commands_of
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *DOCS,
    *sorted((ROOT / "dataset").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")),
    ROOT / "assets/tiny/README.md",
]
WRITTEN_OUT = {"extending.md"}  # tests/test_extending.py runs all of it, on files of the page
OF_THE_SYSTEM = {"pip", "conda", "git", "cd", "source", "mkdir", "cat", "ls", "export", "curl"}
AGAIN = "run: python -m docs.generate"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_configuration_page_is_that_of_the_code():
    # In a process of its own: other tests' plug-ins register their parts in this one.
    written = "from docs.generate.configuration import configuration_page as page; print(page())"
    page = finished([sys.executable, "-c", written]).stdout
    assert (ROOT / "docs/configuration.md").read_text() + "\n" == page, AGAIN


REGISTRIES = (MODELS, BUILDERS, RUNNERS, IMAGE_PROCESSORS, TEXT_PROCESSORS)


def test_every_option_has_a_line_of_its_own():
    registered = [reg.get(name) for reg in REGISTRIES for name in reg.names()]
    for entry in [*registered, GenerationOptions, Template]:
        if entry.__module__.startswith("minigpt4."):  # a plug-in of another test may say nothing
            names = set(visible_parameters(entry)[1])
            assert not names - set(meanings_of(entry)), entry


def documented_keys() -> set[str]:
    """Every dotted key, as the program's own parts have them; ``datasets.`` without a name."""
    parts: list[tuple[str, Any]] = [("chat.", GenerationOptions), ("chat.template.", Template)]
    parts += [("model.", MODELS.get(name)) for name in MODELS.names()]
    parts += [("run.", RUNNERS.get(name)) for name in RUNNERS.names()]
    parts += [("datasets.", BUILDERS.get(name)) for name in BUILDERS.names()]
    keys = {prefix + key.name for prefix, entry in parts for key in keys_of(entry)}
    sets = {"model.visual_encoder", "model.q_former", "model.lora", "datasets.build_info"}
    return keys | sets | {"model.arch", "model.model_type", "run.runner", "datasets.type"}


SHIPPED_YAMLS = [*ROOT.glob("*_configs/*.yaml"), *ROOT.glob("minigpt4/configs/models/*.yaml")]


@pytest.mark.parametrize("file", sorted(SHIPPED_YAMLS), ids=name_of)
def test_every_key_of_a_shipped_yaml_is_on_the_page(file: Path):
    sections = re.split(r"^## ", (ROOT / "docs/configuration.md").read_text(), flags=re.M)
    rows = {
        section.split("\n")[0]: re.findall(r"^\| `([^`]+)` \|", section, flags=re.M)
        for section in sections
    }
    for dotted in flattened(yaml.safe_load(file.read_text())):
        section, *parts = dotted.split(".")
        if section == "datasets":
            parts = parts[1:]
            if parts[0] in ("vis_processor", "text_processor"):
                assert parts[0] in rows["datasets"]
                section, parts = "processors", parts[1:]
        if section == "processors":
            parts = parts[1:]
        assert section in SECTIONS
        if section != "plugins":
            assert ".".join(parts) in rows[section], dotted


def quoted_messages(page: str) -> Iterator[str]:
    """The messages that a page quotes: between backticks in the first cell of a row."""
    for line in page.splitlines():
        if line.startswith("| "):
            for quote in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", line)[1]):
                yield quote.replace("\\|", "|")


def texts_of_the_program() -> list[str]:
    """Every string of the sources, with … for what is filled in while running."""
    files = [*(ROOT / "minigpt4").rglob("*.py"), *(ROOT / "dataset").glob("*.py")]
    found = []
    for file in [*files, ROOT / "train.py", ROOT / "demo.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-+.\d]*[sdgf]|\{[\d:.]*f?\}", "…", node.value))
    for script in [ROOT / "Makefile", *(ROOT / "dataset").glob("*.sh")]:
        echoed = re.findall(r'echo "(?:error: )?(.*?)"', script.read_text())
        found += [re.sub(r"\$\(\w+\)|\$+\(\(.*?\)\)|\$\w+", "…", text) for text in echoed]
    return [re.sub("…+", "…", " ".join(text.split())) for text in found]


def test_messages_quoted_in_troubleshooting_exist_in_the_program():
    texts = texts_of_the_program()
    quoted = list(quoted_messages((ROOT / "docs/troubleshooting.md").read_text()))
    assert len(quoted) >= 40
    assert [quote for quote in quoted if not any(quote in text for text in texts)] == []


def test_the_site_is_built_and_a_broken_link_fails(tmp_path: Path):
    def build(root: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "out"]
        return finished(command, cwd=root)

    result = build(ROOT)
    assert result.returncode == 0, result.stderr
    for page in ("index", "chat", "dataset/README_1_STAGE", "benchmarks/RESULTS"):
        assert (tmp_path / "out" / f"{page}.html").exists(), page
    copy = tmp_path / "copy"
    for name in ("docs", "dataset", "benchmarks", "assets"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, copy)
    with (copy / "docs/chat.md").open("a") as file:
        file.write("\n[nowhere](captions.md#no-such-heading) [none](no_such_page.md)\n")
    result = build(copy)
    assert result.returncode != 0
    assert "no-such-heading" in result.stderr
    assert "no_such_page.md" in result.stderr


def anchor_of(heading: str) -> str:
    """The anchor that a code-hosting site gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def test_the_index_of_the_pages_names_all_of_them():
    linked = set(re.findall(r"\]\(([\w.]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert linked >= {page.name for page in DOCS} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
            assert anchor in map(anchor_of, headings), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_those_of_the_programs(page: Path):
    for command in commands_of(name_of(page)):
        if page.name not in WRITTEN_OUT:
            parse(shlex.split(command.split(" | ")[0], comments=True))


def parse(words: list[str]) -> None:
    """Hold a command against the parser of its program; fails as that does."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        script = ["-m", launch.training_script] if launch.module else [launch.training_script]
        words = ["python", *script, *launch.training_script_args]
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M), target
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:3] == ["python", "-m", "minigpt4"]:
        module = importlib.import_module(f"minigpt4.cli.{words[3].replace('-', '_')}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        check_config_of(parser.parse_args(words[4:]))
    elif words[:2] == ["python", "train.py"]:
        check_config_of(train.parse_arguments(words[2:]))
    elif words[:2] == ["python", "demo.py"]:
        check_config_of(demo.parse_arguments(words[2:]))
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text()
        for option in words[2:]:
            assert not option.startswith("--") or f'"{option}"' in source, option
    elif words[0].startswith("."):  # an environment of its own, whose programs have other parsers
        environment = words[0].split("/")[0]
        assert f"\n{environment}/installed:" in (ROOT / "Makefile").read_text(), environment
    else:
        assert words[0] in OF_THE_SYSTEM, words


def check_config_of(arguments: argparse.Namespace) -> None:
    """Hold the YAML of a command and its ``--options`` against the signatures, not the disk."""
    given = vars(arguments)
    file = given.get("cfg_path") or given.get("cfg")
    if file is not None:
        assert [*key_faults(load_config(file, given["options"]))] == []


def key_faults(config: Config) -> Iterator[Fault]:
    yield from config.faults
    if config.arch in MODELS.names():
        yield from bind(MODELS.get(config.arch), config.model_options(), "model", partial=True)[1]
    for name in config.datasets:
        builder = BUILDERS.get(config.datasets[name].get("type", name))
        yield from bind(builder, config.dataset_options(name), f"datasets.{name}", partial=True)[1]
    yield from bind(RUNNERS.get("runner_base"), config.run_options(), "run", partial=True)[1]
    yield from bind(GenerationOptions, config.chat, "chat", partial=True)[1]


@pytest.mark.parametrize(
    "words",
    [
        "torchrun --nproc-per-node 1 train.py --cfg train_configs/none.yaml",
        "python -m minigpt4 chat --cfg-path eval_configs/tiny_eval.yaml --pictures a.png",
        "python -m minigpt4 described",
        "python train.py --cfg-path train_configs/tiny_stage1_pretrain.yaml --options run.epochs=1",
        "make quickstarts",
        "python benchmarks/growth.py --sizes small",
        "rm -rf /",
    ],
)
def test_a_command_that_is_none_is_found(words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises((AssertionError, SystemExit, ImportError, ConfigError)):
        parse(shlex.split(words))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_on_the_pages_has_keys_that_exist(page: Path, tmp_path: Path):
    if page.name in WRITTEN_OUT:
        return
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.S)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        found = key_faults(load_config(file))
        unset = ("model.arch", "model.model_type")
        assert [fault for fault in found if fault.key not in unset] == [], block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_in_the_text_exist(page: Path):
    known = documented_keys() | set(RETIRED)
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        found = re.match(r"(model|run|chat)\.[a-z_]\w*(\.[a-z_]\w*)*", span)
        if found and not re.search(r"\.(safetensors|config|json)", found[0]):  # transformers'
            assert found[0] in known, span
