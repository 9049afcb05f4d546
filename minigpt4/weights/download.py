"""Published weights: downloaded once into a cache folder, resumable, complete or absent."""

import contextlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from minigpt4.errors import CheckpointError, one_line

_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
EVA_VIT_G = _LAVIS + "eva_vit_g.pth"
BLIP2_Q_FORMER = _LAVIS + "blip2_pretrained_flant5xxl.pth"
_KNOWN_BYTES = {BLIP2_Q_FORMER: 433_481_467}
_BLOCK = 1 << 20
_STALE_LOCK_SECONDS = 120

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``MINIGPT4_CACHE``, else ``minigpt4`` under the user's cache folder."""
    if chosen := os.environ.get("MINIGPT4_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt4"


def cached(path_or_url: str) -> Path:
    """Return the local file of a path or URL, whether it exists or not."""
    if not _is_url(path_or_url):
        return Path(path_or_url)
    return cache_folder() / Path(urllib.parse.urlsplit(path_or_url).path).name


def _is_url(path_or_url: str) -> bool:
    return path_or_url.startswith(("http://", "https://"))


def fetch(path_or_url: str, timeout: float = 30.0) -> Path:
    """Return the local file of a path or URL; a URL is downloaded into the cache first."""
    return _fetch_url(path_or_url, timeout) if _is_url(path_or_url) else Path(path_or_url)


def _fetch_url(url: str, timeout: float) -> Path:
    """Download a URL to its file in the cache, unless it is there.

    A download continues where an earlier one stopped, is checked against the size that the server
    names, and gets its name only when it is whole. Of several processes on one machine the first
    downloads and the others wait.

    Raises:
        CheckpointError: when the file cannot be fetched; the line says where to put it by hand.
    """
    target = cached(url)
    source, part, lock = (target.with_name(target.name + s) for s in (".url", ".part", ".lock"))
    if target.is_file():
        if source.is_file() and source.read_text(encoding="utf-8") != url:
            raise CheckpointError(
                f"{url}: the cache has a {target.name} from another address; "
                f"delete {target} or set MINIGPT4_CACHE to another folder"
            )
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while not _take(lock):
            time.sleep(1.0)
            if target.is_file():
                return target
        try:
            if not target.is_file():
                _download(url, part, lock, timeout)
                source.write_text(url, encoding="utf-8")
                os.replace(part, target)
        finally:
            lock.unlink(missing_ok=True)
    except (OSError, ValueError, http.client.HTTPException) as error:
        size = f" ({_KNOWN_BYTES[url]:,} bytes)" if url in _KNOWN_BYTES else ""
        raise CheckpointError(
            f"{url}: cannot be fetched ({one_line(error)}); download it elsewhere{size} "
            f"and put it at {target}"
        ) from error
    return target


def _take(lock: Path) -> bool:
    """Return whether this process may download; a lock that is not touched for long is stale."""
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # its owner may have just finished
            if time.time() - lock.stat().st_mtime > _STALE_LOCK_SECONDS:
                lock.unlink(missing_ok=True)
        return False


def _download(url: str, part: Path, lock: Path, timeout: float) -> None:
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # the part is already as long as the file, or longer
            part.unlink()
            _download(url, part, lock, timeout)
            return
        raise
    with response:
        if response.status != 206:
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        logger.info("fetching %s (%s bytes)", url, total or "unknown")
        with open(part, "ab" if start else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                lock.touch()
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes arrived; run again to go on")
