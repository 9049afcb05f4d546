"""One inference core: streaming equals not streaming, batch equals single, sessions stay apart."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.chat import Chat, GenerationOptions, load_chat
from minigpt4.cli.tiny_world.data_sets import read_heldout
from minigpt4.errors import ConfigError, DataError
from minigpt4.processors.image_processors import build_blip2_image_eval
from tests.conftest import ROOT
from tests.recorded.model import build_model, one_case

TINY = "eval_configs/tiny_eval.yaml"


@pytest.fixture(scope="module")
def chat() -> Chat:
    torch.manual_seed(0)
    return load_chat(ROOT / TINY, ["model.ckpt=", *tiny_assets()])


def tiny_assets() -> list[str]:
    """Absolute paths: module fixtures are made before the working folder is set."""
    assets = ROOT / "assets" / "tiny"
    return [
        f"model.vit_model={assets}/eva_vit.pth",
        f"model.q_former_model={assets}/q_former.pth",
        f"model.llama_model={assets}/llama",
    ]


@pytest.fixture
def pictures(scenes: Path) -> list[Path]:
    return [file for _, file in read_heldout(scenes / "heldout_seen")]


def test_streaming_ends_in_what_asking_gives(chat: Chat, pictures: list[Path]):
    steps = list(chat.stream("What is this?", pictures[:1], chat.start(), max_new_tokens=12))
    assert len(steps) > 1
    assert all(len(a) < len(b) for a, b in itertools.pairwise(steps))
    assert steps[-1] == chat.ask("What is this?", pictures[:1], max_new_tokens=12)


def test_batch_equals_single(chat: Chat, pictures: list[Path]):
    images = chat.encode_images(pictures[:3])
    prompts = [
        "###Human: <Img><ImageHere></Img> What is this? ###Assistant: ",
        "###Human: <Img><ImageHere></Img> How many objects are there, and where? ###Assistant: ",
        "<ImageHere>",
    ]
    options = replace(chat.options, max_new_tokens=10)
    together = chat.generate(prompts, [[image] for image in images], "###", options)
    alone = [
        chat.generate([prompt], [[image]], "###", options)[0]
        for prompt, image in zip(prompts, images, strict=True)
    ]
    assert together == alone


def test_without_a_stop_text_an_answer_ends_where_the_model_ends_it(
    chat: Chat, pictures: list[Path]
):
    images = [[image] for image in chat.encode_images(pictures[:2])]
    options = replace(chat.options, max_new_tokens=6)
    prompts = ["<ImageHere>"] * 2
    never = chat.generate(prompts, images, "no such text", options)
    assert chat.generate(prompts, images, "", options) == never
    assert any(never)


def test_several_turns_and_images_join_the_session(chat: Chat, pictures: list[Path]):
    session = chat.start()
    chat.ask("What is this?", pictures[:1], session, max_new_tokens=5)
    chat.ask("And this?", pictures[1:2], session, max_new_tokens=5)
    speakers = [message.speaker for message in session.conversation.messages]
    assert speakers == ["user", "assistant", "user", "assistant"]
    assert len(session.images) == 2
    assert session.conversation.messages[2].text == "<Img><ImageHere></Img> And this?"
    assert chat.start().conversation.messages == []


def test_stopping_a_stream_leaves_the_session_as_it_was(chat: Chat, pictures: list[Path]):
    session = chat.start()
    stream = chat.stream("What is this?", pictures[:1], session, max_new_tokens=200)
    next(stream)
    stream.close()
    assert session.conversation.messages == []
    assert session.images == []
    assert isinstance(chat.ask("Again?", session=session, max_new_tokens=3), str)


def test_beams_and_seeded_sampling(chat: Chat, pictures: list[Path]):
    assert isinstance(chat.ask("What?", pictures[:1], num_beams=3, max_new_tokens=6), str)
    drawn = [
        chat.ask("What?", pictures[:1], do_sample=True, temperature=1.5, seed=s, max_new_tokens=12)
        for s in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_old_turns_make_room_but_images_stay(chat: Chat, pictures: list[Path]):
    session = chat.start()
    chat.ask("What is this?", pictures[:1], session, max_new_tokens=3)
    for _ in range(12):
        chat.ask(
            "Tell me about the red circle at the top.",
            (),
            session,
            max_new_tokens=3,
            max_length=250,
        )
    assert len(session.conversation.messages) < 26
    assert "<ImageHere>" in session.conversation.messages[0].text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_beams": 0}, "chat.num_beams: 0 must be greater than 0"),
        ({"top_p": 1.5}, "chat.top_p: 1.5 must be greater than 0 and at most 1"),
        ({"temperatur": 1.0}, "did you mean 'temperature'?"),
        ({"template": "vicuna"}, "known: vicuna_v0"),
    ],
)
def test_options_are_checked(chat: Chat, change: dict[str, Any], expected: str):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        chat.ask("What?", **change)


def test_a_question_beyond_the_context_is_one_line(chat: Chat):
    with pytest.raises(DataError, match="only 420 fit") as error:
        chat.ask("red circle " * 400)
    assert "\n" not in str(error.value)


def test_an_empty_question_is_one_line(chat: Chat, pictures: list[Path]):
    with pytest.raises(DataError, match="the question is empty"):
        chat.ask("  ", pictures[:1])


def test_the_readme_example_runs(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import minigpt4.chat

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    picture = str(scenes / "heldout_seen" / "image" / "0.jpg")
    original = minigpt4.chat.load_chat
    monkeypatch.setattr(minigpt4.chat, "load_chat", lambda path: original(path, ["model.ckpt="]))
    exec(block.replace("scene.png", picture))
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.parametrize(
    ("first_release", "q_former", "template"),
    [
        (True, True, "vicuna_v0_first_release"),
        (False, True, "vicuna_v0"),
        (False, False, "llama_2"),
    ],
)
def test_recorded_greedy_conversations_word_for_word(
    first_release: bool, q_former: bool, template: str
):
    """Two turns of the original's chat through ours; ``test_parity.py`` compares the ids."""
    case = one_case(first_release=first_release, q_former=q_former)
    run = case.facts["generation"]["runs"]["greedy_stops"]
    given = ("max_new_tokens", "min_length", "repetition_penalty")
    options = GenerationOptions(
        template=template, do_sample=False, **{key: run["args"][key] for key in given}
    )
    size = case.facts["dims"]["vit"]["img_size"]
    chat = Chat(build_model(case), build_blip2_image_eval(size), options)
    session = chat.start()
    session.conversation.add_image()
    session.images = list(chat.model.encode_img(case.tensors["image"][:1]).detach())
    ends = {ids[0] for ids in run["stop_ids"] if len(ids) == 1}
    for turn in run["turns"]:
        answer = chat.ask(turn["question"], session=session)
        expected = turn["output_text"].split("###")[0].strip()
        if turn["output_ids"][-1] in ends or len(turn["output_ids"]) > options.max_new_tokens:
            assert answer == expected
        else:  # stopped at two ids that stand for "###" in the real vocabulary, not in this toy
            assert answer.startswith(expected)
        session.conversation.messages[-1].text = turn["output_text"]
