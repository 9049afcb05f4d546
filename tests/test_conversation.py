import json
from typing import Any

import pytest

from minigpt4.conversation import IMAGE_TEXT, TEMPLATES, Conversation
from minigpt4.models.splice import IMAGE_MARK
from tests.recorded import GOLDEN

# Recorded file, its name of the conversation, our template.
RECORDED_TEMPLATES = [
    ("conversation_v1.json", "CONV_VISION", "vicuna_v0_first_release"),
    ("conversation_main.json", "CONV_VISION_Vicuna0", "vicuna_v0"),
    ("conversation_main.json", "CONV_VISION_LLama2", "llama_2"),
]


def recorded(file: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / file).read_text(encoding="utf-8"))[name]
    return content


@pytest.mark.parametrize(("file", "name", "template"), RECORDED_TEMPLATES)
def test_prompts_are_the_recorded_strings(file: str, name: str, template: str) -> None:
    cases = recorded(file, name)["cases"]
    assert cases
    for case in cases:
        conversation = Conversation(TEMPLATES[template])
        for turn, (question, answer) in enumerate(case["qa"], start=1):
            for _ in range(case["image_upload_before_turns"].count(turn)):
                conversation.add_image()
            conversation.ask(question)
            assert conversation.transcript() == case["turns"][turn - 1]["prompt_after_ask"]
            assert conversation.prompt() == case["turns"][turn - 1]["prompt_for_generation"]
            conversation.answer(answer)
        assert conversation.transcript() == case["final_prompt"]


@pytest.mark.parametrize(("file", "name", "template"), RECORDED_TEMPLATES)
def test_two_uploads_stay_two_messages(file: str, name: str, template: str) -> None:
    conversation = Conversation(TEMPLATES[template])
    conversation.add_image()
    conversation.add_image()
    conversation.ask("both?")
    assert conversation.prompt() == recorded(file, name)["two_uploads_then_ask"]
    assert len(conversation.messages) == 2


def test_image_text_holds_the_mark_that_the_model_splits_at() -> None:
    assert IMAGE_TEXT.count(IMAGE_MARK) == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_question_and_answer_is_in_the_transcript_once(template: str) -> None:
    conversation = Conversation(TEMPLATES[template])
    conversation.ask("first?")
    conversation.answer("yes.")
    conversation.ask("second?")
    prompt = conversation.prompt()
    assert [prompt.count(text) for text in ("first?", "yes.", "second?")] == [1, 1, 1]
    assert prompt.endswith(TEMPLATES[template].opening)
    assert prompt.startswith(TEMPLATES[template].system)


def test_a_question_after_an_answer_is_a_message_of_its_own() -> None:
    conversation = Conversation(TEMPLATES["vicuna_v0"])
    conversation.add_image()
    conversation.ask("first?")
    conversation.answer("yes.")
    conversation.ask("second?")
    assert [message.speaker for message in conversation.messages] == ["user", "assistant", "user"]
    assert conversation.messages[0].text == f"{IMAGE_TEXT} first?"


def test_conversations_share_nothing() -> None:
    first = Conversation(TEMPLATES["vicuna_v0"])
    first.ask("only here")
    assert Conversation(TEMPLATES["vicuna_v0"]).messages == []
