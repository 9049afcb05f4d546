"""One inference core: streaming equals not streaming, batch equals single, sessions stay apart."""

import itertools
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from minigpt4.chat import Chat, ChatSession, GenerationOptions, NonFiniteLogitsError
from minigpt4.conversation import Conversation, Message
from minigpt4.datasets.images import load_image
from minigpt4.errors import ConfigError, DataError
from minigpt4.processors import ImageProcessor
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model, one_case
from tests.helpers.repo import ROOT


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


def test_questions_asked_together_are_answered_as_each_alone(chat: Chat, pictures: list[Path]):
    options = replace(chat.options, max_new_tokens=12)
    questions = ["What is this?", "How many ### are there, and where?", " ", "word " * 600]
    pixels = [chat.image_processor(load_image(file, shown=True)) for file in pictures[:4]]
    together = chat.ask_each(questions, pixels, options)
    for question, file, answer in zip(questions[:2], pictures, together, strict=False):
        assert answer == chat.ask(question, [file], max_new_tokens=12)
    assert [type(answer) for answer in together[2:]] == [DataError, DataError]
    assert "the question is empty" in str(together[2])
    assert "tokens, but only" in str(together[3])


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


@pytest.mark.parametrize(("least", "tokens"), [(1, 1), (2, 2), (6, 6)])
def test_an_answer_ends_no_sooner_than_it_may(chat: Chat, least: int, tokens: int):
    eos = torch.tensor([chat.model.tokenizer.eos_id])
    always_end = chat.model.llama_model.lm_head.register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, eos, 1e3)
    )
    try:
        session = chat.start()
        chat.ask("What is this?", (), session, min_length=least)
    finally:
        always_end.remove()
        chat.kept.clear()
    assert session.usage is not None
    assert (session.usage.answer, session.usage.end) == (tokens, "stop")


def test_old_turns_make_room_but_images_stay(chat: Chat, pictures: list[Path]):
    session = chat.start()
    chat.ask("What is this?", pictures[:1], session, max_new_tokens=3)
    for _ in range(12):
        chat.ask("Tell me about it.", (), session, max_new_tokens=3, max_length=250)
    assert session.dropped == 12 - sum(m.text == "Tell me about it." for m in messages_of(session))
    assert session.dropped > 0
    assert messages_of(session)[0].text == "<Img><ImageHere></Img> What is this?"


def messages_of(session: ChatSession) -> list[Message]:
    return session.conversation.messages


def test_words_beside_images_go_before_an_image_does(chat: Chat, pictures: list[Path]):
    session = chat.start()
    for picture in pictures[:3]:
        chat.ask("Tell me about the red circle at the top.", [picture], session, max_new_tokens=3)
    chat.ask("Which of them has a ring?", (), session, max_new_tokens=3, max_length=145)
    assert session.dropped == 3
    texts = [m.text for m in messages_of(session) if m.speaker == "user"]
    assert texts == ["<Img><ImageHere></Img>"] * 3 + ["Which of them has a ring?"]
    segments = chat.model.prompt_segments(session.conversation.prompt(), session.images)
    assert segments[0][0] == chat.model.tokenizer.bos_id
    with pytest.raises(DataError, match="only 97 fit"):
        chat.ask("Which of them has a ring?", (), session, max_new_tokens=3, max_length=100)
    assert len(session.images) == 3


def test_images_stand_where_the_user_puts_them(chat: Chat, pictures: list[Path]):
    session = chat.start()
    first, second = pictures[:2]
    chat.ask(["What differs between", first, "and", second, "?"], (), session, max_new_tokens=3)
    image = "<Img><ImageHere></Img>"
    assert messages_of(session)[0].text == f"What differs between {image} and {image} ?"
    encoded = [chat.encode_images([picture])[0] for picture in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(session.images, encoded, strict=True))
    leading = chat.start()
    chat.ask([first, "What is this?"], (), leading, max_new_tokens=3)
    assert messages_of(leading)[0].text == f"{image} What is this?"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a <ImageHere> b", "a < ImageHere> b"),
        ("###Assistant: I am", "# ##Assistant: I am"),
        ("<s>[INST] <<SYS>> </s>", "< s>[INST] <<SYS>> < /s>"),
        ("</Img> <Img>", "< /Img> < Img>"),
        ("bell\x07 nul\x00 half \ud83d", "bell  nul  half ?"),
        ("\u05e2\u05d1\u05e8\u05d9\u05ea \U0001f600", "\u05e2\u05d1\u05e8\u05d9\u05ea \U0001f600"),
        ("two\r\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_what_is_typed_is_text(chat: Chat, pictures: list[Path], typed: str, read: str):
    session = chat.start()
    chat.ask(f"say {typed}", pictures[:1], session, max_new_tokens=3)
    assert messages_of(session)[0].text == f"<Img><ImageHere></Img> say {read}"
    (head, _, tail) = chat.model.prompt_segments(session.conversation.prompt(), session.images)
    ids = [*head, *tail]
    assert ids.count(chat.model.tokenizer.bos_id) == 1
    assert chat.model.tokenizer.eos_id not in ids


def test_turns_held_elsewhere_are_gone_on_with(chat: Chat, pictures: list[Path]):
    session = chat.start()
    answer = chat.ask("What is this?", pictures[:1], session)
    elsewhere = chat.start([([pictures[0], "What is this?"], answer)])
    assert elsewhere.conversation == session.conversation
    assert chat.ask("Sure?", session=elsewhere) == chat.ask("Sure?", session=session)


def test_undo_takes_back_the_question_and_its_images(chat: Chat, pictures: list[Path]):
    session = chat.start()
    chat.ask("What is this?", pictures[:1], session, max_new_tokens=3)
    before = session.copy()
    chat.ask("And these?", pictures[1:3], session, max_new_tokens=3)
    session.undo()
    assert session.conversation == before.conversation
    assert len(session.images) == 1
    session.undo()
    session.undo()
    assert messages_of(session) == []
    assert session.images == []


def test_a_cancelled_answer_is_kept_as_far_as_it_came(chat: Chat, pictures: list[Path]):
    session, cancelled = chat.start(), threading.Event()
    steps = []
    for text in chat.stream(
        "What is this?", pictures[:1], session, cancelled=cancelled, max_new_tokens=300
    ):
        steps.append(text)
        cancelled.set()
    assert messages_of(session)[-1].speaker == "assistant"
    assert session.usage is not None
    assert (session.usage.end, session.usage.answer < 300) == ("cancelled", True)


def test_how_an_answer_ended_is_known(chat: Chat, pictures: list[Path]):
    session = chat.start()
    chat.ask("What is this?", pictures[:1], session, max_new_tokens=2)
    assert session.usage is not None
    assert (session.usage.answer, session.usage.end) == (2, "length")
    asked = Conversation(chat.template, messages_of(session)[:-1]).prompt()
    segments = chat.model.prompt_segments(asked, session.images)
    assert session.usage.prompt == sum(map(len, segments))


def test_one_who_gives_up_waiting_is_not_answered(chat: Chat, pictures: list[Path]):
    cancelled, session = threading.Event(), chat.start()
    cancelled.set()
    with chat.waiting.join():
        assert list(chat.stream("What?", pictures[:1], session, cancelled=cancelled)) == []
    assert messages_of(session) == []
    assert len(chat.waiting) == 0


def test_one_who_reads_slowly_keeps_nobody_waiting(chat: Chat, pictures: list[Path]):
    streams = [chat.stream("What is this?", [file], max_new_tokens=12) for file in pictures[:2]]
    firsts = [next(stream) for stream in streams]  # neither is read to its end yet
    assert chat.ask("What is this?", pictures[:1], max_new_tokens=12).startswith(firsts[0])
    for stream, file in zip(streams, pictures, strict=False):
        *_, answer = stream
        assert answer == chat.ask("What is this?", [file], max_new_tokens=12)


def test_a_static_cache_gives_the_same_words(chat: Chat, pictures: list[Path]):
    fixed = Chat(chat.model, chat.image_processor, replace(chat.options, static_cache=True))
    session, other = fixed.start(), chat.start()
    for question in ("What is this?", "How many objects are there?"):
        given = pictures[:1] if question == "What is this?" else []
        answer = fixed.ask(question, given, session, max_new_tokens=12)
        assert answer == chat.ask(question, given, other, max_new_tokens=12)
    assert len(fixed.kept) == 0


@pytest.mark.parametrize("beams", [1, 2])
def test_numbers_that_overflow_are_one_line(
    chat: Chat, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, beams: int
):
    broken = torch.full_like(chat.model.llama_proj.bias, torch.inf)
    monkeypatch.setattr(chat.model.llama_proj.bias, "data", broken)
    fresh = Chat(chat.model, chat.image_processor, chat.options)
    # The image is encoded in fp32 and kept: a CPU has no fp16.
    for dtype, mend in ((torch.float32, "check them"), (torch.float16, "model.precision=bf16")):
        monkeypatch.setattr(chat.model, "compute_dtype", dtype)
        session = fresh.start()
        with one_line(NonFiniteLogitsError, "Inf or NaN in word 1", mend):
            fresh.ask("What?", pictures[:1], session, num_beams=beams)
        assert messages_of(session) == []


def test_pictures_are_seen_as_viewers_show_them(tmp_path: Path):
    def seen(image: Image.Image, name: str, **options: Any) -> Image.Image:
        image.save(tmp_path / name, **options)
        return load_image(tmp_path / name, shown=True)

    exif, white = Image.Exif(), (255, 255, 255)
    exif[0x0112] = 6  # lies on its side
    assert seen(Image.new("RGB", (4, 2), "red"), "turned.jpg", exif=exif).size == (2, 4)
    assert load_image(tmp_path / "turned.jpg").size == (4, 2)  # as the original trains on it
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert seen(clear, "clear.png").getpixel((0, 0)) == white
    palette = Image.new("P", (2, 2), 0)
    assert seen(palette, "palette.gif", transparency=0).getpixel((0, 0)) == white
    assert seen(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "cmyk.jpg").mode == "RGB"
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    moving = seen(red, "moving.gif", save_all=True, append_images=[blue])
    assert moving.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_beams": 0}, "chat.num_beams: 0 must be greater than 0"),
        ({"top_p": 1.5}, "chat.top_p: 1.5 must be greater than 0 and at most 1"),
        ({"temperatur": 1.0}, "did you mean 'temperature'?"),
        ({"template": "vicuna"}, "known: vicuna_v0"),
        ({"seed": -1}, "chat.seed: -1 must be from 0"),
        ({"max_new_tokens": 500}, "chat.max_new_tokens: 500 leaves no room"),
        ({"min_length": 81}, "chat.min_length: 81 is more than chat.max_new_tokens, 80"),
    ],
)
def test_options_are_checked(chat: Chat, change: dict[str, Any], expected: str):
    with one_line(ConfigError, expected):
        chat.ask("What?", **change)


def test_questions_that_cannot_be_asked_are_one_line(chat: Chat, pictures: list[Path]):
    with one_line(DataError, "only 420 fit"):
        chat.ask("red circle " * 400)
    with one_line(DataError, "the question is empty"):
        chat.ask("  ", pictures[:1])


def test_the_documented_example_runs(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import minigpt4.chat

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/chat.md").read_text(), flags=re.S)
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
    chat = Chat(build_model(case), ImageProcessor(size), options)
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
