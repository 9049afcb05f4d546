"""Add the published Vicuna v0 delta to LLaMA: the folder that model.llama_model names."""

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.errors import CheckpointError, MiniGPT4Error, one_line
from minigpt4.files import lock_folder

STAMP = "applying.json"
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``apply-delta``."""
    parser.add_argument("--base", type=Path, required=True, help="LLaMA as a Hugging Face folder")
    parser.add_argument("--delta", type=Path, required=True, help="folder of the Vicuna v0 delta")
    parser.add_argument("--target", type=Path, required=True, help="folder to make")


def run(arguments: argparse.Namespace) -> None:
    """Add shard by shard in ``<target>.applying``, which is renamed when all of it is there.

    Killed and run again, it goes on with the shards that are missing.
    """
    base_folder, delta_folder, target = (
        folder.absolute() for folder in (arguments.base, arguments.delta, arguments.target)
    )
    _check_places(base_folder, delta_folder, target)
    from minigpt4.tools.export.deltas import (
        WeightsFolder,
        check_pair,
        check_result,
        check_shapes,
        save_sum,
        shapes_of_config,
    )

    expected = shapes_of_config(delta_folder)
    base, delta = WeightsFolder(base_folder), WeightsFolder(delta_folder)
    check_shapes(delta, expected, "its config.json")
    check_pair(base, delta)
    _remark_on_version(expected)
    total_bytes = sum(2 * math.prod(shape) for shape in expected.values())
    shards = dict(zip(_shard_names(len(delta.shards())), delta.shards(), strict=True))
    origin = {
        "base": {"folder": str(base_folder), "files": base.sizes()},
        "delta": {"folder": str(delta_folder), "files": delta.sizes()},
    }
    with _work_folder(target) as work:
        finished = _finished_shards(work, origin)
        _check_space(work, total_bytes - sum(finished.values()))
        for number, (file, names) in enumerate(shards.items(), start=1):
            if file in finished:
                logger.info("shard %d of %d is there already", number, len(shards))
                continue
            save_sum(work / file, base, delta, names)
            finished[file] = (work / file).stat().st_size
            _write_json(work / STAMP, {**origin, "shards": finished})
            logger.info("shard %d of %d written", number, len(shards))
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            _write_json(work / "model.safetensors.index.json", index)
        _copy_config_and_tokenizer(delta_folder, work)
        check_result(work, expected)
        _finish(work, target)
    logger.info("%s: %d tensors in fp16; name it in model.llama_model", target, len(expected))


def _check_places(base: Path, delta: Path, target: Path) -> None:
    """Refuse folders that cannot be what they are given as, before any weights are read."""
    for folder in (base, delta):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder}: holds no config.json; Meta's own files must be converted to a Hugging "
                "Face folder first"
            )
        if target.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"--target {target} lies in {folder}; choose another folder")
    if base.resolve() == delta.resolve():
        raise CheckpointError(f"--base and --delta are the same folder: {base}")
    if not any((delta / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise CheckpointError(f"{delta}: holds no tokenizer.model; fetch the tokenizer's files too")
    if os.path.lexists(target):
        raise CheckpointError(
            f"--target {target} exists already and is not overwritten; remove it or choose another"
        )


def _remark_on_version(shapes: dict[str, tuple[int, ...]]) -> None:
    if shapes.get("model.embed_tokens.weight", (0,))[0] == 32000:
        logger.warning(
            "the delta has 32000 words: that is Vicuna v1.1 or later; MiniGPT-4 was trained with "
            "v0, which has 32001 (dataset/PrepareVicuna.md)"
        )


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


@contextlib.contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """``<target>.applying``, for this process alone."""
    work = target.with_name(target.name + ".applying")
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = lock_folder(work)
    except OSError as error:
        raise MiniGPT4Error(
            f"{work}: cannot be made ({one_line(error)}); choose another --target"
        ) from error
    if handle is None:
        raise MiniGPT4Error(f"{work}: another apply-delta is writing there; wait for it")
    try:
        yield work
    finally:
        os.close(handle)


def _finished_shards(work: Path, origin: dict[str, Any]) -> dict[str, int]:
    """Shards that an earlier run of the same base and delta has finished, with their bytes.

    What it was writing when it was killed is removed.

    Raises:
        CheckpointError: for a folder that such a run has not made.
    """
    stamp = work / STAMP
    if all(entry.name == f".{STAMP}.writing" for entry in work.iterdir()):
        _write_json(stamp, {**origin, "shards": {}})
    try:
        begun = json.loads(stamp.read_text(encoding="utf-8"))
        shards = {work / file: int(size) for file, size in begun.pop("shards").items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{work}: no apply-delta has begun it; remove it or choose another --target"
        ) from error
    if begun != origin:
        raise CheckpointError(
            f"{work}: was begun with another base or delta; remove it or choose another --target"
        )
    for leftover in work.glob(".*.writing"):
        leftover.unlink()
    return {
        file.name: size
        for file, size in shards.items()
        if file.is_file() and file.stat().st_size == size
    }


def _check_space(work: Path, needed: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed:
        raise MiniGPT4Error(
            f"{work}: {needed / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free; "
            "free space or choose another --target"
        )


def _copy_config_and_tokenizer(delta: Path, work: Path) -> None:
    for name in COPIED:
        if (delta / name).is_file():
            _write(work / name, (delta / name).read_bytes())


def _finish(work: Path, target: Path) -> None:
    """Give the whole folder its name, in one step that outlives a power cut."""
    try:
        _sync(work)
        os.rename(work, target)
        (target / STAMP).unlink()
        _sync(target.parent)
    except OSError as error:
        raise MiniGPT4Error(f"{target}: cannot be made from {work} ({one_line(error)})") from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    from minigpt4.files import write_atomically

    write_atomically(path, lambda file: file.write(content))
