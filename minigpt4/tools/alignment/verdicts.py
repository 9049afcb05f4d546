"""Verdicts: drafts and replies → for each picture its polished text, and whether it is kept.

They follow from what the journals hold, and are written anew each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt4.apps.captions_input import encode
from minigpt4.files import write_atomically
from minigpt4.tools.alignment.request_pool import Reply
from minigpt4.tools.alignment.text_rules import broken_rule, repair, whole_sentences

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
        image: Name in the folder that the picture comes from.
        reason: Rule that it broke, or why there is no text.
        detail: Error message, where the reason is not a rule.
    """

    image_id: str
    image: str
    draft: str = ""
    polished: str = ""
    kept: bool = False
    reason: str = ""
    detail: str = ""


def judge(
    row: Mapping[str, Any], replies: Mapping[str, Reply] | None, failed: Mapping[str, str]
) -> Verdict:
    """Return the verdict on a row of drafts.

    Args:
        row: Row of the journal.
        replies: Server's replies by picture id; None for rules.
        failed: Why there is no reply, by picture id.
    """
    image_id, image = str(row["image_id"]), str(row["image"])
    if "error" in row:
        return Verdict(image_id, image, reason=UNREADABLE, detail=str(row["error"]))
    draft = str(row["draft"])
    if replies is None:
        polished = repair(draft)
    elif not draft.strip():
        polished = ""  # which nobody is asked about
    elif image_id in replies:
        polished = _polish(draft, replies[image_id])
    else:
        return Verdict(image_id, image, draft, reason=NO_REPLY, detail=failed.get(image_id, ""))
    rule = broken_rule(polished)
    return Verdict(image_id, image, draft, polished, rule is None, rule or "")


def _polish(draft: str, reply: Reply) -> str:
    if "already correct" in reply.text.lower():
        return draft
    # Differs from the original: a reply that was cut off ends with its last whole sentence.
    return whole_sentences(reply.text) if reply.cut_off else reply.text


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write a line for each, without an empty reason or detail.

    Raises:
        MiniGPT4Error: when the disk is full.
    """
    optional = ("reason", "detail")
    rows = [
        {k: v for k, v in asdict(verdict).items() if v or k not in optional} for verdict in verdicts
    ]
    write_atomically(path, lambda file: file.write(b"".join(map(encode, rows))))
