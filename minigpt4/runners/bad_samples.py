"""The list of samples that a run skipped: ``bad_samples.jsonl``, one line for each."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4.datasets.samples import BadSample
from minigpt4.errors import MiniGPT4Error
from minigpt4.files import JsonLines
from minigpt4.runners.distributed import Distributed

MOST_LINES = 1_000_000  # later ones are not listed: some 100 MB of memory, a few hundred on disk

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class BadSampleLog:
    """Lists every bad sample once in ``bad_samples.jsonl``, and counts them by cause.

    Data set, key and cause identify a sample. What a file holds already counts too, so that a
    resumed run continues it; a last line that a kill cut short is dropped.

    Attributes:
        path: The file; made with its first line.
        processes: All processes of the run.
        causes: Number of different bad samples of each cause.
    """

    path: Path
    processes: Distributed
    causes: Counter[str] = field(default_factory=Counter)
    _known: set[bytes] | None = None

    def collect(self, found: list[tuple[str, BadSample]]) -> None:
        """Append the new ones of all processes; all of them must call it."""
        everything = self.processes.gather(found)
        if self.processes.main and (everything or self.path.is_file()):
            self.add(everything)

    def add(self, found: Iterable[tuple[str, BadSample]]) -> None:
        """Append the new ones among these pairs of data set and bad sample.

        Raises:
            MiniGPT4Error: when the file cannot be read or written.
        """
        try:
            if self._known is None:
                self._known = set()
                self._read()
        except OSError as error:
            raise MiniGPT4Error(f"{self.path}: cannot be read or written ({error})") from error
        new = [row for name, bad in found if self._is_new(row := bad.row(name))]
        if new:
            JsonLines(self.path).append(*new)

    def summary(self) -> str:
        """Return one line on all that are listed; empty without any."""
        total = self.causes.total()
        counts = ", ".join(f"{cause} {count:,}" for cause, count in self.causes.most_common())
        more = "at least " if total >= MOST_LINES else ""
        text = f"{more}{total:,} bad samples skipped: {counts}; listed in {self.path}"
        return text if total else ""

    def _is_new(self, row: dict[str, str]) -> bool:
        """Return whether a row is to be written, and count it then."""
        assert self._known is not None
        names = "\0".join(row.get(part, "") for part in ("dataset", "shard", "key", "cause"))
        mark = hashlib.blake2b(names.encode(errors="surrogatepass"), digest_size=8).digest()
        if mark in self._known or len(self._known) >= MOST_LINES:
            return False
        self._known.add(mark)
        self.causes[row["cause"]] += 1
        if len(self._known) == MOST_LINES:
            text = "%s: %d bad samples are listed; any more are skipped without a line"
            logger.warning(text, self.path, MOST_LINES)
        return True

    def _read(self) -> None:
        """Read what an earlier part of the run wrote."""
        if not self.path.is_file():
            return
        whole = 0
        with open(self.path, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(whole)
                    break
                whole += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # not ours; it stays as it is
                if isinstance(row, dict) and "cause" in row:
                    self._is_new({key: str(value) for key, value in row.items()})
