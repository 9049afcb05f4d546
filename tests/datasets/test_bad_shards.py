"""Tars that are cut, damaged, packed or strange: what can be read is read, the rest is counted."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt4.datasets import caption_shards as shards
from minigpt4.datasets.caption_shards import ShardSource
from minigpt4.datasets.samples import BadSample, RawSample
from tests.helpers.data_files import pair, picture, write_tar

JSON = b'{"caption": "x"}'


def read(shard: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Keys of the good samples; key and cause of the bad ones."""
    samples = list(ShardSource([str(shard)], 1).read(0))
    assert all(sample.shard == str(shard) for sample in samples)
    assert all(sample.key.isprintable() for sample in samples)
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    assert not any("\n" in sample.reason for sample in bad)

    def name(key: str) -> str:
        return key.removeprefix(str(shard)).removeprefix("/")

    return (
        [name(sample.key) for sample in samples if isinstance(sample, RawSample)],
        [(name(sample.key), sample.cause) for sample in bad],
    )


def entry(name: str, content: bytes, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def write_entries(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "0.tar", *(pair(f"{number:03}") for number in range(4)))


# Cut


def test_a_tar_cut_anywhere_gives_what_lies_before_and_says_so(whole: Path) -> None:
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    ends = [-(-(member.offset_data + member.size) // 512) * 512 for member in members]
    for size in range(100, ends[-1] + 1, 100):
        whole.write_bytes(content[:size])
        good, bad = read(whole)
        assert bad == [("", "broken shard")], size
        complete = sum(end <= size for end in ends[1::2])  # at least the whole pairs
        assert len(good) in (complete, complete + 1), size


def test_a_damaged_header_loses_the_rest_and_says_so(whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    with tarfile.open(whole) as tar:
        offset = tar.getmembers()[2].offset
    content[offset : offset + 512] = b"X" * 512
    whole.write_bytes(content)
    assert read(whole) == (["000"], [("", "broken shard")])


def test_two_tars_in_one_file_are_told(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes() * 2)
    assert read(whole) == (["000", "001", "002", "003"], [("", "broken shard")])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "missing shard"),
        (b"", "empty shard"),
        (bytes(10240), "empty shard"),
        (b"<html>" * 200, "broken shard"),
        (b"\x1f\x8b", "broken shard"),
        (b"x", "broken shard"),
    ],
)
def test_a_file_without_a_sample_is_one_bad_shard(
    tmp_path: Path, content: bytes | None, cause: str
) -> None:
    if content is not None:
        (tmp_path / "0.tar").write_bytes(content)
    assert read(tmp_path / "0.tar") == ([], [("", cause)])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_tar_is_read_and_a_cut_one_told(
    whole: Path, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(whole.read_bytes())
    whole.write_bytes(packed)
    assert read(whole) == (["000", "001", "002", "003"], [])
    whole.write_bytes(packed[: len(packed) // 2])
    assert read(whole)[1] == [("", "broken shard")]


# Strange


def test_links_folders_and_pipes_are_no_pictures(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "soft": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        "hard": {"type": tarfile.LNKTYPE, "linkname": "good.jpg"},
        "pipe": {"type": tarfile.FIFOTYPE},
        "folder": {"type": tarfile.DIRTYPE},
    }
    entries = [entry("good.jpg", picture()), entry("good.json", JSON)]
    for name, kind in kinds.items():
        entries += [entry(f"{name}.jpg", b"", **kind), entry(f"{name}.json", JSON)]
    good, bad = read(write_entries(tmp_path / "0.tar", *entries))
    assert good == ["good"]
    assert bad == [(name, "no image") for name in kinds]


NAMES = ["/abs/a", "../up", "./dot/a", "with space", "\u00fc\u4f60\U0001f600", "a" * 3000, "d.d/a"]
ESCAPED = {name: name for name in NAMES} | {"new\nline": "new\\nline", "half\udcff": "half\\udcff"}


@pytest.mark.parametrize("name", ESCAPED)
def test_any_name_will_do_and_is_fit_for_a_log(tmp_path: Path, name: str) -> None:
    entries = [entry(f"{name}.jpg", picture()), entry(f"{name}.json", JSON)]
    (sample,) = ShardSource([str(write_entries(tmp_path / "0.tar", *entries))], 1).read(0)
    assert isinstance(sample, RawSample)
    assert sample.key == f"{tmp_path / '0.tar'}/{ESCAPED[name]}"


def test_files_without_key_or_suffix_are_left_alone(tmp_path: Path) -> None:
    """A name is split at its first dot, as in webdataset."""
    others = dict.fromkeys(("readme", ".jpg", "folder/.json", "notes.txt.gz"), b"x")
    shard = write_tar(tmp_path / "0.tar", others, pair("good"), pair("a.b"))
    assert read(shard) == (["good"], [("notes", "no image"), ("a", "no image")])


def test_of_two_files_of_one_name_the_first_counts(tmp_path: Path) -> None:
    entries = [entry("a.jpg", picture()), entry("a.json", b'{"caption": "first"}')]
    again = [entry("a.jpg", b"x"), entry("a.json", b'{"caption": "second"}')]
    shard = write_entries(tmp_path / "0.tar", *entries, *again)
    assert read(shard) == (["a"], [("a", "duplicate file")])
    first = next(ShardSource([str(shard)], 1).read(0))
    assert isinstance(first, RawSample)
    assert (first.text, first.image) == ("first", picture())


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[" * 100_000, "unreadable json"),
        (b'{"caption": ' * 50_000, "unreadable json"),
        (b"\0" * 100, "unreadable json"),
        (b"", "unreadable json"),
        (b'{"caption": "x", "n": ' + b"9" * 5000 + b"}", "unreadable json"),
        (b"null", "no caption"),
        (b'{"caption": {"text": "x"}}', "no caption"),
        (b'{"caption": null}', "no caption"),
        (b"[1]", "no caption"),
        (b"\xff\xfe\xff", "unreadable json"),
        (b'{"caption": ' + b"9" * 4000 + b"}", "no caption"),
        (b'{"caption": "x", "similarity": NaN}', None),
        (b'{"caption": "x", "status": "failed_to_download", "width": null}', None),
        (b"\xef\xbb\xbf" + JSON, None),
        (json.dumps({"caption": "word " * 200_000}).encode(), None),
        (json.dumps({"caption": "x", "more": ["y" * 1000] * 1000}).encode(), None),
    ],
)
def test_any_json_is_read_or_counted(tmp_path: Path, content: bytes, cause: str | None) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": content})
    assert read(shard) == (([], [("a", cause)]) if cause else (["a"], []))


def test_files_too_long_for_memory_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGEST_FILE", 1000)
    long_json = b'{"caption": "' + b"x" * 1000 + b'"}'
    files = {"a.jpg": bytes(1001), "a.json": JSON, "b.jpg": picture(), "b.json": long_json}
    shard = write_tar(tmp_path / "0.tar", files, {"c.txt": bytes(5000)} | pair("c"))
    assert read(shard) == (["c"], [("a", "huge image"), ("b", "unreadable json")])


# Hostile


@pytest.mark.parametrize(
    "size",
    [b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"\x80" + b"\xff" * 11, b"\xff" * 12],
    ids=["2^63", "2^88", "negative"],
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
def test_a_size_beyond_all_bounds_does_not_keep_the_reader_busy(
    whole: Path, size: bytes, kind: bytes
) -> None:
    content = bytearray(whole.read_bytes())
    with tarfile.open(whole) as tar:
        start = tar.getmembers()[2].offset
    content[start + 124 : start + 136] = size
    content[start + 156 : start + 157] = kind
    content[start + 148 : start + 156] = b" " * 8
    checksum = sum(content[start : start + 512])
    content[start + 148 : start + 156] = b"%06o\0 " % checksum
    whole.write_bytes(content)
    good, bad = read(whole)
    assert good[0] == "000"
    assert ("", "broken shard") in bad


def test_a_name_of_a_megabyte_does_not_keep_the_reader_busy(tmp_path: Path) -> None:
    shard = write_entries(tmp_path / "0.tar", entry("/" * 1_000_000 + "x", b""))
    assert read(shard) == ([], [("", "broken shard")])


def test_random_damage_is_read_or_counted(whole: Path) -> None:
    content = whole.read_bytes()
    packed = gzip.compress(content)
    rng = random.Random(0)
    broken = 0
    for _ in range(600):
        wreck = bytearray(rng.choice((content, packed)))
        for _ in range(rng.choice((1, 3))):
            at = rng.randrange(len(wreck))
            if rng.random() < 0.3:
                wreck = wreck[: at + 1]
            else:
                wreck[at] ^= 1 << rng.randrange(8)
        whole.write_bytes(wreck)
        good, bad = read(whole)
        assert good or bad
        broken += bool(bad)
    assert 100 < broken < 600
