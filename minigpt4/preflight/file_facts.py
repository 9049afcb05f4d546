"""File facts: whether a file holds what it held, read again only where its time has changed."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

DIGEST, _BLOCK = 20, 1 << 20  # bytes


class FileFact(NamedTuple):
    """A file as a cache describes it; one that cannot be read has no digest, and -1 bytes."""

    name: str
    size: int
    mtime_ns: int
    digest: str


def describe(file: Path) -> FileFact:
    """A file's name, size, time of its last change, and BLAKE2b of its content."""
    try:
        status = os.stat(file)
        digest = _digest(file, status.st_size, status.st_mtime_ns)
    except OSError:  # of a shard it is a bad sample, and stays one
        return FileFact(file.name, -1, 0, "")
    return FileFact(file.name, status.st_size, status.st_mtime_ns, digest)


def has_content(file: Path, fact: FileFact) -> bool:
    """Whether a file holds what it held; only one whose time has changed is read."""
    try:
        status = os.stat(file)
    except OSError:
        return fact.size == -1
    if status.st_size != fact.size:
        return False
    return status.st_mtime_ns == fact.mtime_ns or describe(file).digest == fact.digest


@functools.cache
def _digest(file: Path, _size: int, _mtime_ns: int) -> str:
    told = hashlib.blake2b(digest_size=DIGEST)
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            told.update(block)
    return told.hexdigest()


def files_difference(recorded: Sequence[Sequence[Any]], files: Sequence[Path]) -> str | None:
    """The first of a group's files that is another than it was."""
    facts = [FileFact(*fact) for fact in recorded]
    for fact, file in zip(facts, files, strict=False):
        if fact.name != file.name:
            return f"made of {fact.name}, where {file} is now"
        if not has_content(file, fact):
            return f"{file} has changed since"
    if len(facts) != len(files):
        return f"a group was made of {len(facts)} files, and has {len(files)} now"
    return None


def with_present_times(recorded: Sequence[Sequence[Any]], files: Sequence[Path]) -> list[list[Any]]:
    """Facts of files whose content is what it was, with the time of their last change now."""
    facts = [FileFact(*fact) for fact in recorded]
    return [
        list(fact if fact.size == -1 else fact._replace(mtime_ns=os.stat(file).st_mtime_ns))
        for fact, file in zip(facts, files, strict=True)
    ]
