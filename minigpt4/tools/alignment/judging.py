"""Judging: pairs of description and caption → yes or no, by a server, each asked and paid once."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics.coverage import Verdict
from minigpt4.tools.alignment.request_pool import Reply, RequestPool
from minigpt4.tools.alignment.server import Server
from minigpt4.tools.alignment.work_folder import Journal

SYSTEM = (
    "You compare two texts about the same picture. You say whether the description tells "
    "everything that the caption tells, in whatever words. You answer with yes or no alone."
)
QUESTION = (
    "Description: {description}\n\nCaption: {caption}\n\nDoes the description cover the caption?"
)
REMINDER = "\n\nAnswer with the single word yes or the single word no."
_TEMPERATURE = 0.0
_MAX_TOKENS = 16  # of a verdict; whoever explains first is not understood

logger = logging.getLogger(__name__)


class ServerJudge:
    """An OpenAI-compatible server as judge, whose verdicts are kept below the evaluation's folder.

    A reply that is neither yes nor no is asked for once more, with a reminder.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder / "judge"

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdict on each pair of description and caption."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--output: {self._folder} cannot be written ({error}); choose another folder"
            raise MiniGPT4Error(text) from error
        journal = Journal(self._folder / "verdicts.jsonl")
        pool = RequestPool(self._server, SYSTEM, journal, _TEMPERATURE, _MAX_TOKENS)
        asked = [QUESTION.format(description=one, caption=other) for one, other in pairs]
        found = self._ask(pool, asked)
        unclear = [text for text in asked if found[text] == "unclear"]
        again = self._ask(pool, [text + REMINDER for text in unclear])
        found = {**found, **{text: again[text + REMINDER] for text in unclear}}
        verdicts = [found[text] for text in asked]
        for name in ("unclear", "no reply"):
            if count := verdicts.count(name):
                logger.warning("the judge: %s to %d of %d questions", name, count, len(verdicts))
        return verdicts

    def _ask(self, pool: RequestPool, questions: Sequence[str]) -> Mapping[str, Verdict]:
        """Return the verdict on each question; one with a reply is not asked again."""
        # Another model's verdict has another key.
        words = {text: "\0".join((self._server.model, SYSTEM, text)) for text in questions}
        keys = {
            text: hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]
            for text, key in words.items()
        }
        pool.ask({key: text for text, key in keys.items()})
        return {text: read_verdict(pool.replies.get(key)) for text, key in keys.items()}


def read_verdict(reply: Reply | None) -> Verdict:
    """Return a reply's first word, or the only one of yes and no that it holds."""
    if reply is None:
        return "no reply"
    words = re.findall(r"[a-z]+", reply.text.lower())
    said = {*words[:1]} & {"yes", "no"} or {*words} & {"yes", "no"}
    if len(said) != 1:
        return "unclear"
    return "yes" if said == {"yes"} else "no"
