"""Assembling: pairs that are kept → ``filter_cap.json`` and ``image/``, which stage 2 trains on."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from minigpt4.datasets.cc_sbu_align import ANNOTATION_FILE
from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.files import write_atomically
from minigpt4.tools.alignment.pictures import Picture

logger = logging.getLogger(__name__)


def assemble(folder: Path, captions: Mapping[str, str], pictures: Mapping[str, Picture]) -> int:
    """Write the set of captions and pictures, each by picture id; return the number of its pairs.

    Pictures come first and annotations last, so that the file is there only when all it names is.
    Whatever else lies in its ``image/`` goes.

    Raises:
        MiniGPT4Error: when the disk is full.
    """
    images, file = folder / "image", folder / ANNOTATION_FILE
    try:
        images.mkdir(exist_ok=True)
        gone = [i for i in captions if not _place(pictures[i], images)]
        annotations = [{"image_id": i, "caption": t} for i, t in captions.items() if i not in gone]
        content = json.dumps({"annotations": annotations}, ensure_ascii=False, indent=1) + "\n"
        if annotations:
            write_atomically(file, lambda opened: opened.write(content.encode()))
        else:
            file.unlink(missing_ok=True)
        wanted = {pictures[entry["image_id"]].file_name for entry in annotations}
        for name in set(os.listdir(images)) - wanted:
            os.unlink(images / name)
    except OSError as error:
        raise MiniGPT4Error(
            f"{folder}: the set cannot be written ({one_line(error)}); its texts are safe: free "
            "space, and the same command goes on"
        ) from error
    if gone:
        first = pictures[gone[0]].path
        logger.warning("%d pictures have gone since they were described: %s …", len(gone), first)
    return len(annotations)


def _place(picture: Picture, images: Path) -> bool:
    """Put a picture into the set, as a hard link where possible; return whether it is there."""
    target, source = images / picture.file_name, picture.path.resolve()
    if target.exists():
        return True
    if not source.is_file():
        return False
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file of another user
        temporary = target.with_name(f".{target.name}.writing")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    return True
