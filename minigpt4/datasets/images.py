"""Images: encoded files → RGB, by PIL or, JPEGs only, by torchvision."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from minigpt4.errors import DataError, one_line

# Formats that are opened, whatever the suffix says; PIL's EPS reader would start a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF", "ICO")


class HugeImageError(DataError):
    """An image of too many pixels: a decompression bomb."""


def load_image(image: bytes | str | Path, shown: bool = False) -> Image.Image:
    """Return an RGB image from encoded bytes or a file, the first one of an animation.

    Unless ``shown`` as in a viewer, transparency and a camera's orientation are ignored, as in
    the original's training.

    Raises:
        HugeImageError: for more pixels than PIL itself warns of; they are not decoded.
        DataError: for an image that PIL cannot read to its end.
    """
    with _opened(image) as opened:
        return as_shown(opened) if shown else _to_rgb(opened)


def load_fast(image: bytes | Path) -> Image.Image | torch.Tensor:
    """Return the same pixels as :func:`load_image`; most JPEGs as bytes ``[3, H, W]``."""
    with _opened(image) as opened:
        pixels = _decode_jpeg(opened)
        return _to_rgb(opened) if pixels is None else pixels


def _decode_jpeg(opened: ImageFile.ImageFile) -> torch.Tensor | None:
    """Return a JPEG's pixels by torchvision; None for what PIL must decode.

    Both use libjpeg, and torchvision refuses whatever PIL refuses, a truncated file too.
    """
    # Deprecated since torchvision 0.29: without it PIL decodes.
    decode = getattr(torchvision.io, "decode_jpeg", None)
    if decode is None or (opened.format, opened.mode) != ("JPEG", "RGB"):
        return None
    assert opened.fp is not None
    opened.fp.seek(0)
    content = bytearray(opened.fp.read())
    try:
        with _silent_stderr():
            pixels = decode(torch.frombuffer(content, dtype=torch.uint8), mode="RGB")
    except (RuntimeError, OSError):
        return None
    assert isinstance(pixels, torch.Tensor)
    return pixels


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop libjpeg's remarks, which it writes to the process's stderr."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _opened(image: bytes | str | Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image, check its size, and turn any error into a ``DataError``."""
    name = "the image" if isinstance(image, bytes) else str(image)
    Image.init()  # PIL knows a format only once its reader is imported
    known = [kind for kind in _FORMATS if kind in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # PIL warns of much that it reads nevertheless.
            warnings.filterwarnings("ignore", module=r"(PIL|torchvision)\b")
            source = io.BytesIO(image) if isinstance(image, bytes) else image
            with Image.open(source, formats=known) as opened:
                _check_size(opened, name)
                yield opened
    except DataError:
        raise
    except Exception as error:  # on broken bytes PIL's readers raise nearly every kind
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such file")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{name} is not a readable picture (unknown format)")
    kind = HugeImageError if isinstance(error, Image.DecompressionBombError) else DataError
    return kind(f"{name} is not a readable picture ({one_line(error)})")


def _check_size(image: Image.Image, name: str) -> None:
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    text = f"{name} is not a readable picture ({image.width} x {image.height} pixels"
    if most is not None and pixels > most:
        raise HugeImageError(f"{text}; {most:,} are the most)")
    if not pixels:
        raise DataError(f"{text})")


def as_shown(image: Image.Image) -> Image.Image:
    """Return an RGB image as a viewer shows it: upright, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Differs from the original: PIL clips 16 bits of grey, which leaves only white.
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "RGB":  # which convert would copy
        image.load()
        return image
    return image.convert("RGB")
