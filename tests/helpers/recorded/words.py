"""Recorded words: what the tokenizer makes of texts, and the prompts of conversations."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minigpt4.conversation import TEMPLATES, Conversation, Template
from minigpt4.models.tokenizer import SentencePieceTokenizer
from tests.helpers.recorded.comparison import Comparison, Unit, equal, files_of, read_json


def find_tokenizers(folder: Path) -> Iterator[Unit]:
    """The config beside each ``tokenizer.model``, and encode and decode pairs of the first."""
    models = list(files_of(folder, "tokenizer.model"))
    for model_file in models:
        config = model_file.with_name("tokenizer_config.json")
        if config.is_file():
            files = frozenset({model_file, config})
            check = partial(_check_tokenizer, model_file, config, compare_config)
            yield Unit(model_file.parent.name, "tokenizer", files, check)
    for file in files_of(folder, "*.json"):
        content = read_json(file)
        if isinstance(content, dict) and {"encode", "decode"} <= content.keys() and models:
            check = partial(_check_tokenizer, models[0], file, compare_pairs)
            yield Unit(file.stem, "tokenizer", frozenset({models[0], file}), check)


def _check_tokenizer(
    model_file: Path,
    recorded: Path,
    compare: Callable[[SentencePieceTokenizer, dict[str, Any]], list[Comparison]],
) -> list[Comparison]:
    return compare(SentencePieceTokenizer(model_file), read_json(recorded))


def compare_config(tokenizer: SentencePieceTokenizer, config: dict[str, Any]) -> list[Comparison]:
    """The special tokens that the folder names are those of the vocabulary."""
    assert tokenizer.bos_id is not None
    pieces = [tokenizer.piece(i) for i in (tokenizer.bos_id, tokenizer.eos_id, 0)]
    names = [config[f"{name}_token"] for name in ("bos", "eos", "unk")]
    return [equal("special tokens", pieces, names)]


def compare_pairs(tokenizer: SentencePieceTokenizer, cases: dict[str, Any]) -> list[Comparison]:
    """Texts to ids, with and without bos; ids to texts, with and without special tokens."""
    encoded, decoded = cases["encode"], cases["decode"]
    ids = [tokenizer.encode(case["text"]) for case in encoded]
    results = [
        equal(f"ids of {len(ids)} texts", ids, [case["ids"] for case in encoded]),
        equal(
            "ids with bos",
            [[tokenizer.bos_id, *row] for row in ids],
            [case["ids_with_special"] for case in encoded],
        ),
        equal(
            f"texts of {len(decoded)} rows of ids",
            [tokenizer.decode(case["ids"], skip_special=False) for case in decoded],
            [case["text"] for case in decoded],
        ),
        equal(
            "texts without special tokens",
            [tokenizer.decode(case["ids"]) for case in decoded],
            [case["text_skip_special"] for case in decoded],
        ),
    ]
    for name, batch in cases.items():
        if name.startswith("batch_pad_eos_max"):
            results += _compare_batch(tokenizer, name, batch)
    return results


def _compare_batch(
    tokenizer: SentencePieceTokenizer, name: str, batch: dict[str, Any]
) -> list[Comparison]:
    """Truncated, then padded with eos on the right."""
    rows = [tokenizer.encode(text)[: int(name.rpartition("max")[2])] for text in batch["texts"]]
    longest = max(map(len, rows))
    padded = [row + [tokenizer.eos_id] * (longest - len(row)) for row in rows]
    masks = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return [
        equal(f"{name}: ids", padded, batch["input_ids"]),
        equal(f"{name}: mask", masks, batch["attention_mask"]),
    ]


def find_conversations(folder: Path) -> Iterator[Unit]:
    """Any json whose every entry has a system text, roles and cases."""
    for file in files_of(folder, "*.json"):
        content = read_json(file)
        if not isinstance(content, dict) or not content:
            continue
        if all(isinstance(c, dict) and {"roles", "cases"} <= c.keys() for c in content.values()):
            for name, facts in content.items():
                title = f"{file.stem}: {name}"
                check = partial(compare_conversation, facts)
                yield Unit(title, "conversation", frozenset({file}), check)


def templates_of(facts: dict[str, Any]) -> list[Template]:
    """The recording's roles and separator in the original's two ways of joining them.

    The first release puts ": " behind a role, and only ":" where an answer is to come.
    """
    system, (user, assistant), separator = facts["system"], facts["roles"], facts["sep"]
    return [
        Template(system, user, assistant, assistant, separator, separator),
        Template(system, f"{user}: ", f"{assistant}: ", f"{assistant}:", separator, separator),
    ]


def shipped_template(facts: dict[str, Any]) -> str | None:
    """The name of our template that joins messages as this recording does, if we ship it."""
    for template in templates_of(facts):
        for name, own in TEMPLATES.items():
            if replace(own, stop=template.stop) == template and _writes(own, facts):
                return name
    return None


def compare_conversation(facts: dict[str, Any]) -> list[Comparison]:
    """Every prompt of every case, and two uploads before one question."""
    templates = templates_of(facts)
    template = next((t for t in templates if _writes(t, facts)), templates[0])
    shipped = shipped_template(facts)
    note = f"as template {shipped}" if shipped else "not a template of ours"
    results = []
    for case in facts["cases"]:
        what = f"{case['images']} images, {case['n_turns']} turns"
        ours, recorded = _strings(template, case), _recorded_strings(case)
        result = equal(what, ours, recorded)
        results.append(Comparison(what, result.error, result.share, note=result.note or note))
    uploads = equal("two uploads", _two_uploads(template), facts["two_uploads_then_ask"])
    return [*results, uploads]


def _writes(template: Template, facts: dict[str, Any]) -> bool:
    strings = [_strings(template, case) == _recorded_strings(case) for case in facts["cases"]]
    return all(strings) and _two_uploads(template) == facts["two_uploads_then_ask"]


def _strings(template: Template, case: dict[str, Any]) -> list[str]:
    """Transcript and prompt of each turn, the final transcript, then the messages."""
    conversation, strings = Conversation(template), []
    for turn, (question, answer) in enumerate(case["qa"], start=1):
        for _ in range(case["image_upload_before_turns"].count(turn)):
            conversation.add_image()
        conversation.ask(question)
        strings += [conversation.transcript(), conversation.prompt()]
        conversation.answer(answer)
    return [*strings, conversation.transcript(), *(m.text for m in conversation.messages)]


def _recorded_strings(case: dict[str, Any]) -> list[str]:
    strings = []
    for turn in case["turns"]:
        strings += [turn["prompt_after_ask"], turn["prompt_for_generation"]]
    return [*strings, case["final_prompt"], *(text for _, text in case["messages"])]


def _two_uploads(template: Template) -> str:
    conversation = Conversation(template)
    conversation.add_image()
    conversation.add_image()
    conversation.ask("both?")
    return conversation.prompt()
