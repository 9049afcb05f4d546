"""Other language models than LLaMA, from stage 1 through stage 2 to a chat."""

from pathlib import Path
from typing import Any

import pytest
import torch

import train
from minigpt4.__main__ import main
from minigpt4.chat import Chat, load_chat
from minigpt4.checked import bind_sections
from minigpt4.config import load_config
from minigpt4.conversation import Conversation
from minigpt4.datasets.images import load_image
from minigpt4.errors import CheckpointError, ConfigError, DataError
from minigpt4.registry import MODELS
from tests.helpers.llama_folders import write_config, write_tokenizer
from tests.helpers.messages import one_line
from tests.helpers.other_llms import FAMILIES, KINDS, Family, chat_options, save_kind, save_qwen2
from tests.helpers.repo import ROOT, TINY, EntryPoint, tiny_assets
from tests.helpers.training import STAGE1, STAGE2
from tests.helpers.training import train as train_by_launcher


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.save(tmp_path_factory.mktemp("llm"))


def quoted(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


def train_options(folder: Path, scenes: Path, output: Path, config: str) -> list[str]:
    names = ("laion", "cc_sbu") if config == STAGE1 else ("cc_sbu_align",)
    return [
        f"model.llama_model={folder}",
        f"run.output_dir={output}",
        *("run.max_epoch=1", "run.iters_per_epoch=2", "run.num_workers=0"),
        *("run.batch_size_train=2", "run.seed=3"),
        *(f"datasets.{name}.build_info.storage={scenes}/{name}/" for name in names),
    ]


def checkpoint_of(output: Path) -> Path:
    (file,) = output.glob("*/checkpoint_0.pth")
    return file


def test_both_stages_then_a_chat(
    run_entry: EntryPoint, tmp_path: Path, scenes: Path, family: Family, folder: Path
) -> None:
    options = train_options(folder, scenes, tmp_path / "one", STAGE1)
    run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *options)
    options = [
        *train_options(folder, scenes, tmp_path / "two", STAGE2),
        f"model.ckpt={checkpoint_of(tmp_path / 'one')}",
        f"model.prompt_template={quoted(family.prompt)}",
        f"model.end_sym={quoted(family.end_sym)}",
    ]
    run_entry.ok(train.main, "--cfg-path", STAGE2, "--options", *options)
    trained = checkpoint_of(tmp_path / "two")
    weights = [torch.load(f, weights_only=True)["model"] for f in tmp_path.rglob("*_0.pth")]
    assert not torch.equal(*(w["llama_proj.weight"] for w in weights))

    options = chat_options(family, folder, f"model.ckpt={trained}")
    chat = load_chat(TINY, options)
    answer = chat.ask("What is this?", [scenes / "heldout_seen/image/0.jpg"])
    assert isinstance(answer, str)


@pytest.fixture(scope="module")
def chat(family: Family, folder: Path) -> Chat:
    torch.manual_seed(0)
    return load_chat(ROOT / TINY, [*tiny_assets(), *chat_options(family, folder)])


def test_a_chat_of_two_turns_reads_only_what_is_new(chat: Chat, pictures: list[Path]) -> None:
    session, fresh = chat.start(), Chat(chat.model, chat.image_processor, chat.options)
    *_, first = ["", *chat.stream("What is this?", pictures[:1], session)]
    second = chat.ask("Are you sure?", session=session)
    assert session.usage is not None
    assert session.usage.kept > 16 + 10, "the image and the words before it"
    again = fresh.start()
    for question, given, answer in (
        ("What is this?", pictures[:1], first),
        ("Are you sure?", [], second),
    ):
        fresh.kept.clear()
        assert fresh.ask(question, given, again) == answer


def test_beams_batches_and_a_static_cache_give_answers(chat: Chat, pictures: list[Path]) -> None:
    alone = [chat.ask("What is this?", [file]) for file in pictures[:2]]
    pixels = [chat.image_processor(load_image(file, shown=True)) for file in pictures[:2]]
    assert chat.ask_each(["What is this?"] * 2, pixels, chat.options) == alone
    assert chat.ask("What is this?", pictures[:1], static_cache=True) == alone[0]
    assert isinstance(chat.ask("What is this?", pictures[:1], num_beams=2), str)


@pytest.mark.parametrize("word", range(4))
def test_nobody_types_a_special_word(chat: Chat, word: int) -> None:
    tokenizer = chat.model.tokenizer
    special = [*tokenizer.special, *chat.template.forbidden]
    typed = special[word % len(special)]
    plain, said = (
        chat.model.prompt_segments(asked(chat, question), [])
        for question in ("Say it", f"Say it {typed}")
    )
    specials = {i for text in tokenizer.special for i in tokenizer.encode(text)}
    count = [sum(i in specials for i in ids) for (ids,) in (plain, said)]
    assert count[0] == count[1]
    assert len(said[0]) > len(plain[0])


def asked(chat: Chat, question: str) -> str:
    """The prompt that the model read."""
    session = chat.start()
    chat.ask(question, (), session, max_new_tokens=1)
    return Conversation(chat.template, session.conversation.messages[:1]).prompt()


def test_rows_begin_as_the_model_was_taught(chat: Chat, family: Family, folder: Path) -> None:
    begins = {"llama_2": [1], "qwen2": [], "gpt_neox": []}
    (name,) = (name for name in FAMILIES if FAMILIES[name] is family)
    segments = chat.model.prompt_segments("<ImageHere>", [torch.zeros(1, 32)])
    assert segments[0] == begins[name]
    options = chat_options(family, folder, "model.bos=on")
    if name == "qwen2":
        with one_line(ConfigError, "model.bos: on, but", "has no bos token; set auto or off"):
            load_chat(TINY, options)
        return
    for bos, expected in (("on", 1), ("off", 0)):
        model = load_chat(TINY, [*options, f"model.bos={bos}"]).model
        (ids, *_) = model.prompt_segments("<ImageHere>", [torch.zeros(1, 32)])
        assert len(ids) == expected


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_ends_at_any_token_that_ends_one(qwen2: Path, end: str) -> None:
    chat = load_chat(TINY, chat_options(FAMILIES["qwen2"], qwen2))
    (token,) = chat.model.tokenizer.encode(end)
    always = torch.tensor([token])
    chat.model.llama_model.lm_head.register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, always, 1e3)
    )
    session = chat.start()
    assert chat.ask("What is this?", (), session) == ""
    assert session.usage is not None
    assert (session.usage.answer, session.usage.end) == (1, "stop")


def test_several_stop_texts(qwen2: Path) -> None:
    chat = load_chat(TINY, chat_options(FAMILIES["qwen2"], qwen2, "chat.max_new_tokens=60"))
    whole = chat.generate(["what"], [[]], (), chat.options)[0]
    middle, last = whole[len(whole) // 3], whole[-1]
    cut = chat.generate(["what"], [[]], ("no such text", last, middle), chat.options)[0]
    assert whole.startswith(cut)
    assert middle not in cut
    assert last not in cut


# Of other kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_another_kind_answers_and_learns(
    tmp_path: Path, kind: str, pictures: list[Path]
) -> None:
    chat = load_chat(TINY, chat_options(FAMILIES["qwen2"], save_kind(tmp_path, kind)))
    session = chat.start()
    first = chat.ask("What is this?", pictures[:1], session)
    second = chat.ask("Sure?", session=session)
    fresh = Chat(chat.model, chat.image_processor, chat.options)
    fresh.kept.tokens = 0
    again = fresh.start()
    assert first == fresh.ask("What is this?", pictures[:1], again)
    assert second == fresh.ask("Sure?", session=again)

    model = chat.model
    pixels = torch.randn(2, 3, 112, 112)
    model.max_txt_len = 400
    rows = model.stage_rows(["a red circle " * 60, "a ring"])
    losses = []
    for packing in ("auto", "off"):
        model.choose_packing(packing)  # type: ignore[arg-type]
        losses.append(model(pixels, rows))
    losses[0].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
    assert model.llama_proj.weight.grad is not None
    assert model.llama_proj.weight.grad.abs().sum() > 0


def test_more_than_there_are_positions_for_is_one_line(
    tmp_path: Path, pictures: list[Path]
) -> None:
    options = chat_options(FAMILIES["qwen2"], save_kind(tmp_path, "learned positions"))
    chat = load_chat(TINY, options)
    expected = "only 120 fit (the language model's 128 positions less chat.max_new_tokens)"
    with one_line(DataError, expected):
        chat.ask("word " * 60, pictures[:1])
    with one_line(DataError, "a prompt takes", "the language model has 128 positions"):
        chat.generate(["word " * 60], [[]], "", chat.options)
    # What fits is answered as far as there are positions.
    assert isinstance(chat.generate(["word " * 24], [[]], "", chat.options)[0], str)
    session = chat.start()
    for _ in range(6):
        chat.ask("Tell me.", (), session, max_new_tokens=20)
    assert session.dropped > 0


def test_a_template_with_headings_is_no_vicuna(tmp_path: Path) -> None:
    """Alpaca's kind of turns, on rows that Vicuna has: nothing is known of them."""
    for rows in (32000, 32001):
        write_config(tmp_path, rows)
        write_tokenizer(tmp_path / "tokenizer.model")
        options = [
            "model.ckpt=",
            f"model.llama_model={tmp_path}",
            f"chat.template={FAMILIES['gpt_neox'].template}",
            f"model.prompt_template={quoted(FAMILIES['gpt_neox'].prompt)}",
        ]
        assert bind_sections(load_config(TINY, options), "chat")[1] == []
        config = load_config(TINY, [*options, "chat.template=vicuna_v0"])
        assert len(bind_sections(config, "chat")[1]) == (rows == 32000)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("chat.template={usr: a}", "chat.template.usr: unknown key; did you mean 'user'?"),
        ("chat.template=owl", "unknown template 'owl'; known: vicuna_v0"),
        ("chat.template=own", "chat.template: own: assets/tiny/llama has no chat template"),
        ("chat.template=[a]", "chat.template: ['a']: input should be a valid string"),
        (
            'chat.template={system: "", user: "<ImageHere>", assistant: a, opening: a,'
            ' separator: "", stop: ""}',
            "chat.template: holds <ImageHere>",
        ),
        ("model.bos=maybe", "model.bos: 'maybe'"),
    ],
)
def test_wrong_templates_are_told_before_anything_is_loaded(
    run_entry: EntryPoint, option: str, expected: str
) -> None:
    options = ["model.ckpt=", option]
    code, stderr = run_entry(main, "check", "--cfg-path", TINY, "--options", *options)
    assert code == 2
    assert expected in stderr
    assert all(line.startswith(("error: ", TINY)) for line in stderr.splitlines())


def test_a_model_that_takes_no_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2LMHeadModel

    folder = save_kind(tmp_path, "learned positions")

    def forward(self: Any, input_ids: torch.Tensor) -> None:
        pytest.fail("called")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    with one_line(CheckpointError, str(folder), "GPT2LMHeadModel, which takes no inputs_embeds"):
        load_chat(TINY, chat_options(FAMILIES["qwen2"], folder))


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path, scenes: Path, qwen2: Path) -> None:
    options = train_options(qwen2, scenes, tmp_path / "out", STAGE1)
    result = train_by_launcher(*options, processes=2)
    assert result.returncode == 0, result.stderr
    weights = torch.load(checkpoint_of(tmp_path / "out"), weights_only=True)["model"]
    assert weights["llama_proj.weight"].shape == (32, 128)
    assert "minigpt4" in MODELS.names()
