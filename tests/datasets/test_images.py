"""Every kind of picture is read as it looks, and every kind of wreck is a one-line mistake."""

import io
import os
import random
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from minigpt4.datasets.caption_shards import ShardSource
from minigpt4.datasets.images import HugeImageError, load_fast, load_image
from minigpt4.datasets.samples import BadSample, RawSample, read_sample
from minigpt4.errors import DataError
from minigpt4.processors import ImageProcessor, TrainImageProcessor
from tests.helpers.data_files import data_set
from tests.helpers.messages import one_line
from tests.helpers.processes import finished

ORANGE = (230, 120, 30)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def orange(mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Image.Image:
    return Image.new("RGB", size, ORANGE).convert(mode)


def looks_orange(image: Image.Image, tolerance: int = 12) -> bool:
    distance = np.abs(np.asarray(image, dtype=int) - ORANGE)
    return image.mode == "RGB" and bool(distance.max() <= tolerance)


def frames() -> dict[str, Any]:
    others = [Image.new("RGB", (16, 8), "blue"), Image.new("RGB", (16, 8), "green")]
    return {"save_all": True, "append_images": others, "duration": 50}


COLOURED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(orange(), "JPEG", quality=95),
    "progressive jpeg": lambda: encoded(orange(), "JPEG", quality=95, progressive=True),
    # PIL writes CMYK inverted, with Adobe's mark, as Photoshop does.
    "CMYK jpeg": lambda: encoded(orange("CMYK"), "JPEG", quality=95),
    "png": lambda: encoded(orange(), "PNG"),
    "png with transparency": lambda: encoded(orange("RGBA"), "PNG"),
    "palette png": lambda: encoded(orange("P"), "PNG"),
    "palette png with transparency": lambda: encoded(orange("P"), "PNG", transparency=b"\x80" * 9),
    "animated png": lambda: encoded(orange(), "PNG", **frames()),
    "webp": lambda: encoded(orange(), "WEBP", quality=95),
    "webp with transparency": lambda: encoded(orange("RGBA"), "WEBP", lossless=True),
    "animated webp": lambda: encoded(orange(), "WEBP", lossless=True, **frames()),
    "gif": lambda: encoded(orange("P"), "GIF"),
    "animated gif": lambda: encoded(orange(), "GIF", **frames()),
    "16-bit RGB png": lambda: png_16_bit([c * 257 for c in ORANGE], colour_type=2),
    "16-bit RGBA png": lambda: png_16_bit([*(c * 257 for c in ORANGE), 0], colour_type=6),
}


def png_16_bit(pixel: list[int], colour_type: int) -> bytes:
    """A png of 16 x 8 equal pixels; PIL cannot write one of 16-bit colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    line = b"\0" + b"".join(value.to_bytes(2, "big") for value in pixel) * 16
    header = (16).to_bytes(4, "big") + (8).to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(line * 8)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_png(width: int, height: int) -> bytes:
    """The beginning of a png; its pixels need not be there to tell."""
    png = bytearray(COLOURED["png"]())
    png[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


@pytest.mark.parametrize("kind", COLOURED)
def test_a_picture_of_any_kind_is_read_as_it_looks(kind: str) -> None:
    image = load_image(COLOURED[kind]())
    assert image.size == (16, 8)
    assert looks_orange(image, tolerance=40 if "palette" in kind or kind == "gif" else 12)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_is_read_as_grey(mode: str) -> None:
    grey = Image.linear_gradient("L").resize((16, 16)).convert(mode)
    image = load_image(encoded(grey, "PNG"))
    assert image.mode == "RGB"
    expected = np.asarray(grey.convert("L"))
    assert all((np.asarray(image)[..., c] == expected).all() for c in range(3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    image = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
    assert (image[..., 0].ravel() == np.arange(256)).all()
    assert (image[..., 0] == image[..., 2]).all()
    older_pillows = np.array([[0, 257 * 100, 65535, 100_000, -5]], dtype=np.int32)
    image = np.asarray(load_image(encoded(Image.fromarray(older_pillows), "TIFF")))
    assert image[0, :, 0].tolist() == [0, 100, 255, 255, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 5000)])
def test_a_picture_of_one_pixel_or_a_line_reaches_the_model(size: tuple[int, int]) -> None:
    image = load_image(encoded(orange(size=size), "PNG"))
    for processor in (ImageProcessor(8), TrainImageProcessor(8, random_crop=True)):
        assert processor(image).shape == (3, 8, 8)


# Too large


@pytest.mark.parametrize("side", [9_500, 14_000, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_told_before_it_is_decoded(side: int) -> None:
    with one_line(HugeImageError, "not a readable picture", "pixels"):
        load_image(huge_png(side, side))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "(unknown format)"),
        (b"hello", "(unknown format)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "unknown"),
        (huge_png(0, 8), ""),
        (huge_png(0, 0), ""),
        (b"P6 0 5 255\n", ""),
        (COLOURED["png"]()[:50], ""),
    ],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    """No postscript file is run."""
    (tmp_path / "a.png").write_bytes(content)
    for image, name in ((content, "the image"), (tmp_path / "a.png", tmp_path / "a.png")):
        with one_line(DataError, f"{name} is not a readable picture", reason):
            load_image(image)


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    with one_line(DataError, tmp_path / "none.png", "no such file"):
        load_image(tmp_path / "none.png")
    with one_line(DataError, tmp_path):
        load_image(tmp_path)


def test_the_limit_is_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(orange(size=(5, 4)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert load_image(content).size == (5, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19)
    with one_line(HugeImageError, "5 x 4 pixels", "19"):
        load_image(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(content).size == (5, 4)


# Causes


@pytest.mark.parametrize(
    ("image", "text", "cause"),
    [
        (COLOURED["png"](), "", "empty caption"),
        (COLOURED["png"](), " \n\t", "empty caption"),
        (COLOURED["png"](), "half a \ud83d smile", "unreadable caption"),
        (COLOURED["png"]()[:50], "a text", "unreadable image"),
        (Path("nowhere.jpg"), "a text", "unreadable image"),
        (huge_png(9_500, 9_500), "a text", "huge image"),
    ],
)
def test_what_cannot_be_learnt_has_a_cause(image: bytes | Path, text: str, cause: str) -> None:
    dataset = data_set(ShardSource([], 1))
    bad = read_sample(RawSample("0.tar/a", image, text, "0.tar"), dataset, "seed")
    assert isinstance(bad, BadSample)
    assert (bad.key, bad.shard, bad.cause) == ("0.tar/a", "0.tar", cause)
    assert "\n" not in bad.reason


# Wrecks


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, with bits turned over, bytes put in or numbers made large."""
    wreck = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(wreck)) if rng.random() < 0.5 else rng.randrange(min(64, len(wreck)))
        match rng.randrange(5):
            case 0:
                wreck[at] ^= 1 << rng.randrange(8)
            case 1:
                wreck[at] = rng.choice((0, 127, 128, 255))
            case 2:
                wreck = wreck[: at + 1]
            case 3:
                wreck[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                wreck[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))
    return bytes(wreck)


def test_random_damage_gives_a_picture_or_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Damage can turn a size into millions of pixels, which take their time to read.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    kinds = [make() for make in COLOURED.values()]
    kinds += [encoded(noise, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]
    rng = random.Random(0)
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3000):
            try:
                assert load_image(damaged(rng.choice(kinds), rng)).mode == "RGB"
            except DataError as error:
                messages.append(str(error))
    assert 300 < len(messages) < 2700
    assert not any("\n" in message for message in messages)


def test_nothing_is_printed_about_what_can_be_read(tmp_path: Path) -> None:
    """Python's own warnings go to stderr, once for each picture under some filters."""
    (tmp_path / "palette.png").write_bytes(COLOURED["palette png with transparency"]())
    (tmp_path / "bomb.png").write_bytes(huge_png(10_000, 10_000))
    jpeg = COLOURED["jpeg"]()
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "exif.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    code = (
        "import sys; from pathlib import Path\n"
        "from minigpt4.datasets.samples import *\n"
        "for file in Path(sys.argv[1]).iterdir():\n"
        "    try: load_image(file)\n"
        "    except DataError: pass\n"
    )
    result = finished([sys.executable, "-W", "always::UserWarning", "-c", code, tmp_path])
    assert result.returncode == 0, result.stderr
    assert "PIL" not in result.stderr
    assert "Warning" not in result.stderr


# JPEGs by torchvision

NOISE = Image.effect_noise((64, 48), 90).convert("RGB")
JPEGS: dict[str, Callable[[], bytes]] = {
    "plain": lambda: encoded(NOISE, "JPEG", quality=90),
    "progressive": lambda: encoded(NOISE, "JPEG", progressive=True),
    "every colour in full": lambda: encoded(NOISE, "JPEG", subsampling=0),
    "kept as RGB": lambda: encoded(NOISE, "JPEG", keep_rgb=True),
    "with restarts": lambda: encoded(NOISE, "JPEG", restart_marker_blocks=4),
    "grey": lambda: encoded(NOISE.convert("L"), "JPEG"),
    "CMYK": lambda: encoded(NOISE.convert("CMYK"), "JPEG"),
    "lying on its side": lambda: encoded(NOISE, "JPEG", exif=on_its_side()),
    "two pictures in one": lambda: encoded(NOISE, "MPO", save_all=True, append_images=[NOISE]),
    "with more behind its end": lambda: encoded(NOISE, "JPEG") + bytes(range(256)),
    "with an end in its exif": lambda: encoded(NOISE, "JPEG", exif=b"Exif\0\0" + b"\xff\xd9" * 20),
}


def on_its_side() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def told_of(load: Callable[[bytes], Any], content: bytes) -> np.ndarray[Any, Any] | str:
    """Pixels ``[H, W, 3]``, or what the error says."""
    try:
        image = load(content)
    except DataError as error:
        return str(error)
    pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
    return np.asarray(pixels)


def same(content: bytes) -> bool:
    """Whether both ways of loading give the same pixels, or refuse in the same words."""
    return np.array_equal(told_of(load_image, content), told_of(load_fast, content))


@pytest.mark.parametrize("kind", [*JPEGS, *COLOURED])
def test_a_picture_is_the_same_whoever_decodes_jpegs(kind: str) -> None:
    content = (JPEGS | COLOURED)[kind]()
    assert same(content)
    if kind in JPEGS:
        decoded_by_torchvision = isinstance(load_fast(content), torch.Tensor)
        assert decoded_by_torchvision == (kind not in ("grey", "CMYK", "two pictures in one"))


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_anywhere_is_as_good_or_bad_as_pil_finds_it(kind: str) -> None:
    content = JPEGS[kind]()
    ends = (b"", b"\xff\xd9", b"\0\xff\xd9")
    cuts = [content[:size] + end for size in range(0, len(content), 5) for end in ends]
    cuts += [content[:-1], content[:-2], content[:-3]]
    if kind == "progressive":  # versions of libjpeg guess its missing details in their own ways
        told = [[told_of(load, cut) for load in (load_image, load_fast)] for cut in cuts]
        assert all(np.shape(pil) == np.shape(fast) for pil, fast in told)
        assert all(pil == fast for pil, fast in told if isinstance(pil, str))
    else:
        assert all(map(same, cuts))


def test_a_damaged_jpeg_is_as_good_or_bad_as_pil_finds_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    kinds = [make() for make in JPEGS.values()]
    rng = random.Random(0)
    wrecks = [damaged(rng.choice(kinds), rng) for _ in range(3000)]
    refused = [wreck for wreck in wrecks if isinstance(told_of(load_fast, wreck), str)]
    assert 300 < len(refused) < 2700
    assert all(map(same, wrecks))
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


@pytest.mark.parametrize("way", ["file", "bytes"])
def test_both_decoders_lead_to_the_same_sample(tmp_path: Path, way: str) -> None:
    """The resize alone is another; what cannot be read has the same cause."""
    dataset = data_set(ShardSource([], 1))
    fast = replace(dataset, image_processor=ImageProcessor(30, image_backend="torchvision"))
    usual = replace(dataset, image_processor=ImageProcessor(30))
    whole = JPEGS["plain"]()
    for content in (whole, COLOURED["png"](), b"", whole[:900], huge_jpeg()):
        (tmp_path / "a.jpg").write_bytes(content)
        image = tmp_path / "a.jpg" if way == "file" else content
        one, other = (read_sample(RawSample("a", image, "a", ""), d, "s") for d in (usual, fast))
        if isinstance(one, BadSample) or isinstance(other, BadSample):
            assert one == other
        else:
            assert one["image"].dtype == other["image"].dtype == torch.uint8
            assert (one["image"].int() - other["image"].int()).abs().max() <= 2


def huge_jpeg() -> bytes:
    """A JPEG that says it is of 10,000 x 10,000 pixels."""
    content = bytearray(JPEGS["plain"]())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (10_000).to_bytes(2, "big") * 2
    return bytes(content)


def test_without_torchvisions_decoder_pil_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deprecated there, it may be gone one day."""
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert isinstance(load_fast(JPEGS["plain"]()), Image.Image)
