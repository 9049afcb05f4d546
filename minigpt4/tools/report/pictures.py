"""Pictures as parts of the page: small, encoded anew, and from their own folder only."""

import base64
import io
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image

_SIDE = 256  # pixels
_QUALITY = 82


def picture_uri(folder: Path, name: object, side: int = _SIDE) -> str | None:
    """A picture as a data URI; None for one that is missing, broken or outside the folder.

    Args:
        folder: That the file says it lies in.
        name: Relative to the folder, as it was found in a file that may say anything.
        side: Of the larger side, in pixels, at most.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        return _encode(path, path.stat().st_mtime_ns, side)
    except (OSError, ValueError, RuntimeError):
        return None


@lru_cache(maxsize=1024)
def _encode(path: Path, _changed: int, side: int) -> str | None:
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(file, "WEBP", quality=_QUALITY)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError, EOFError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
