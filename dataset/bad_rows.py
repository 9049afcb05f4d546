"""Rows that the programs beside leave out: counted, and told where they are.

Beside the way from lists to data; what is said here ends up in a summary and on the screen.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

FIRST = 3  # of a kind that are named


class BadRows:
    """Rows of no use: counted by kind, the first of each named, all listed on request.

    Attributes:
        counts: Rows of each kind.
        first: Places of the first of each kind, with what is wrong there.
    """

    def __init__(self, listing: BinaryIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self._listing = listing

    def add(self, kind: str, place: str, detail: str = "") -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= FIRST:
            told = f"{place}: {detail}" if detail else place
            self.first.setdefault(kind, []).append(told)
        if self._listing:
            row = {"place": place, "kind": kind, "detail": detail}
            self._listing.write(json.dumps(row).encode() + b"\n")

    def as_json(self) -> dict[str, Any]:
        return {
            kind: {"rows": count, "for example": self.first[kind]}
            for kind, count in self.counts.most_common()
        }


def lines_of(told: Mapping[str, Any]) -> Iterator[str]:
    """What ``as_json`` tells, as lines."""
    for kind, found in told.items():
        yield f"  {kind:<36}{found['rows']:>12,}  e.g. {found['for example'][0]}"
