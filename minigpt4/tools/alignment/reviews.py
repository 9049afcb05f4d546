"""Reviews: what a person said of each pair; on disk before the next one is shown."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from minigpt4.errors import DataError
from minigpt4.tools.alignment.verdicts import Verdict
from minigpt4.tools.alignment.work_folder import Journal

Decision = Literal["accept", "edit", "reject"]


class Review(NamedTuple):
    """A decision, and the text that counts from now on."""

    decision: Decision
    text: str


class Reviews:
    """The pairs that passed the filter and what was said of them, over a journal of its own.

    A review counts for the text that was seen: of one polished again since, it is asked again.
    """

    def __init__(self, journal: Journal, verdicts: Sequence[Verdict]) -> None:
        self._journal = journal
        self.pairs = [verdict for verdict in verdicts if verdict.kept]
        self._polished = {pair.image_id: pair.polished for pair in self.pairs}
        self._said: dict[str, Review] = {}
        self._times: Counter[str] = Counter()
        self._saying = threading.Lock()
        journal.replay(self._take)

    def of(self, image_id: str) -> Review | None:
        return self._said.get(image_id)

    def next_place(self, start: int = 0) -> int | None:
        """Return the place of the next pair without a review, from a place on and round to it."""
        places = [*range(start, len(self.pairs)), *range(start)]
        return next((n for n in places if self.pairs[n].image_id not in self._said), None)

    def times(self, image_id: str) -> int:
        """Return how often a pair was decided on in this run."""
        return self._times[image_id]

    def say(self, image_id: str, accepted: bool, text: str, times: int) -> None:
        """Save a decision; a changed text that is accepted is an edit.

        Args:
            image_id: Id of the pair's picture.
            accepted: Whether the pair is kept.
            text: Text as it shall be.
            times: As :meth:`times` was when the pair was shown; where it was decided on since, a
                key was pressed twice or another page was quicker, and nothing is saved.

        Raises:
            DataError: for a picture that is not to be reviewed, or an empty text.
            MiniGPT4Error: when the disk is full.
        """
        text = text.strip()
        if image_id not in self._polished:
            raise DataError(f"there is no pair {image_id!r}")
        if accepted and not text:
            raise DataError("the text is empty; reject the pair instead")
        polished = self._polished[image_id]
        decision: Decision = "reject"
        if accepted:
            decision = "accept" if text == polished.strip() else "edit"
        said = text if decision == "edit" else polished
        row = {"image_id": image_id, "verdict": decision, "text": said, "polished": polished}
        with self._saying:
            if self._times[image_id] == times:
                self._journal.add([row])
                self._take(row)
                self._times[image_id] += 1

    def _take(self, row: Mapping[str, Any]) -> None:
        if self._polished.get(row["image_id"]) == row["polished"]:
            self._said[row["image_id"]] = Review(row["verdict"], row["text"])

    @property
    def counts(self) -> Counter[str]:
        """How often each decision was taken."""
        return Counter(review.decision for review in self._said.values())
