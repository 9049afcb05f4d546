"""What a user is shown after a mistake: one line that names the place."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minigpt4.errors import MiniGPT4Error


@contextmanager
def one_line(
    kind: type[MiniGPT4Error], *mentions: object
) -> Iterator[pytest.ExceptionInfo[MiniGPT4Error]]:
    """Expect an error of this kind whose message is one line and mentions all of these."""
    with pytest.raises(kind) as caught:
        yield caught
    text = str(caught.value)
    assert "\n" not in text, text
    assert text.strip()
    for mention in mentions:
        assert str(mention) in text, text


@contextmanager
def several_lines(kind: type[MiniGPT4Error], *mentions: str) -> Iterator[None]:
    """Expect as many lines as mentions, in any order, each mention in a line of its own."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    lines = text.splitlines()
    assert len(lines) == len(mentions), text
    for mention in mentions:
        found = [line for line in lines if mention in line]
        assert found, f"{mention!r} is in no line of\n{text}"
        lines.remove(found[0])
