"""Verdicts: what becomes of each picture's draft, by the filter and by a person."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from minigpt4.apps.captions_input import encode
from minigpt4.errors import DataError
from minigpt4.files import write_atomically
from minigpt4.tools.alignment.request_pool import Reply
from minigpt4.tools.alignment.text_rules import broken_rule, repair, whole_sentences
from minigpt4.tools.alignment.work_folder import Journal

UNREADABLE, NO_REPLY = "unreadable picture", "no reply"
_OPTIONAL = ("reason", "detail")


@dataclass(frozen=True)
class Verdict:
    """What became of a picture."""

    image_id: str
    image: str  # name in the folder that it comes from
    draft: str = ""
    polished: str = ""
    kept: bool = False
    reason: str = ""  # the rule that it broke, or why there is no text
    detail: str = ""  # error message, where the reason is not a rule


def judge(
    row: Mapping[str, Any], replies: Mapping[str, Reply] | None, failed: Mapping[str, str]
) -> Verdict:
    """Return the verdict on a row of drafts, by the server's replies or, with None, by rules."""
    image_id, image = str(row["image_id"]), str(row["image"])
    if "error" in row:
        return Verdict(image_id, image, reason=UNREADABLE, detail=str(row["error"]))
    draft = str(row["draft"])
    if replies is None:
        polished = repair(draft)
    elif not draft.strip():
        polished = ""  # no server is asked about it
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
    """Write a line for each, without an empty reason or detail."""
    rows = [
        {name: value for name, value in asdict(verdict).items() if value or name not in _OPTIONAL}
        for verdict in verdicts
    ]
    write_atomically(path, lambda file: file.write(b"".join(map(encode, rows))))


class Review(NamedTuple):
    """A person's decision, and the text that counts from now on."""

    decision: Literal["accept", "edit", "reject"]
    text: str


class Reviews:
    """The pairs that passed the filter and a person's decisions, in a journal of their own.

    A decision counts for the text that was seen: a text polished again is reviewed again.
    """

    def __init__(self, journal: Journal, verdicts: Sequence[Verdict]) -> None:
        self.journal = journal
        self.pairs = [verdict for verdict in verdicts if verdict.kept]
        self._polished = {pair.image_id: pair.polished for pair in self.pairs}
        self._said: dict[str, Review] = {}
        self._times: Counter[str] = Counter()
        self._saying = threading.Lock()
        journal.replay(self._take)

    def of(self, image_id: str) -> Review | None:
        return self._said.get(image_id)

    def next_place(self, start: int = 0) -> int | None:
        """Return the place of the next pair without a review, from ``start`` and around."""
        places = [*range(start, len(self.pairs)), *range(start)]
        return next((n for n in places if self.pairs[n].image_id not in self._said), None)

    def times(self, image_id: str) -> int:
        """Return how often a pair was decided on in this run."""
        return self._times[image_id]

    def say(self, image_id: str, accepted: bool, text: str, times: int) -> None:
        """Save a decision; accepting a changed text is an edit.

        ``times`` is what :meth:`times` was when the pair was shown. If it was decided on since (a
        key was pressed twice, or another page was quicker), nothing is saved.
        """
        polished, text = self._polished[image_id], text.strip()
        if accepted and not text:
            raise DataError("the text is empty; reject the pair instead")
        edited = accepted and text != polished.strip()
        decision = "edit" if edited else "accept" if accepted else "reject"
        row = {"image_id": image_id, "verdict": decision, "text": text if edited else polished}
        row["polished"] = polished
        with self._saying:
            if self._times[image_id] == times:
                self.journal.add([row])
                self._take(row)
                self._times[image_id] += 1

    def _take(self, row: Mapping[str, Any]) -> None:
        if self._polished.get(row["image_id"]) == row["polished"]:
            self._said[row["image_id"]] = Review(row["verdict"], row["text"])

    def summary(self) -> str:
        counts: Counter[str] = Counter(review.decision for review in self._said.values())
        return "{accept} accepted, {edit} edited, {reject} rejected".format_map(counts)

    @property
    def captions(self) -> dict[str, str]:
        """Texts of all pairs that were not rejected, by picture id."""
        said = {i: self._said.get(i, Review("accept", text)) for i, text in self._polished.items()}
        return {i: review.text for i, review in said.items() if review.decision != "reject"}
