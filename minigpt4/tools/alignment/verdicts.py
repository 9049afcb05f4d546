"""Verdicts: drafts and replies → for each picture its polished text, and whether it is kept.

They follow from what the journals hold, and are written anew each time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt4.apps.captions_input import encode
from minigpt4.files import write_atomically
from minigpt4.tools.alignment.completions import Reply
from minigpt4.tools.alignment.filtering import broken_rule
from minigpt4.tools.alignment.repairing import repair, whole_sentences

FIX = (
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, "
    "not English sentences, and so on. Remove unnecessary repetition. Rewrite any incomplete "
    "sentences. Return directly the results without explanation. Return directly the input "
    "paragraph if it is already correct without explanation."
)
UNREADABLE, NO_REPLY = "unreadable picture", "no reply"


@dataclass(frozen=True)
class Verdict:
    """What became of a picture.

    Attributes:
        image_id: Of the picture.
        image: Its name in the folder it comes from.
        draft: What the model said.
        polished: What was made of it; empty where nothing was.
        kept: Whether it passed the filter.
        reason: The rule that it broke, or why there is no text.
        detail: What was the matter, where that is no rule.
    """

    image_id: str
    image: str
    draft: str
    polished: str
    kept: bool
    reason: str = ""
    detail: str = ""


Polish = Callable[[str, str], str | None]  # a picture's id and draft → polished; None without


def polish_by_rules(image_id: str, draft: str) -> str:
    return repair(draft)


def polish_by_replies(replies: Mapping[str, Reply]) -> Polish:
    """What a server has made of each draft."""

    def polish(image_id: str, draft: str) -> str | None:
        if not draft.strip():
            return ""  # which nobody is asked about
        reply = replies.get(image_id)
        if reply is None:
            return None
        if "already correct" in reply.text.lower():
            return draft
        # Differs from the original: a reply that was cut off ends with its last whole sentence.
        return whole_sentences(reply.text) if reply.cut_off else reply.text

    return polish


def judge(
    drafts: Sequence[Mapping[str, Any]], polish: Polish, no_reply: Mapping[str, str]
) -> list[Verdict]:
    """A verdict for each row of drafts.

    Args:
        drafts: Of the journal.
        polish: What makes a text of a draft.
        no_reply: Why there was no reply, by picture id.
    """
    return [_judge(row, polish, no_reply) for row in drafts]


def _judge(row: Mapping[str, Any], polish: Polish, no_reply: Mapping[str, str]) -> Verdict:
    image_id, image = str(row["image_id"]), str(row["image"])
    if "error" in row:
        return Verdict(image_id, image, "", "", False, UNREADABLE, str(row["error"]))
    draft = str(row["draft"])
    polished = polish(image_id, draft)
    if polished is None:
        return Verdict(image_id, image, draft, "", False, NO_REPLY, no_reply.get(image_id, ""))
    rule = broken_rule(polished)
    return Verdict(image_id, image, draft, polished, rule is None, rule or "")


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """A line for each, without what is empty.

    Raises:
        MiniGPT4Error: when the disk is full.
    """
    always = ("image_id", "image", "draft", "polished", "kept")
    rows = [
        {name: value for name, value in asdict(verdict).items() if value or name in always}
        for verdict in verdicts
    ]
    write_atomically(path, lambda file: file.write(b"".join(map(encode, rows))))
