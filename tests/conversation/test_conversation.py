from dataclasses import replace

import pytest

from minigpt4.conversation import IMAGE_TEXT, TEMPLATES, Conversation, Template
from minigpt4.models.llm_input import IMAGE_MARK
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.comparison import files_of, read_json
from tests.helpers.recorded.words import shipped_template


def test_every_template_of_ours_writes_a_recorded_conversation() -> None:
    """That all recorded prompts are written is in ``test_parity.py``."""
    contents = [read_json(file) for file in files_of(GOLDEN, "conversation*.json")]
    shipped = {shipped_template(facts) for content in contents for facts in content.values()}
    assert shipped - {None} == set(TEMPLATES)


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


def test_an_answer_can_end_otherwise_than_a_question() -> None:
    template = Template("", "Q: ", "A: ", "A:", "\n", "</s>", ending="</s>\n\n")
    conversation = Conversation(template)
    conversation.ask("first?")
    conversation.answer("yes.")
    assert conversation.transcript() == "Q: first?\nA: yes.</s>\n\n", "no separator at the start"
    assert Conversation(replace(template, system="Hi.")).transcript() == "Hi.\n"


def test_conversations_share_nothing() -> None:
    first = Conversation(TEMPLATES["vicuna_v0"])
    first.ask("only here")
    assert Conversation(TEMPLATES["vicuna_v0"]).messages == []
