"""Scenes on disk in the formats of full-size data.

``laion/`` and ``cc_sbu/`` are shards as img2dataset writes them; ``cc_sbu_align/`` and the held-out
splits are ``filter_cap.json`` with ``image/``, the latter with ``scenes.json``, the facts that
answers are scored against. ``validation/`` holds the first scenes of ``heldout_seen/`` for both
stages.
"""

import dataclasses
import hashlib
import io
import json
import logging
import random
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.tools.tiny_world.phrases import caption, description
from minigpt4.tools.tiny_world.scenes import Scene, Thing, draw_scene, sample_scene

VALIDATION = "validation"
HELDOUT_SPLITS = {"heldout_seen": "seen", "heldout_withheld": "withheld"}  # folder → pairs
_SHARD_SIZE = 250
_VALIDATED = 100  # scenes in validation/
_CC_SBU_SHARE = 5  # one pair in five lies in cc_sbu, the others in laion

logger = logging.getLogger(__name__)


def write_data_sets(
    output: Path,
    seed: int,
    pairs: int = 5000,
    descriptions: int = 500,
    heldout: int = 300,
    shuffle_captions: bool = False,
) -> None:
    """Draw and write everything, unless the folder was written whole with the same arguments."""
    made_with = {
        "seed": seed,
        "pairs": pairs,
        "descriptions": descriptions,
        "heldout": heldout,
        "shuffle_captions": shuffle_captions,
        "validation": min(heldout, _VALIDATED),
    }
    stamp = output / "made_with.json"
    if stamp.is_file() and stamp.read_text() == json.dumps(made_with):
        logger.info("scenes are there already: %s", output)
        return
    try:
        for part in ("laion", "cc_sbu", "cc_sbu_align", VALIDATION, *HELDOUT_SPLITS):
            shutil.rmtree(output / part, ignore_errors=True)
        rng = random.Random(f"{seed}/stage1")
        scenes = [sample_scene(rng, pairs="seen") for _ in range(pairs)]
        captions = [caption(scene) for scene in scenes]
        if shuffle_captions:
            captions = captions[1:] + captions[:1]
        small = pairs // _CC_SBU_SHARE
        _write_shards(output / "cc_sbu", scenes[:small], captions[:small])
        _write_shards(output / "laion", scenes[small:], captions[small:])
        rng = random.Random(f"{seed}/stage2")
        _write_folder(
            output / "cc_sbu_align", [sample_scene(rng, pairs="seen") for _ in range(descriptions)]
        )
        for split, kind in HELDOUT_SPLITS.items():
            rng = random.Random(f"{seed}/{split}")
            scenes = [sample_scene(rng, count=1 + i % 3, pairs=kind) for i in range(heldout)]
            _write_folder(output / split, scenes)
            facts = [dataclasses.asdict(scene) for scene in scenes]
            (output / split / "scenes.json").write_text(json.dumps(facts))
            if kind == "seen" and scenes:
                first, folder = scenes[:_VALIDATED], output / VALIDATION
                _write_shards(folder / "captions", first, [caption(scene) for scene in first])
                _write_folder(folder / "descriptions", first)
        stamp.write_text(json.dumps(made_with))
    except OSError as error:
        raise MiniGPT4Error(f"{output}: cannot be written ({error})") from error
    text = "scenes drawn into %s: %d pairs in shards, %d descriptions, %d held out in each of %s"
    logger.info(text, output, pairs, descriptions, heldout, " and ".join(HELDOUT_SPLITS))


def read_heldout(folder: Path) -> list[tuple[Scene, Path]]:
    """Return the scenes of a held-out split with their picture files."""
    try:
        facts = json.loads((folder / "scenes.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no held-out split ({error}); run make-scenes") from error
    scenes = [
        Scene(tuple(Thing(**thing) for thing in fact.pop("things")), **fact) for fact in facts
    ]
    return [(scene, folder / "image" / f"{index}.jpg") for index, scene in enumerate(scenes)]


def _encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _write_shards(folder: Path, scenes: Sequence[Scene], captions: Sequence[str]) -> None:
    """Write tars of jpg, json and txt, with ``_stats.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, len(scenes), _SHARD_SIZE)):
        part = list(zip(scenes, captions, strict=True))[first : first + _SHARD_SIZE]
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index, (scene, text) in enumerate(part):
                _add_sample(tar, f"{shard:05d}{index:04d}", draw_scene(scene), text)
        stats = {"count": len(part), "successes": len(part), "failed_to_download": 0}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))


def _add_sample(tar: tarfile.TarFile, key: str, picture: Image.Image, text: str) -> None:
    pixels = _encode(picture)
    fields = {
        "url": f"scene://{key}",
        "caption": text,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": picture.width,
        "height": picture.height,
        "original_width": picture.width,
        "original_height": picture.height,
        "exif": "{}",
        "sha256": hashlib.sha256(pixels).hexdigest(),
    }
    files = {"jpg": pixels, "json": json.dumps(fields).encode(), "txt": text.encode()}
    for suffix, content in files.items():
        entry = tarfile.TarInfo(f"{key}.{suffix}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def _write_folder(folder: Path, scenes: Sequence[Scene]) -> None:
    (folder / "image").mkdir(parents=True, exist_ok=True)
    annotations = []
    for index, scene in enumerate(scenes):
        (folder / "image" / f"{index}.jpg").write_bytes(_encode(draw_scene(scene)))
        annotations.append({"image_id": str(index), "caption": description(scene)})
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}, indent=0))
