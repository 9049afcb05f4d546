"""Judging: descriptions and captions → yes or no, said by a server that is asked about each pair.

Every verdict is kept in a journal: a second run asks nothing twice, and pays nothing twice.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics.coverage import Verdict
from minigpt4.tools.alignment.asking import Asking, Server
from minigpt4.tools.alignment.completions import Completions
from minigpt4.tools.alignment.journal import Journal
from minigpt4.tools.alignment.ledger import Ledger

SYSTEM = (
    "You compare two texts about the same picture. You say whether the description tells "
    "everything that the caption tells, in whatever words. You answer with yes or no alone."
)
QUESTION = (
    "Description: {description}\n\nCaption: {caption}\n\nDoes the description cover the caption?"
)
REMINDER = "\n\nAnswer with the single word yes or the single word no."
_MAX_TOKENS = 16  # of a verdict; whoever explains first is not understood
_WORD = re.compile(r"[a-z]+")
_FOLDER, _FILE = "judge", "verdicts.jsonl"

logger = logging.getLogger(__name__)


class ServerJudge:
    """An OpenAI-compatible server as judge, without drawing (temperature 0).

    What is neither yes nor no is asked once more, with a reminder, and is unclear then.

    Args:
        server: Who says it.
        folder: Of the evaluation; verdicts are kept below it.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder / _FOLDER

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Of each pair of description and caption.

        Raises:
            MiniGPT4Error: for a server that refuses or has gone, a reached budget, a full disk.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--output: {self._folder} cannot be written ({error}); choose another folder"
            raise MiniGPT4Error(text) from error
        asked = [QUESTION.format(description=one, caption=other) for one, other in pairs]
        completions = Completions(self._server.endpoint, SYSTEM, 0.0, _MAX_TOKENS)
        try:
            with Journal(self._folder / _FILE) as journal:
                ledger = Ledger(journal, self._server.budget)
                first = self._ask(completions, ledger, asked)
                unclear = [text for text in asked if first[text] == "unclear"]
                again = self._ask(completions, ledger, [text + REMINDER for text in unclear])
        finally:
            completions.close()
        second: dict[str, Verdict] = {text: again[text + REMINDER] for text in unclear}
        verdicts = [{**first, **second}[text] for text in asked]
        for name in ("unclear", "no reply"):
            if count := verdicts.count(name):
                logger.warning("the judge: %s to %d of %d questions", name, count, len(verdicts))
        return verdicts

    def _ask(
        self, completions: Completions, ledger: Ledger, questions: Sequence[str]
    ) -> Mapping[str, Verdict]:
        """The verdict on each question; what the ledger has is not asked again."""
        keys = {text: self._key(text) for text in questions}
        drafts = {key: text for text, key in keys.items()}
        if drafts:
            Asking(completions, ledger, self._server.manners).run(drafts)
        replies = {text: ledger.replies.get(key) for text, key in keys.items()}
        return {
            text: read_verdict(reply.text) if reply else "no reply"
            for text, reply in replies.items()
        }

    def _key(self, question: str) -> str:
        """Of a question to this judge; another model's verdict is another's."""
        told = "\0".join((self._server.endpoint.model, SYSTEM, question))
        return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:32]


def read_verdict(reply: str) -> Verdict:
    """What a reply says: its first word, or the only one of both words that is in it."""
    words = _WORD.findall(reply.lower())
    said = {*words[:1]} & {"yes", "no"} or {*words} & {"yes", "no"}
    if len(said) != 1:
        return "unclear"
    return "yes" if said == {"yes"} else "no"
