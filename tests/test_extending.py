"""Every file and command of docs/extending.md, on tiny models; and what plug-ins can get wrong."""

import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import train
from minigpt4.__main__ import main
from minigpt4.chat import load_chat
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.conversation import TEMPLATES
from minigpt4.errors import ConfigError
from minigpt4.preflight.preflight import preflight
from tests.helpers.messages import one_line
from tests.helpers.other_llms import save_gpt_neox, save_model, save_qwen2, save_tokenizer
from tests.helpers.repo import ROOT, EntryPoint

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"`([\w.]+)`:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
TINY = ["model.model_type=tiny", "run.warmup_steps=0"]
SHORT = [
    *("run.max_epoch=1", "run.iters_per_epoch=2", "run.batch_size_train=2", "run.num_workers=0"),
    "run.seed=1",
]


@pytest.fixture
def page(tmp_path: Path, own_registrations: None) -> Iterator[Path]:
    """The page's files in a folder; what their plug-ins register is forgotten afterwards."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    known = set(TEMPLATES)
    yield tmp_path
    for name in set(TEMPLATES) - known:
        del TEMPLATES[name]


@pytest.fixture
def picture(scenes: Path) -> Path:
    return scenes / "heldout_seen" / "image" / "0.jpg"


def words_of(command: str, page: Path, picture: Path | None = None) -> list[str]:
    """A command's words as they reach its program, for files that are elsewhere."""
    words = shlex.split(command)[1:]
    words = words[2:] if words[0] == "-m" else words[1:]
    words = [str(page / word) if word in FILES else word for word in words]
    return [str(picture) if word == "photo.jpg" else word for word in words]


def the_command(start: str) -> str:
    (command,) = [command for command in COMMANDS if command.startswith(start)]
    return command


def run_training(
    run_entry: EntryPoint, words: list[str], output: Path, *options: str
) -> dict[str, torch.Tensor]:
    """What a training leaves behind; it must end well."""
    given = [] if "--options" in words else ["--options"]
    more = [*TINY, *SHORT, *options, f"run.output_dir={output}"]
    run_entry.ok(train.main, *words, *given, *more)
    (file,) = output.glob("*/checkpoint_0.pth")
    weights = torch.load(file, weights_only=True)["model"]
    assert isinstance(weights, dict)
    return weights


def ask(
    run_entry: EntryPoint, command: str, page: Path, picture: Path, output: Path, *options: str
) -> None:
    """The page's question; RUN stands for the run's folder."""
    words = words_of(command, page, picture)
    given = [] if "--options" in words else ["--options"]
    checkpoint = [f"model.ckpt={file}" for file in output.glob("*/checkpoint_0.pth")]
    more = [*TINY, *options, *checkpoint, "chat.max_new_tokens=8"]
    run_entry.ok(main, *words, *given, *more)


def test_another_language_model_through_both_stages(
    run_entry: EntryPoint, page: Path, scenes: Path, picture: Path
) -> None:
    folder = save_qwen2(page / "qwen2")
    stage1 = the_command("python train.py --cfg-path train_configs/minigpt4_stage1")
    (llm,) = [word for word in shlex.split(stage1) if "llama_model" in word]
    shards = [f"datasets.{name}.build_info.storage={scenes}/{name}" for name in ("laion", "cc_sbu")]
    sizes = [f"datasets.{name}.vis_processor.train.image_size=112" for name in ("laion", "cc_sbu")]
    words = [f"model.llama_model={folder}" if w == llm else w for w in words_of(stage1, page)]
    weights = run_training(run_entry, words, page / "one", *shards, *sizes, "run.device=cpu")
    assert weights["llama_proj.weight"].shape == (32, 128)

    (checkpoint,) = (page / "one").glob("*/checkpoint_0.pth")
    options = [f"model.llama_model={folder}", f"model.ckpt={checkpoint}"]
    train_and_ask(run_entry, "qwen2.yaml", page, scenes, picture, *options)


def train_and_ask(
    run_entry: EntryPoint, yaml: str, page: Path, scenes: Path, picture: Path, *options: str
) -> None:
    """The two commands of a YAML of stage 2 and the chat."""
    data = (
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align",
        "datasets.cc_sbu_align.vis_processor={train: {name: blip2_image_train, image_size: 112}}",
    )
    words = words_of(the_command(f"python train.py --cfg-path {yaml}"), page)
    run_training(run_entry, words, page / "two", *options, *data)
    chat = the_command(f"python -m minigpt4 chat --cfg-path {yaml}")
    ask(run_entry, chat, page, picture, page / "two", *options, *data[1:])


def test_a_template_that_is_written_out(
    run_entry: EntryPoint, page: Path, scenes: Path, picture: Path
) -> None:
    options = [f"model.llama_model={save_gpt_neox(page / 'neox')}", "model.ckpt="]
    train_and_ask(run_entry, "gpt_neox.yaml", page, scenes, picture, *options)
    chat = load_chat(page / "gpt_neox.yaml", [*TINY, *options])
    session = chat.start([(["one"], "two")])
    assert session.conversation.transcript() == (
        "### Instruction:\none\n\n### Response:\ntwo<|endoftext|>\n\n"
    )
    assert set(chat.template.forbidden) == {"###", "<|endoftext|>"}


def test_a_data_set_and_a_task(run_entry: EntryPoint, page: Path, picture: Path) -> None:
    database = page / "photos.db"
    jpeg = picture.read_bytes()
    rows = [(1, jpeg, "a red ring"), (2, jpeg, None), (3, b"broken", "x"), (4, jpeg, "blue")]
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE photos (id, jpeg, caption)")
        connection.executemany("INSERT INTO photos VALUES (?, ?, ?)", rows)
    words = words_of(the_command("python train.py --cfg-path photos.yaml"), page)
    options = [f"datasets.holidays.database={database}", "model.ckpt="]
    run_training(run_entry, words, page / "out", *options)
    (run,) = (page / "out").iterdir()
    bad = (run / "bad_samples.jsonl").read_text()
    assert '"no caption"' in bad
    assert '"unreadable image"' in bad

    # The task's words are read, and its options and the data set's are checked.
    config = load_config(page / "photos.yaml", [*options, "datasets.holidays.databas=a"])
    with one_line(ConfigError, "datasets.holidays.databas: unknown key; did you mean 'database'?"):
        check_sections(config, "data")


def test_what_the_task_makes_of_a_caption(page: Path) -> None:
    from minigpt4.models.tokenizer import load_tokenizer
    from minigpt4.registry import TASKS

    load_config(page / "photos.yaml")
    prompts = ["###Human: <Img><ImageHere></Img> Describe it. ###Assistant: "]
    task = TASKS.build("told_lengths", {}, prompts=prompts, seed=1, rank=0)
    tokenizer = load_tokenizer("assets/tiny/llama")
    (exchange,) = task.row("one two three " * 4, 1, 0, tokenizer, "###")
    assert exchange.prompt.startswith(
        "###Human: <Img><ImageHere></Img> In 10 words: Describe it. ###Assistant:"
    )


def test_a_family_of_language_models(run_entry: EntryPoint, page: Path, picture: Path) -> None:
    load_config(page / "bare_llama.yaml")  # registers it
    settings = AutoConfig.for_model(
        "bare_llama",
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = save_model(page / "llm", settings)
    save_tokenizer(folder, ("<s>", "</s>"), "</s>", "<s>")
    options = [f"model.llama_model={folder}", "model.ckpt="]
    chat = the_command("python -m minigpt4 chat --cfg-path bare_llama.yaml")
    ask(run_entry, chat, page, picture, page, *options)
    loaded = load_chat(page / "bare_llama.yaml", options)
    assert type(loaded.model.llama_model).__name__ == "BareLlamaForCausalLM"
    session = loaded.start([(["one"], "two")])
    (ids,) = loaded.model.prompt_segments(session.conversation.prompt(), [])
    assert ids[0] == 0, "its tokenizer puts bos in front of a text"
    assert session.conversation.transcript() == (
        "You see pictures and answer questions.\nQ: one\nA: two\n"
    )


def test_a_vision_tower_and_a_schedule_are_one_file_each(
    run_entry: EntryPoint, scenes: Path, page: Path, picture: Path
) -> None:
    import minigpt4

    options = [
        f"model.vision_tower.weights={page / 'conv.pth'}",
        f"datasets.cc_sbu_align.build_info.storage={scenes / 'cc_sbu_align'}",
    ]
    config = load_config(page / "conv_tower.yaml", options)
    tower = minigpt4.VISION_TOWERS.build("conv", {"weights": "conv.pth"})
    torch.save(tower.build().state_dict(), page / "conv.pth")
    assert config.faults == ()
    words = words_of(the_command("python train.py --cfg-path conv_tower.yaml"), page)
    run_training(run_entry, words, page / "out", *options, "run.max_epoch=1")
    (run,) = (page / "out").iterdir()
    weights = torch.load(run / "checkpoint_0.pth", weights_only=True)["model"]
    assert weights["llama_proj.weight"].shape == (160, 4 * 64), "four features to an image token"
    lines = [json.loads(line) for line in (run / "log.txt").read_text().splitlines()]
    assert lines[0]["lr"] == pytest.approx(1e-4 + 9e-4 * 0.5**3), "the second of two steps"
    trained = [*options, f"model.ckpt={run / 'checkpoint_0.pth'}"]
    chat = load_chat(page / "conv_tower.yaml", trained)
    assert chat.encode_images([picture]).shape == (1, 16, 160)

    wrong = load_config(page / "conv_tower.yaml", [*options, "model.vision_tower.widht=3"])
    with one_line(ConfigError, "model.vision_tower.widht: unknown key; did you mean 'width'?"):
        check_sections(wrong, "training")
    narrow = load_config(page / "conv_tower.yaml", [*options, "model.vision_tower.width=32"])
    with one_line(ConfigError, "model.vision_tower.weights", "the model wants [32"):
        preflight(narrow, "training")
    config = load_config(page / "conv_tower.yaml", [*options, "run.lr_power=-1"])
    with one_line(ConfigError, "run.lr_power: -1"):
        check_sections(config, "training")


def test_the_page_shows_nothing_that_is_not_tried() -> None:
    assert set(FILES) == {
        *("qwen2.yaml", "gpt_neox.yaml", "photos.py", "told_lengths.py", "photos.yaml"),
        *("bare_llama.py", "bare_llama.yaml"),
        *("conv_tower.py", "polynomial_lr.py", "conv_tower.yaml"),
    }
    assert len(COMMANDS) == 8


def test_plug_ins_import_the_public_api_alone() -> None:
    for name, content in FILES.items():
        assert not re.search(r"(from|import) minigpt4\.", content), name


# What one gets wrong in a plug-in

BUILDER = "from typing import Annotated\nfrom minigpt4.registry import BUILDERS, TASKS, Hidden\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import no_such_package\n", "cannot be imported (No module named 'no_such_package')"),
        ("def f(:\n", "cannot be imported (SyntaxError: "),
        ("1 / 0\n", "cannot be imported (ZeroDivisionError: "),
        (
            "from minigpt4.registry import BUILDERS\n@BUILDERS.register('laion')\n"
            "def build(name: str) -> None: ...\n",
            "the data set 'laion' is registered already; choose another",
        ),
        (
            "from minigpt4.conversation import TEMPLATES, register_template\n"
            "register_template('vicuna_v0', TEMPLATES['llama_2'])\n",
            "the template 'vicuna_v0' is registered already; choose another",
        ),
        (
            BUILDER + "@BUILDERS.register('mine')\ndef build(name, folder=''): ...\n",
            "the data set 'mine': its parameter 'name' has no type",
        ),
        (
            BUILDER + "@BUILDERS.register('mine')\n"
            "def build(name: Annotated[str, Hidden], folder=''): ...\n",
            "the data set 'mine': its parameter 'folder' has no type",
        ),
        (
            BUILDER + "@BUILDERS.register('mine')\ndef build(name: str): ...\n",
            "the data set 'mine': its parameter 'name' is the program's: Annotated[…, Hidden]",
        ),
        (
            "from __future__ import annotations\n" + BUILDER + "@BUILDERS.register('mine')\n"
            "def build(name: Annotated[str, Hidden], path: Path): ...\n",
            "the data set 'mine': its types are not to be found (name 'Path' is not defined)",
        ),
        (
            BUILDER + "@TASKS.register('mine')\nclass Task:\n"
            "    def train_step(self, model, batch, step): ...\n",
            "the task 'mine' lacks rows and evaluation_step",
        ),
        (BUILDER + "TASKS.register('mine')(3)\n", "the task 'mine': 3 is neither"),
        (
            "from minigpt4.metrics import Metric\nclass Mine(Metric): ...\n",
            "cannot be imported (TypeError: the metric Mine defines neither score nor measure",
        ),
    ],
)
def test_a_mistake_in_a_plug_in_is_one_line(
    run_entry: EntryPoint, page: Path, code: str, expected: str
) -> None:
    plugin = page / "mine.py"
    plugin.write_text(code)
    options = ["model.ckpt=", f"plugins=[{plugin}]"]
    yaml = "eval_configs/tiny_eval.yaml"
    line = run_entry.refused(main, "check", "--cfg-path", yaml, "--options", *options)
    assert f"plugins: {plugin}: " in line
    assert expected in line


def test_a_builder_that_gives_no_data_set(run_entry: EntryPoint, page: Path) -> None:
    plugin = page / "mine.py"
    plugin.write_text(
        BUILDER + "@BUILDERS.register('mine')\ndef build(size: int = 1):\n    return [size]\n"
    )
    (page / "mine.yaml").write_text(
        "plugins: [./mine.py]\nmodel: {arch: minigpt4, model_type: tiny}\n"
        "datasets: {some: {type: mine}}\n"
        "run: {init_lr: 0.01, min_lr: 0.001, max_epoch: 1, iters_per_epoch: 2, output_dir: out}\n"
    )
    error = run_entry.refused(train.main, "--cfg-path", page / "mine.yaml")
    assert "datasets.some: its builder gives [1], no DataSet" in error
