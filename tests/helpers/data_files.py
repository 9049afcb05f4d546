"""Real shards and folders of pairs, written by the tests that read them."""

import io
import itertools
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.loaders import SampleStream
from minigpt4.datasets.samples import DataSet, RawSample, Sample, Source, to_device
from minigpt4.processors import ImageProcessor

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(suffix: str = "jpg") -> bytes:
    """A small red picture, encoded."""
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (200, 30, 30)).save(file, _FORMATS[suffix])
    return file.getvalue()


def noise() -> bytes:
    """A picture of many values, so that a part of its file is a part of its pixels."""
    file = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A png that says it has this many pixels on each side, and has none."""
    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = b""
    for body in (b"IHDR" + head, b"IDAT"):
        chunks += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks


def pair(key: str, caption: str | None = None, suffix: str = "jpg") -> dict[str, bytes]:
    """The two files of one sample; the caption is the key unless told."""
    text = json.dumps({"caption": caption if caption is not None else key, "key": key})
    return {f"{key}.{suffix}": picture(suffix), f"{key}.json": text.encode()}


def write_tar(path: Path, *samples: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for name, content in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, samples: int) -> list[str]:
    """``00000.tar`` and so on; the captions are ``<shard>-<sample>``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        pairs = [pair(f"{shard}-{sample}") for sample in range(samples)]
        paths.append(str(write_tar(folder / f"{shard:05d}.tar", *pairs)))
    return paths


def write_pairs(
    folder: Path, entries: Sequence[tuple[Any, Any]], images: Mapping[str, bytes]
) -> Path:
    """A folder as ``cc_sbu_align``; ``images`` maps file names to contents."""
    (folder / "image").mkdir(parents=True)
    annotations = [{"image_id": name, "caption": caption} for name, caption in entries]
    text = json.dumps({"annotations": annotations})
    (folder / "filter_cap.json").write_text(text, encoding="utf-8")
    for name, content in images.items():
        (folder / "image" / name).write_bytes(content)
    return folder


def data_set(source: Source, name: str = "mine", sample_ratio: float = 1.0) -> DataSet:
    """A data set of tiny images whose texts stay as they are."""
    return DataSet(name, source, ImageProcessor(4), str, sample_ratio)


def samples_of(stream: SampleStream, count: int) -> list[Sample]:
    """The first samples of a stream; its fault is raised."""
    found: list[Sample] = []
    for delivery in itertools.islice(stream, -(-count // stream.batch_size)):
        if delivery.fault:
            raise delivery.fault
        assert delivery.batch is not None
        batch = to_device(delivery.batch, torch.device("cpu"))
        parts = zip(batch["keys"], batch["image"], batch["text"], strict=True)
        found += [Sample(key=key, image=image, text=text, facts={}) for key, image, text in parts]
    return found[:count]


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def with_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return folder


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def plant_shards(folder: Path) -> str:
    """Write five shards with bad samples between good ones; one breaks off, another is empty."""
    folder.mkdir()
    for number in range(5):
        samples = [pair(f"{number}-{i}", caption=f"A {i}!") for i in range(7)]
        samples[number]["bad.json"] = b"{"
        samples[2] = {f"{number}-2.jpg": picture()}
        samples[5] = {f"{number}-5.jpg": b"x", f"{number}-5.json": b'{"caption": "x"}'}
        samples[6] = pair(f"{number}-6", caption="!")  # empty once it is processed
        shard = write_tar(folder / f"{number}.tar", *samples)
    shard.write_bytes(shard.read_bytes()[:5000])
    (folder / "3.tar").write_bytes(b"")
    return str(folder)


def plant_pairs(folder: Path) -> str:
    """Write eleven pairs: 3 has no caption, 4 is no picture, and the picture of 7 is missing."""
    entries: list[tuple[Any, Any]] = [(str(i), f"text {i}") for i in range(11)]
    entries[3], entries[7] = ("3", None), ("nowhere", "text 7")
    images = {f"{i}.png": b"x" if i == 4 else noise() for i in range(11)}
    return str(write_pairs(folder, entries, images))


def samples_in(folder: Path) -> list[RawSample]:
    """What a training reads in the shards of a folder, of which nothing is bad."""
    shards = list_shards(str(folder))
    found = [sample for n in range(len(shards)) for sample in ShardSource(shards, 1).read(n)]
    assert all(isinstance(sample, RawSample) for sample in found)
    return [sample for sample in found if isinstance(sample, RawSample)]
