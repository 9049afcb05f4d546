"""Transcript: a conversation as JSON or Markdown."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Turn:
    """A question with its answer; ``images`` are names of the images shown with it."""

    question: str
    answer: str
    images: list[str] = field(default_factory=list)


def as_json(turns: Sequence[Turn]) -> str:
    return json.dumps([asdict(turn) for turn in turns], ensure_ascii=False, indent=2) + "\n"


def as_markdown(turns: Sequence[Turn]) -> str:
    parts = ["# A conversation with MiniGPT-4\n"]
    for turn in turns:
        pictures = "".join(f"*(picture: {_escape(name)})*\n\n" for name in turn.images)
        parts.append(
            f"**You:**\n\n{pictures}{_escape(turn.question)}\n\n"
            f"**MiniGPT-4:**\n\n{_escape(turn.answer)}\n"
        )
    return "\n".join(parts)


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#+!|&])", r"\\\1", text)
