"""Keys and values kept across turns: the same words as without, and no more kept than allowed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from minigpt4.chat import Chat
from minigpt4.chat.kept_states import KeptStates
from minigpt4.conversation import TEMPLATES

QUESTIONS = [
    ("Describe this image in detail.", 1),
    ("How many objects are there?", 0),
    ("And in this one, ### what is at the top?", 1),
    ("What shape is it? \U0001f600", 0),
    ("Is there a red circle?", 0),
]


@pytest.fixture
def fresh(chat: Chat) -> Chat:
    """The same model, with nothing kept."""
    return Chat(chat.model, chat.image_processor, replace(chat.options, max_length=1500))


def talk(chat: Chat, pictures: list[Path], **options: object) -> list[tuple[str, int]]:
    """Answers, and how many tokens of each prompt were read."""
    session, shown, answers = chat.start(), iter(pictures), []
    for question, images in QUESTIONS:
        given = [next(shown) for _ in range(images)]
        answer = chat.ask(question, given, session, max_new_tokens=24, **options)
        assert session.usage is not None
        answers.append((answer, session.usage.prompt - session.usage.kept))
    return answers


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_reading_everything_anew(
    chat: Chat, pictures: list[Path], template: str, beams: int
):
    options = replace(chat.options, max_length=1500, template=template)
    keeping = talk(Chat(chat.model, chat.image_processor, options), pictures, num_beams=beams)
    options = replace(options, kept_tokens=0)
    anew = talk(Chat(chat.model, chat.image_processor, options), pictures, num_beams=beams)
    assert [answer for answer, _ in keeping] == [answer for answer, _ in anew]
    assert all(kept < all_ / 2 for (_, kept), (_, all_) in zip(keeping[1:], anew[1:], strict=True))


def test_chats_that_take_turns_do_not_meet(fresh: Chat, pictures: list[Path]):
    alone = {picture: fresh.ask("What is this?", [picture]) for picture in pictures[:3]}
    sessions = {picture: fresh.start() for picture in alone}
    for picture, session in sessions.items():
        assert fresh.ask("What is this?", [picture], session) == alone[picture]
    for picture, session in sessions.items():
        other = fresh.start([(([picture, "What is this?"]), alone[picture])])
        assert fresh.ask("Sure?", session=session) == fresh.ask("Sure?", session=other)


def test_a_question_asked_again_after_undo_is_answered_alike(fresh: Chat, pictures: list[Path]):
    session = fresh.start()
    fresh.ask("What is this?", pictures[:1], session)
    first = fresh.ask("How many objects are there?", (), session)
    session.undo()
    assert fresh.ask("How many objects are there?", (), session) == first
    assert session.usage is not None
    assert session.usage.kept == session.usage.prompt - 1  # the last token's output is the answer


def test_an_image_is_encoded_once_in_a_chat(
    fresh: Chat, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
):
    encoded = []
    encode = type(fresh.model).encode_img

    def note(self: object, image: torch.Tensor) -> torch.Tensor:
        encoded.append(len(image))
        return encode(fresh.model, image)

    monkeypatch.setattr(type(fresh.model), "encode_img", note)
    session = fresh.start()
    for _ in range(3):
        fresh.ask("What is this?", pictures[:1], session, max_new_tokens=2)
    assert encoded == [1]


def cache_of(config: LlamaConfig, length: int, rows: int = 1) -> DynamicCache:
    cache = DynamicCache(config=config)
    for layer in range(2):
        numbers = torch.arange(length, dtype=torch.float32).view(1, 1, length, 1)
        cache.update(numbers.expand(rows, 2, -1, 3), -numbers.expand(rows, 2, -1, 3), layer)
    return cache


CONFIG = LlamaConfig(num_hidden_layers=2)


def test_the_longest_known_beginning_is_found():
    kept = KeptStates(100, CONFIG)
    kept.keep([1, 2, 3], [4, 5], cache_of(CONFIG, 5))
    kept.keep([1, 7, 7], [], cache_of(CONFIG, 3))
    assert kept.find([1, 2, 3, 4, 9]).get_seq_length() == 4
    assert kept.find([1, 7, 7]).get_seq_length() == 2  # the last position is read anew
    assert kept.find([8]).get_seq_length() == 0
    found = kept.find([1, 2, 3, 9, 9])
    assert found.layers[1].values[0, 1, :, 0].tolist() == [0, -1, -2]


def test_what_is_found_is_ones_own():
    kept = KeptStates(100, CONFIG)
    kept.keep([1, 2, 3], [], cache_of(CONFIG, 3))
    found = kept.find([1, 2, 3, 4])
    found.update(torch.ones(1, 2, 4, 3), torch.ones(1, 2, 4, 3), 0)
    found.layers[0].keys.zero_()
    assert kept.find([1, 2, 3, 4]).layers[0].keys[0, 0, :, 0].tolist() == [0, 1, 2]


def test_the_least_recently_used_makes_room():
    kept = KeptStates(10, CONFIG)
    for first in (10, 20, 30):
        kept.keep([first, 1, 1], [], cache_of(CONFIG, 3))
    kept.find([10, 1, 1, 1])
    kept.keep([40, 1, 1], [], cache_of(CONFIG, 3))
    assert len(kept) == 9
    assert [kept.find([n, 1, 1, 1]).get_seq_length() for n in (10, 20, 30, 40)] == [3, 0, 3, 3]
    kept.keep([50] * 11, [], cache_of(CONFIG, 11))  # never fits
    assert len(kept) == 9


def test_a_turn_takes_the_place_of_the_one_before():
    kept = KeptStates(100, CONFIG)
    kept.keep([1, 2, 3], [4, 5], cache_of(CONFIG, 5))
    kept.keep([1, 2, 4, 5, 6, 7], [], cache_of(CONFIG, 6))  # 3 has joined 4
    assert len(kept) == 6


def test_of_several_beams_the_prompt_alone_is_kept():
    kept = KeptStates(100, CONFIG)
    kept.keep([1, 2, 3], [], cache_of(CONFIG, 5, rows=4))
    assert len(kept) == 3
    assert kept.find([1, 2, 3, 4]).layers[0].keys.shape == (1, 2, 3, 3)
