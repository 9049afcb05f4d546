"""Weight deltas: two Hugging Face folders, base and delta → their sum, one tensor at a time.

Source: FastChat v0.1.10 (``apply_delta``), which adds in fp16 and gives the base the ``[PAD]`` row
that only the delta has.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minigpt4.errors import CheckpointError, MiniGPT4Error, one_line
from minigpt4.files import lock_folder, write_atomically, write_json
from minigpt4.tools.export.weights_folder import WeightsFolder

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
_WITH_PAD_ROW = ("model.embed_tokens.weight", "lm_head.weight")
# Other types hold other numbers than LLaMA's: quantized ones, or those of a later model.
_READ_AS_FP16 = (torch.float16, torch.float32)

Shapes = dict[str, tuple[int, ...]]

logger = logging.getLogger(__name__)


def apply_delta(base_folder: Path, delta_folder: Path, target: Path) -> None:
    """Add shard by shard in ``<target>.applying``, which is renamed at the end.

    Killed and run again, it continues with the shards that are missing.
    """
    _check_places(base_folder, delta_folder, target)
    expected = _shapes_of_config(delta_folder)
    base, delta = WeightsFolder(base_folder), WeightsFolder(delta_folder)
    _check_shapes(delta, expected, "its config.json")
    _check_pair(base, delta)
    if expected.get("model.embed_tokens.weight", (0,))[0] == 32000:
        logger.warning(
            "the delta has 32000 words: that is Vicuna v1.1 or later; MiniGPT-4 was trained with "
            "v0, which has 32001 (dataset/PrepareVicuna.md)"
        )
    total_bytes = sum(2 * math.prod(shape) for shape in expected.values())
    shards: dict[str, list[str]] = {}  # files to write, with the tensors of one file of the delta
    for number, source in enumerate(delta.files, start=1):
        file = f"model-{number:05d}-of-{len(delta.files):05d}.safetensors"
        file = file if len(delta.files) > 1 else "model.safetensors"
        shards[file] = [name for name, tensor in delta.tensors.items() if tensor.file == source]
    with _work_folder(target, base, delta) as work:
        there = [work / file for file in shards if (work / file).is_file()]
        _check_space(work, total_bytes - sum(file.stat().st_size for file in there))
        for number, (file, names) in enumerate(shards.items(), start=1):
            if work / file in there:  # written whole: only then it has its name
                logger.info("shard %d of %d is there already", number, len(shards))
                continue
            _save_sum(work / file, base, delta, names)
            logger.info("shard %d of %d written", number, len(shards))
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            write_json(work / "model.safetensors.index.json", index)
        try:
            _check_shapes(WeightsFolder(work), expected, "its config.json")
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {work} and run again") from error
        _finish(work, delta_folder, target)
    logger.info("%s: %d tensors in fp16; name it in model.llama_model", target, len(expected))


def _check_places(base: Path, delta: Path, target: Path) -> None:
    """Refuse wrong folders before any weights are read."""
    for folder in (base, delta):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        if target.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"--target {target} lies in {folder}; choose another folder")
    if base.resolve() == delta.resolve():
        raise CheckpointError(f"--base and --delta are the same folder: {base}")
    for names in (["config.json"], ["tokenizer.model", "tokenizer.json"]):
        if not any((delta / name).is_file() for name in names):
            raise CheckpointError(f"{delta}: holds no {names[0]}; fetch config and tokenizer, too")
    if os.path.lexists(target):
        raise CheckpointError(
            f"--target {target} exists already and is not overwritten; remove it or choose another"
        )


def _shapes_of_config(folder: Path) -> Shapes:
    """Return the names and shapes of the language model that ``config.json`` describes."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of any kind, for a config with wrong values
        raise CheckpointError(
            f"{folder / 'config.json'}: describes no language model ({one_line(error)})"
        ) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _check_shapes(weights: WeightsFolder, expected: Shapes, whose: str) -> None:
    """Refuse a folder whose names or shapes differ from those that ``whose`` has."""
    found = weights.tensors
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and found[name].shape != expected[name]]
    if missing or surplus:
        complaints = [f"lacks {len(missing)} (first: {missing[0]})"] if missing else []
        complaints += [f"{len(surplus)} are unknown (first: {surplus[0]})"] if surplus else []
        text = f"{len(found)} tensors where {whose} has {len(expected)}: {', '.join(complaints)}"
    elif other:
        name = other[0]
        text = f"{name} is {list(found[name].shape)}, {whose} has {list(expected[name])}"
    else:
        return
    raise CheckpointError(f"{weights.folder}: {text}; take both from the same release and size")


def _check_pair(base: WeightsFolder, delta: WeightsFolder) -> None:
    """Refuse a base whose names, shapes or dtypes do not match the delta's."""
    for weights in (base, delta):
        for name, tensor in weights.tensors.items():
            if tensor.dtype not in _READ_AS_FP16:
                raise CheckpointError(
                    f"{weights.folder}: {name} is {str(tensor.dtype).removeprefix('torch.')}; "
                    "LLaMA and Vicuna v0 are fp16 (fp32 is read as fp16)"
                )
    expected = {name: tensor.shape for name, tensor in delta.tensors.items()}
    for name in set(_WITH_PAD_ROW) & expected.keys() & base.tensors.keys():
        rows, *width = expected[name]
        if base.tensors[name].shape == (rows - 1, *width):
            expected[name] = (rows - 1, *width)
    _check_shapes(base, expected, f"the delta {delta.folder}")


def _save_sum(path: Path, base: WeightsFolder, delta: WeightsFolder, names: Sequence[str]) -> None:
    """Write the sums of these tensors as a safetensors file, whole or not at all.

    The library would hold all of a shard in memory at once. A row that only the delta has is kept.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape = delta.tensors[name].shape
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of 8 bytes

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            total = delta.read(name).to(
                torch.float16, copy=True, memory_format=torch.contiguous_format
            )
            added = base.read(name).to(torch.float16)
            total[: len(added)] += added
            if not total.isfinite().all():
                raise CheckpointError(
                    f"{name}: base plus delta is not finite; fetch {base.tensors[name].file} and "
                    f"{delta.tensors[name].file} again"
                )
            file.write(total.numpy().astype("<f2", copy=False).data)

    write_atomically(path, write)


@contextlib.contextmanager
def _work_folder(target: Path, base: WeightsFolder, delta: WeightsFolder) -> Iterator[Path]:
    """Yield ``<target>.applying``, for this process alone, and always for the same files."""
    work = target.with_name(target.name + ".applying")
    stamp = work / STAMP
    sources = {str(file): file.stat().st_size for file in base.files + delta.files}
    origin = json.dumps(sources, indent=1).encode()
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(work)
    except OSError as error:
        raise MiniGPT4Error(
            f"{work}: cannot be made ({one_line(error)}); choose another --target"
        ) from error
    if lock is None:
        raise MiniGPT4Error(f"{work}: another apply-delta is writing there; wait for it")
    try:
        if all(entry.suffix == ".writing" for entry in work.iterdir()):
            write_atomically(stamp, lambda file: file.write(origin))
        if not stamp.is_file() or stamp.read_bytes() != origin:
            own = "was begun with another base or delta", "no apply-delta has begun it"
            text = own[0] if stamp.is_file() else own[1]
            raise CheckpointError(f"{work}: {text}; remove it or choose another --target")
        for leftover in work.glob(".*.writing"):  # of one that was killed
            leftover.unlink()
        yield work
    finally:
        os.close(lock)


def _check_space(work: Path, needed: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed:
        raise MiniGPT4Error(
            f"{work}: {needed / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free; "
            "free space or choose another --target"
        )


def _finish(work: Path, delta: Path, target: Path) -> None:
    """Add config and tokenizer, and rename the folder so that it survives a power cut."""
    try:
        for name in COPIED:
            if (delta / name).is_file():
                shutil.copyfile(delta / name, work / name)
        os.sync()
        os.rename(work, target)
        (target / STAMP).unlink()
        os.sync()
    except OSError as error:
        raise MiniGPT4Error(f"{target}: cannot be made from {work} ({one_line(error)})") from error
