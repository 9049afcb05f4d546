"""Shards with good and bad samples of every kind, known by shard, key and cause."""

import dataclasses
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from minigpt4.tools.tiny_world.phrases import caption
from minigpt4.tools.tiny_world.scenes import draw_scene, sample_scene

Files = dict[str, bytes]  # suffix → content


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def told(text: object) -> bytes:
    return json.dumps({"caption": text, "status": "success"}).encode()


# What is good although it is rare: each is to be read.
GOOD: dict[str, Callable[[Image.Image], Files]] = {
    "jpg": lambda image: {"jpg": encoded(image)},
    "jpeg": lambda image: {"jpeg": encoded(image)},
    "png": lambda image: {"png": encoded(image, "PNG")},
    "webp": lambda image: {"webp": encoded(image, "WEBP")},
    "large suffix": lambda image: {"JPG": encoded(image)},
    "CMYK jpg": lambda image: {"jpg": encoded(image.convert("CMYK"))},
    "palette png": lambda image: {"png": encoded(image.convert("P"), "PNG", transparency=1)},
    "transparent png": lambda image: {"png": encoded(image.convert("RGBA"), "PNG")},
    "16-bit grey png": lambda image: {"png": encoded(grey16(image), "PNG")},
    "1-bit png": lambda image: {"png": encoded(image.convert("1"), "PNG")},
    "animated webp": lambda image: {
        "webp": encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)])
    },
    "gif named jpg": lambda image: {"jpg": encoded(image, "GIF")},
    "one pixel wide": lambda image: {"png": encoded(image.resize((1, 50)), "PNG")},
}
_BOMB = encoded(Image.new("1", (10_000, 10_000)), "PNG")  # 100 million pixels in a few kilobytes
# What is bad: its cause, and its files.
BAD: dict[str, tuple[str, Callable[[Image.Image], Files]]] = {
    "half a jpg": (
        "unreadable image",
        lambda image: {"jpg": encoded(image)[:-600], "json": told("x")},
    ),
    "half a png": (
        "unreadable image",
        lambda image: {"png": encoded(image, "PNG")[:300], "json": told("x")},
    ),
    "half a webp": (
        "unreadable image",
        lambda image: {"webp": encoded(image, "WEBP")[:100], "json": told("x")},
    ),
    "a web page": ("unreadable image", lambda image: {"jpg": b"<html>404", "json": told("x")}),
    "no bytes": ("unreadable image", lambda image: {"jpg": b"", "json": told("x")}),
    "a bomb": ("huge image", lambda image: {"png": _BOMB, "json": told("x")}),
    "no image": ("no image", lambda image: {"json": told("x")}),
    "a second dot": ("no image", lambda image: {"b.jpg": encoded(image), "json": told("x")}),
    "no json": ("no json", lambda image: {"jpg": encoded(image), "txt": b"x"}),
    "half a json": (
        "unreadable json",
        lambda image: {"jpg": encoded(image), "json": told("x")[:9]},
    ),
    "a json of noise": (
        "unreadable json",
        lambda image: {"jpg": encoded(image), "json": b"\xff\0\xfe" * 9},
    ),
    "a deep json": (
        "unreadable json",
        lambda image: {"jpg": encoded(image), "json": b"[" * 100_000},
    ),
    "no caption": ("no caption", lambda image: {"jpg": encoded(image), "json": b'{"url": "x"}'}),
    "a null caption": ("no caption", lambda image: {"jpg": encoded(image), "json": told(None)}),
    "an empty caption": ("empty caption", lambda image: {"jpg": encoded(image), "json": told(" ")}),
    "a caption of dots": (
        "empty caption",
        lambda image: {"jpg": encoded(image), "json": told("...!")},
    ),
    "half a character": (
        "unreadable caption",
        lambda image: {"jpg": encoded(image), "json": told("a \ud800")},
    ),
}
Bad = tuple[str, str, str]  # shard's name, key, cause


@dataclasses.dataclass
class Planted:
    """Shards, and what is known of them."""

    folder: Path
    bad: set[Bad] = dataclasses.field(default_factory=set)
    good: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    @property
    def storage(self) -> str:
        return str(self.folder / f"{{{','.join(self.names)}}}.tar")


def write_tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Planter:
    """Writes shards of good and bad samples, all kinds in turn."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        folder.mkdir(parents=True)
        self.planted = Planted(folder)
        self._rng = rng
        self._goods = 0
        self._bads = 0

    def samples(self, shard: str, count: int, bad_share: float) -> list[tuple[str, bytes]]:
        """The files of a shard; notes what is bad in it."""
        flags = [number < round(count * bad_share) for number in range(count)]
        self._rng.shuffle(flags)
        files: list[tuple[str, bytes]] = []
        for number, bad in enumerate(flags):
            key = f"{shard}{number:04d}"
            scene = sample_scene(self._rng, pairs="seen")
            if bad:
                cause, make = list(BAD.values())[self._bads % len(BAD)]
                self._bads += 1
                self.planted.bad.add((f"{shard}.tar", key, cause))
                content = make(draw_scene(scene))
            else:
                make_good = list(GOOD.values())[self._goods % len(GOOD)]
                self._goods += 1
                self.planted.good += 1
                content = make_good(draw_scene(scene)) | {"json": told(caption(scene))}
            files += [(f"{key}.{suffix}", data) for suffix, data in content.items()]
        return files

    def add(self, content: bytes | None, cause: str = "") -> str:
        """One more shard; None for one that is named and missing."""
        shard = f"{len(self.planted.names):05d}"
        self.planted.names.append(shard)
        if content is not None:
            (self.planted.folder / f"{shard}.tar").write_bytes(content)
        if cause:
            self.planted.bad.add((f"{shard}.tar", "", cause))
        return shard

    def add_mixed(self, count: int, bad_share: float) -> None:
        self.add(write_tar(self.samples(f"{len(self.planted.names):05d}", count, bad_share)))

    def add_wrecks(self) -> None:
        """Shards that are bad as a whole, or from some place on."""
        kept = 3  # good samples before a cut
        for cut in ("in a picture", "in a header", "between two samples", "end blocks"):
            shard = f"{len(self.planted.names):05d}"
            files = self.samples(shard, kept, 0)
            whole = kept if cut == "end blocks" else kept + 1
            more = [(name.replace(shard, f"{shard}x"), data) for name, data in files[:2]]
            tar = write_tar(files + (more if whole > kept else []))
            start = len(write_tar(files).rstrip(b"\0"))
            start = -(-start // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            at = {"in a picture": start + 700, "in a header": start + 200}.get(cut, start)
            self.add(tar[:at], "broken shard")
        self.add(b"", "empty shard")
        self.add(write_tar([]), "empty shard")
        self.add(b"<html>404 not found</html>" * 100, "broken shard")
        self.add(None, "missing shard")
        shard = f"{len(self.planted.names):05d}"
        self.add(gzip.compress(write_tar(self.samples(shard, kept, 0))))  # good, though packed


def plant(folder: Path, shards: int, samples: int, seed: int) -> Planted:
    """All kinds, a quarter of the samples bad."""
    planter = Planter(folder, random.Random(f"{seed}/planted"))
    for _ in range(shards):
        planter.add_mixed(samples, 0.25)
    planter.add_wrecks()
    return planter.planted
