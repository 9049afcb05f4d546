"""Rules: what is repaired in a draft, and what a text is rejected for."""

import pytest

from minigpt4.tools.alignment.text_rules import RULES, broken_rule, repair, whole_sentences

WHOLE = "The image shows a red circle. It is on the left of a small blue square."


@pytest.mark.parametrize(
    ("draft", "repaired"),
    [
        (WHOLE, WHOLE),
        ("", ""),
        ("no sentence at all", ""),
        # an incomplete last sentence
        (f"{WHOLE} Behind them there is", WHOLE),
        (f'{WHOLE} A sign says "stop."', f'{WHOLE} A sign says "stop."'),
        ("It costs 3.5 dollars. It is on", "It costs 3.5 dollars."),
        # what is said twice
        (f"{WHOLE} {WHOLE} {WHOLE}", WHOLE),
        (f"{WHOLE} the image SHOWS a red circle!", WHOLE),
        (f"{WHOLE}\nIt is on the left of a small blue square.", WHOLE),
        ("A dog and a dog and a dog and a dog run.", "A dog and a dog run."),
        ("A very, very big dog.", "A very, very big dog."),
        ("Mr. Smith meets Mr. Jones.", "Mr. Smith meets Mr. Jones."),
        # meaningless characters
        ("A dog #### runs *** here !!!!", "A dog runs here!"),
        ("A dog\x00\x07 runs\u200b here\ufffd.", "A dog runs here."),
        ("A dog runs........ It barks.", "A dog runs... It barks."),
        ("</Img> <s>A dog runs here. [INST]", "A dog runs here."),
        ("“A dog’s life” – it’s good…", "\"A dog's life\" - it's good..."),
        # other scripts
        ("A dog runs. 一只狗在跑。 It barks.", "A dog runs. It barks."),
        ("A dog 狗 runs in a café.", "A dog runs in a café."),
        ("Собака бежит. A dog runs.", "A dog runs."),
    ],
)
def test_repair(draft: str, repaired: str):
    assert repair(draft) == repaired
    assert repair(repaired) == repaired


def test_a_long_loop_takes_no_time():
    assert len(repair("a man and " * 20_000 + "a dog. ")) < 100
    assert repair("ab" * 100_000 + ".") == "ab" * 100_000 + "."


def test_a_text_cut_off_ends_with_its_last_whole_sentence():
    assert whole_sentences(f"{WHOLE} And so") == WHOLE
    assert whole_sentences(WHOLE) == WHOLE
    assert whole_sentences("One only, not") == "One only, not"
    assert whole_sentences("") == ""


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (WHOLE, None),
        (f"I'm sorry I made a mistake in the paragraph. {WHOLE}", "apology"),
        (f"I’m sorry, but there is no paragraph. {WHOLE}", "apology"),
        (f"I apologize for that. {WHOLE}", "apology"),
        (f"As an AI language model, I see no image. {WHOLE}", "apology"),
        (f"{WHOLE} The paragraph is Incomplete.", "incomplete"),
        (f"{WHOLE} ###Human: and so on", "control text"),
        (f"<Img>{WHOLE}", "control text"),
        ("", "short"),
        ("x" * 49, "short"),
        ("x" * 50, None),
        ("There is a small dog on the left, " * 3, "repetition"),
        ("There is a small dog on the left, " * 2, None),
        ("very " * 20, "repetition"),
    ],
)
def test_filter(text: str, rule: str | None):
    assert broken_rule(text) == rule
    assert rule is None or rule in RULES
