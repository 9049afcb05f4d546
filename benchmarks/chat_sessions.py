"""Many visitors of the chat page at once: no cross-talk, a fair queue, bounded memory.

    python benchmarks/chat_sessions.py --sessions 50 --turns 3

The real ``demo.py`` with the tiny model and a random projection serves scripted visitors, each with
a picture of his own, by the page's own protocol. Every script runs alone first, and then all run at
once; greedy answers must be the same, word for word. Exit code 1 if one differs, if a visitor waits
while another gets two answers more than he, if memory grows beyond its bar, if a file is left when
all have gone, if a full queue does not say so, or if nothing was checked.
"""

import argparse
import asyncio
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minigpt4.errors import MiniGPT4Error, NothingCheckedError, run_guarded  # noqa: E402
from minigpt4.tools.tiny_world.scenes import draw_scene, sample_scene  # noqa: E402
from tests.helpers.page_client import Outcome, Visitor, serve, uploaded, visit  # noqa: E402
from tests.helpers.server_process import ServerProcess  # noqa: E402

QUESTIONS = (
    "Describe this image in detail.",
    "How many objects are there?",
    "What is the background like?",
    "What is this?",
)
MOST_AHEAD = 2  # answers that one visitor may have more than another who asks as eagerly
MOST_GROWTH = 200.0  # MB, from all scripts one by one to all at once
_KEEP_MINUTES = 0.05
_PLACES = 2  # of the queue that is filled


@dataclass
class Figures:
    """What was tried and what came of it.

    Attributes:
        answers: Given while all asked at once.
        different: Of them, answers that differ from the ones given alone.
        distinct: Different conversations; were they all the same, cross-talk would not be seen.
        ahead: The most answers that one had more than another at any time.
        rss_mb: Of the server: before, after all scripts one by one, after all at once, and at the
            end, when all had gone.
        left_files: Uploads that are left when all have gone.
        refused: Questions that a full queue refused.
    """

    sessions: int
    turns: int
    answers: int = 0
    different: int = 0
    distinct: int = 0
    ahead: int = 0
    seconds: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    left_files: int = 0
    refused: int = 0
    refusal: str = ""

    @property
    def answers_per_second(self) -> float:
        return self.answers / max(self.seconds, 1e-9)

    def missed(self) -> list[str]:
        """Bars that were missed, in words."""
        growth = self.rss_mb[2] - self.rss_mb[1]
        checks = {
            f"{self.different} answers differ from those given alone": self.different > 0,
            f"{self.answers} answers of {self.sessions * self.turns}": self.answers
            != self.sessions * self.turns,
            f"one visitor was {self.ahead} answers ahead of another": self.ahead > MOST_AHEAD,
            f"memory grew by {growth:.0f} MB": growth > MOST_GROWTH,
            f"{self.left_files} uploads are left": self.left_files > 0,
            "the full queue refused nothing": not self.refused,
            f"a full queue says {self.refusal!r}": "too many questions" not in self.refusal.lower(),
        }
        return [text for text, missed in checks.items() if missed]


def pictures(count: int, seed: int) -> list[bytes]:
    """Encoded scenes, each another."""
    encoded = []
    for number in range(count):
        written = io.BytesIO()
        scene = sample_scene(random.Random(seed * 100_003 + number), pairs="withheld")
        draw_scene(scene).save(written, "PNG")
        encoded.append(written.getvalue())
    return encoded


def save_projection(file: Path, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    # So large that the language model hears little but the picture, and answers differ.
    weight, bias = (torch.randn(shape, generator=drawn) * 4 for shape in ((160, 128), (160,)))
    torch.save({"model": {"llama_proj.weight": weight, "llama_proj.bias": bias}}, file)


class Scripts:
    """What each visitor does, and how far each has come."""

    def __init__(self, server: ServerProcess, shown: Sequence[bytes], turns: int) -> None:
        self.server = server
        self.shown = shown
        self.turns = turns
        self.done: dict[int, int] = {}
        self.ahead = 0
        self.arrived = 0

    async def one(self, number: int, start: asyncio.Event | None = None) -> list[str]:
        """All answers of one visitor's script."""
        async with visit(self.server.url) as visitor:
            files = [await visitor.upload("scene.png", self.shown[number])]
            self.arrived += 1
            if start:
                await start.wait()
            outcome = Outcome()
            for turn in range(self.turns):
                outcome = await self._ask(visitor, QUESTIONS[turn % len(QUESTIONS)], files)
                files = []
                self.done[number] = turn + 1
                waiting = [n for n in self.done.values() if n < self.turns]
                if waiting:
                    self.ahead = max(self.ahead, turn + 1 - min(waiting))
            return outcome.answers

    async def _ask(
        self, visitor: Visitor, question: str, files: list[dict[str, object]]
    ) -> Outcome:
        outcome = await visitor.ask(question, files)
        if outcome.messages:
            raise MiniGPT4Error(f"a visitor was told: {outcome.messages}")
        return outcome

    async def alone(self) -> list[list[str]]:
        return [await self.one(number) for number in range(len(self.shown))]

    async def together(self) -> tuple[list[list[str]], float]:
        """All answers, and the seconds from the first question to the last answer."""
        self.done = dict.fromkeys(range(len(self.shown)), 0)
        self.ahead = self.arrived = 0
        start = asyncio.Event()
        running = [asyncio.create_task(self.one(n, start)) for n in range(len(self.shown))]
        while self.arrived < len(running) and not any(task.done() for task in running):
            await asyncio.sleep(0.1)
        start.set()
        since = time.monotonic()
        answers = await asyncio.gather(*running)
        return answers, time.monotonic() - since


def rss_mb(pid: int) -> float:
    (line,) = [s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in s]
    return int(line.split()[1]) / 1024


def measure(folder: Path, figures: Figures, seed: int) -> None:
    """Cross-talk, order, memory and what is left."""
    shown = pictures(figures.sessions, seed)
    options = [f"model.ckpt={folder / 'projection.pth'}"]
    limits = ["--max-waiting", str(figures.sessions), "--keep-minutes", str(_KEEP_MINUTES)]
    with serve(folder, *limits, options=options) as server:
        server.wait_until("ready")
        pid = server.process.pid
        scripts = Scripts(server, shown, figures.turns)
        figures.rss_mb.append(rss_mb(pid))
        alone = asyncio.run(scripts.alone())
        figures.rss_mb.append(rss_mb(pid))
        together, figures.seconds = asyncio.run(scripts.together())
        figures.rss_mb.append(rss_mb(pid))
        pairs = [
            pair
            for one, other in zip(alone, together, strict=True)
            for pair in zip(one, other, strict=True)
        ]
        figures.answers = len(pairs)
        figures.different = sum(one != other for one, other in pairs)
        figures.distinct = len({tuple(answers) for answers in alone})
        figures.ahead = scripts.ahead
        own = len(list((ROOT / "assets" / "examples").glob("*.png")))
        end = time.monotonic() + 60
        while len(uploaded(server)) > own and time.monotonic() < end:
            time.sleep(0.5)
        figures.left_files = max(0, len(uploaded(server)) - own)
        figures.rss_mb.append(rss_mb(pid))


def fill_queue(folder: Path, figures: Figures, seed: int) -> None:
    """More questions at once than may wait."""
    (picture,) = pictures(1, seed)
    options = [f"model.ckpt={folder / 'projection.pth'}"]

    async def one(url: str) -> Outcome:
        async with visit(url) as visitor:
            return await visitor.ask(QUESTIONS[0], [await visitor.upload("scene.png", picture)])

    async def all_at_once(url: str) -> list[Outcome]:
        return await asyncio.gather(*(one(url) for _ in range(6 * _PLACES)))

    (folder / "full").mkdir()
    with serve(folder / "full", "--max-waiting", str(_PLACES), options=options) as server:
        server.wait_until("ready")
        outcomes = asyncio.run(all_at_once(server.url))
    refusals = [outcome.messages[0] for outcome in outcomes if outcome.messages]
    figures.refused, figures.refusal = len(refusals), refusals[0] if refusals else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    figures = Figures(arguments.sessions, arguments.turns)
    if figures.sessions < 2 or figures.turns < 1:
        raise NothingCheckedError("at least two sessions of one turn are needed to see cross-talk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_projection(folder / "projection.pth", arguments.seed)
        measure(folder, figures, arguments.seed)
        fill_queue(folder, figures, arguments.seed)
    if figures.distinct < 2:
        raise NothingCheckedError("all got the same answers, so that cross-talk is not to be seen")
    missed = figures.missed()
    report(figures, missed)
    if arguments.json:
        rates = {"answers_per_second": round(figures.answers_per_second, 2), "missed": missed}
        arguments.json.write_text(json.dumps(asdict(figures) | rates, indent=2) + "\n")
    return 1 if missed else 0


def report(figures: Figures, missed: Sequence[str]) -> None:
    memory = " → ".join(f"{mb:.0f}" for mb in figures.rss_mb)
    print(
        f"{figures.sessions} sessions of {figures.turns} turns at once: {figures.answers} answers, "
        f"{figures.different} of them other than alone ({figures.distinct} different conversations)"
    )
    print(f"{figures.answers_per_second:.1f} answers/s; at most {figures.ahead} answers ahead")
    print(f"memory of the server: {memory} MB (start, one by one, at once, all gone)")
    print(f"uploads left: {figures.left_files}")
    print(f"a queue of {_PLACES} refused {figures.refused}: {figures.refusal}")
    for line in missed:
        print(f"MISSED: {line}")


if __name__ == "__main__":
    run_guarded(main)
