"""What a user is shown after a mistake: one line that names the place."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minigpt4.errors import MiniGPT4Error


@contextmanager
def one_line(kind: type[MiniGPT4Error], *mentions: object) -> Iterator[None]:
    """Expect an error of this kind whose message is one line and mentions all of these."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text, text
    assert text.strip()
    for mention in mentions:
        assert str(mention) in text, text


@contextmanager
def several_lines(kind: type[MiniGPT4Error], *mentions: str) -> Iterator[None]:
    """Expect one line for each fault, in this order, each mentioning its text."""
    with pytest.raises(kind) as caught:
        yield
    lines = str(caught.value).splitlines()
    assert len(lines) == len(mentions), "\n".join(lines)
    for line, mention in zip(lines, mentions, strict=True):
        assert mention in line, line
