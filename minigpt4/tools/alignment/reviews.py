"""Reviews: what a person said of each pair; on disk before the next one is shown."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from minigpt4.errors import DataError
from minigpt4.tools.alignment.journal import Journal
from minigpt4.tools.alignment.verdicts import Verdict

Decision = Literal["accept", "edit", "reject"]


class Review(NamedTuple):
    """A decision, and the text that counts from now on."""

    decision: Decision
    text: str


class Reviews:
    """The pairs that passed the filter and what was said of them, over a journal.

    A review counts for the text that was seen: of one polished anew since, it is asked again.

    Args:
        journal: Of the reviews alone.
        verdicts: All; those kept are to be reviewed.

    Raises:
        DataError: for a journal of something else.
    """

    def __init__(self, journal: Journal, verdicts: Sequence[Verdict]) -> None:
        self._journal = journal
        self.pairs = [verdict for verdict in verdicts if verdict.kept]
        self._polished = {pair.image_id: pair.polished for pair in self.pairs}
        self._said: dict[str, Review] = {}
        self._times: Counter[str] = Counter()
        self._saying = threading.Lock()
        for number, row in enumerate(journal.rows, 1):
            try:
                if self._polished.get(row["image_id"]) == row["polished"]:
                    self._said[row["image_id"]] = Review(row["verdict"], row["text"])
            except (KeyError, TypeError) as error:
                text = f"{journal.path}:{number}: not a line of this command"
                raise DataError(f"{text}; choose another --output") from error

    def of(self, image_id: str) -> Review | None:
        return self._said.get(image_id)

    def next_place(self, start: int = 0) -> int | None:
        """Of the next pair without a review, from a place on and round to it again."""
        places = [*range(start, len(self.pairs)), *range(start)]
        return next((n for n in places if self.pairs[n].image_id not in self._said), None)

    def times(self, image_id: str) -> int:
        """How often a pair was decided on in this run."""
        return self._times[image_id]

    def say(self, image_id: str, accepted: bool, text: str, times: int) -> None:
        """Save a decision; a changed text that is accepted is an edit.

        Args:
            image_id: Of the pair.
            accepted: Else it is rejected.
            text: As it shall be.
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
        review = Review(decision, text if decision == "edit" else polished)
        with self._saying:
            if self._times[image_id] != times:
                return
            row = {"image_id": image_id, "verdict": decision, "text": review.text}
            self._journal.add([{**row, "polished": polished}])
            self._said[image_id] = review
            self._times[image_id] += 1

    @property
    def counts(self) -> Counter[str]:
        """How often each decision was taken."""
        return Counter(review.decision for review in self._said.values())
