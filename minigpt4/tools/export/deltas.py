"""Weight deltas: two Hugging Face folders, base and delta → their sum, one tensor at a time.

Vicuna v0 was published as what has to be added to LLaMA. Source: FastChat v0.1.10 (``apply_delta``)
adds in fp16 and gives the base the ``[PAD]`` row that only the delta has.
"""

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minigpt4.errors import CheckpointError, one_line
from minigpt4.files import write_atomically
from minigpt4.weights.checkpoint import load_weights
from minigpt4.weights.names import Tensors

# Buffers that old versions of transformers saved; they follow from the config.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
_WITH_PAD_ROW = ("model.embed_tokens.weight", "lm_head.weight")
# Other types hold other numbers than LLaMA's: quantized ones, or those of a later model.
_READ_AS_FP16 = (torch.float16, torch.float32)


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightsFolder:
    """The tensors of a Hugging Face folder: safetensors or ``.bin``, one file or shards.

    Raises:
        CheckpointError: for a file that is missing, damaged or holds more than plain weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: tuple[Path | None, Tensors] = (None, {})
        files, listed = _weight_files(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, value in self._open(file).items():
                if not _COMPUTED.search(name):
                    self.tensors[name] = StoredTensor(file, tuple(value.shape), value.dtype)
        lacking = [n for n in listed if n not in self.tensors and not _COMPUTED.search(n)]
        if lacking:
            raise CheckpointError(
                f"{folder}: the index lists {lacking[0]}, no shard holds it; fetch the folder again"
            )

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        files = {tensor.file for tensor in self.tensors.values()}
        return {file.name: file.stat().st_size for file in sorted(files)}

    def shards(self) -> list[list[str]]:
        """Names of the tensors, file by file."""
        names: dict[Path, list[str]] = {}
        for name, tensor in self.tensors.items():
            names.setdefault(tensor.file, []).append(name)
        return list(names.values())

    def read(self, name: str) -> torch.Tensor:
        """A tensor; its file is not kept open, or what was read of it would stay in memory."""
        return self._open(self.tensors[name].file)[name].detach()

    def _open(self, file: Path) -> Tensors:
        """The tensors of a file, their numbers still on disk.

        A ``.bin`` of before torch 1.6 can only be read whole; the last of these is kept.
        """
        if _can_be_mapped(file):
            return _named_tensors(file, load_weights(file, mapped=True))
        if self._held[0] != file:
            self._held = (None, {})  # first let go of the other
            self._held = (file, _named_tensors(file, load_weights(file)))
        return self._held[1]


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files with the weights of a folder, and the tensors that its index lists.

    Of several forms the first counts, in the order of transformers.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single], []
        if index.is_file():
            return _read_index(index)
        if any(folder.glob(single.replace(".", "-*-of-*."))):
            raise CheckpointError(f"{folder}: has shards but no {index.name}; fetch it too")
    raise CheckpointError(
        f"{folder}: holds no weights (model.safetensors or pytorch_model.bin, or shards and their "
        "index); Meta's own files must be converted to a Hugging Face folder first"
    )


def _read_index(index: Path) -> tuple[list[Path], list[str]]:
    try:
        files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
        plain = all(Path(shard).name == shard for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shards, plain = [], False
    if not shards or not plain:
        raise CheckpointError(f"{index}: not an index of shards beside it; fetch it again")
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index.parent / shard}: missing, but {index.name} names it")
    return [index.parent / shard for shard in shards], list(files)


def _can_be_mapped(file: Path) -> bool:
    with open(file, "rb") as start:
        return file.suffix == ".safetensors" or start.read(4) == b"PK\x03\x04"


def _named_tensors(file: Path, content: object) -> Tensors:
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file}: holds something else than tensors with names")
    return dict(content)


def shapes_of_config(folder: Path) -> Shapes:
    """Names and shapes of the language model that a folder's ``config.json`` describes."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a config with wrong values makes a model do
        raise CheckpointError(
            f"{folder / 'config.json'}: describes no language model ({one_line(error)})"
        ) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_shapes(weights: WeightsFolder, expected: Shapes, whose: str) -> None:
    """Hold names and shapes of a folder against those that ``whose`` has.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or of another shape.
    """
    found = weights.tensors
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    complaints = [f"lacks {len(missing)} (first: {missing[0]})"] if missing else []
    complaints += [f"{len(surplus)} are unknown (first: {surplus[0]})"] if surplus else []
    if complaints:
        raise CheckpointError(
            f"{weights.folder}: {len(found)} tensors where {whose} has {len(expected)}: "
            f"{', '.join(complaints)}; take both from the same release and size"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{weights.folder}: {name} is {list(found[name].shape)}, {whose} has "
                f"{list(shape)}; take both from the same release and size"
            )


def check_pair(base: WeightsFolder, delta: WeightsFolder) -> None:
    """Refuse a base that this delta was not made from, as far as names, shapes and dtypes tell.

    Raises:
        CheckpointError: naming the first tensor that does not fit.
    """
    for weights in (base, delta):
        for name, tensor in weights.tensors.items():
            if tensor.dtype not in _READ_AS_FP16:
                raise CheckpointError(
                    f"{weights.folder}: {name} is {str(tensor.dtype).removeprefix('torch.')}; "
                    "LLaMA and Vicuna v0 are fp16 (fp32 is read as fp16)"
                )
    expected: Shapes = {}
    for name, tensor in delta.tensors.items():
        expected[name] = tensor.shape
        if name in _WITH_PAD_ROW and name in base.tensors:
            rows, width = tensor.shape
            if base.tensors[name].shape == (rows - 1, width):
                expected[name] = (rows - 1, width)
    check_shapes(base, expected, f"the delta {delta.folder}")


def add_delta(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Base plus delta in fp16; a row that only the delta has stays as it is.

    Nothing is counted from the end: FastChat's ``[-n:] = 0``, with no row to add, is every row.
    """
    total = delta.to(torch.float16, copy=True, memory_format=torch.contiguous_format)
    total[: len(base)] += base.to(torch.float16)
    return total


def save_sum(path: Path, base: WeightsFolder, delta: WeightsFolder, names: Sequence[str]) -> None:
    """Write the sums of these tensors as a safetensors file, whole or not at all.

    Written here and not by the library, which wants all of a shard in memory at once.

    Raises:
        MiniGPT4Error: when the disk is full, or a sum is beyond fp16.
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
            total = add_delta(base.read(name), delta.read(name))
            if not total.isfinite().all():
                raise CheckpointError(
                    f"{name}: base plus delta is not finite; fetch {base.tensors[name].file} and "
                    f"{delta.tensors[name].file} again"
                )
            file.write(total.numpy().astype("<f2", copy=False).data)

    write_atomically(path, write)


def check_result(folder: Path, expected: Shapes) -> None:
    """Read back what was written, by the library this time: counts, shapes, dtypes.

    Raises:
        CheckpointError: when the folder does not hold exactly these tensors in fp16.
    """
    try:
        written = WeightsFolder(folder)
        check_shapes(written, expected, "its config.json")
        if any(tensor.dtype != torch.float16 for tensor in written.tensors.values()):
            raise CheckpointError(f"{folder}: not all of it is fp16")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove {folder} and run again") from error
