from dataclasses import replace

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
