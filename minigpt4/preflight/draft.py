"""Draft: a config that is being checked, the model that it describes, and its weight files.

The model is built on the meta device. Of weight files only the headers are read: whether they are
whole, and whether they fit the model.
"""

import functools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from minigpt4.assembly import chosen_precision
from minigpt4.checked import CheckedConfig
from minigpt4.errors import CheckpointError, Fault
from minigpt4.models import Precision
from minigpt4.models.build import build_towers, convert_blip2
from minigpt4.models.language_model import empty_language_model
from minigpt4.models.lora import add_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.options import ModelOptions
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.models.towers import Towers
from minigpt4.registry import UnknownOptionError
from minigpt4.runners.options import RunOptions
from minigpt4.weights.checkpoint import (
    check_fit,
    kind_of_file,
    load_trained,
    load_weights,
    trained_weights,
)
from minigpt4.weights.download import cached
from minigpt4.weights.names import Tensors, trained_part

META = torch.device("meta")
# A file from before torch 1.6 cannot be mapped: it is read whole where that is quick.
_QUICK = 200_000_000
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Draft:
    """What the checks look at.

    Attributes:
        checked: The config, without its wrong options.
        device: "cuda", "cpu" or "mps"; None where that is unknown.
    """

    checked: CheckedConfig
    device: str | None

    @property
    def model(self) -> ModelOptions:
        return self.checked.model_options

    @property
    def run(self) -> RunOptions:
        return self.checked.run

    @functools.cached_property
    def towers(self) -> Towers:
        """Towers on the meta device; raises UnknownOptionError if their dimensions are unknown."""
        try:
            with META:
                return build_towers(self.model, META, self._dtype)
        except Exception as error:  # for impossible dimensions, timm and torch raise any kind
            raise UnknownOptionError from error

    @functools.cached_property
    def meta_model(self) -> MiniGPT4:
        """The model on the meta device, without a tokenizer; errors are those of ``towers``."""
        options = self.model
        if not os.path.isfile(os.path.join(options.llama_model, "config.json")):
            raise UnknownOptionError  # missing, or a hub id that is fetched later
        try:
            language_model = empty_language_model(options.llama_model, self._dtype)
            if "lora" in options.trainable:
                add_lora(language_model, options.lora)
            towers, tokenizer = self.towers, cast(Tokenizer, None)
            with META:
                width, trainable = options.features_width, options.trainable
                return MiniGPT4(towers, language_model, tokenizer, width, trainable=trainable)
        except Exception as error:  # for impossible values, transformers raises any kind
            raise UnknownOptionError from error

    @property
    def precision(self) -> tuple[str, Precision]:
        """Key and value of the option that decides the arithmetic of the frozen parts."""
        if self.checked.purpose == "chat":
            return "model.precision", self.model.precision
        return chosen_precision(self.checked)

    @property
    def _dtype(self) -> torch.dtype:
        """Arithmetic of the frozen parts; bf16 also stands for fp16, which takes as much."""
        _, precision = self.precision
        on_cpu = self.device == "cpu" and precision != "bf16"
        return torch.float32 if on_cpu or precision == "fp32" else torch.bfloat16


def language_model_faults(draft: Draft) -> Iterator[Fault]:
    """Yield what is wrong with a folder that lacks some weights, or holds half of a file."""
    folder = draft.model.llama_model
    try:
        for file in _files_of(Path(folder)) if os.path.isdir(folder) else ():
            _mapped(file)
    except CheckpointError as error:
        yield Fault("model.llama_model", str(error))


def _files_of(folder: Path) -> list[Path]:
    """The files that hold a language model's weights."""
    for name in (*_INDEXES, *_WEIGHTS):
        if (folder / name).is_file():
            return _listed_in(folder / name) if name in _INDEXES else [folder / name]
    raise CheckpointError(f"{folder} holds no weights ({' or '.join(_WEIGHTS)})")


def _listed_in(index: Path) -> list[Path]:
    folder = index.parent
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        files = sorted({str(file) for file in content["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not readable; fetch it again") from error
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} files of weights (first: "
            f"{missing[0]}); fetch them again"
        )
    return [folder / file for file in files]


def ckpt_faults(draft: Draft) -> Iterable[Fault]:
    """Return what is wrong with the files that hold a projection."""
    files = [file for file in draft.model.ckpt_files if os.path.isfile(file)]
    return _projection_faults(draft, "model.ckpt", files) if files else ()


def resumed_faults(draft: Draft) -> Iterable[Fault]:
    """Return what is wrong with the file that a training goes on from."""
    file = draft.run.resume_ckpt_path or ""
    known = os.path.isfile(file)
    return _projection_faults(draft, "run.resume_ckpt_path", [file]) if known else ()


def _projection_faults(draft: Draft, key: str, files: list[str]) -> Iterator[Fault]:
    """Compare a projection with the widths around it; a resumed run may have trained others."""
    weights: Tensors = {}
    try:
        for file in files:
            weights |= trained_weights(_mapped(file), file)
        own = {name: value for name, value in weights.items() if trained_part(name) == "llama_proj"}
        needed = key == "model.ckpt" or not any(map(trained_part, weights))
        if weights and needed and not own:
            text = f"{', '.join(files)}: holds {min(weights)} and no llama_proj.weight"
            raise CheckpointError(text + kind_of_file(weights))
        if own:
            stub = nn.Module()
            stub.llama_proj = draft.meta_model.llama_proj
            load_trained(stub, {"model": own}, ", ".join(files), partial=True)
    except CheckpointError as error:
        yield Fault(key, str(error))


def tower_faults(draft: Draft) -> Iterator[Fault]:
    """Yield what is wrong with the files of the towers."""
    tower, file, towers = draft.model.tower, draft.model.q_former_model, draft.towers.state_dict()
    encoder = "visual_encoder."
    own = {n.removeprefix(encoder): v for n, v in towers.items() if n.startswith(encoder)}
    yield from _file_faults(draft.model.tower_key("weights"), tower.weights, tower.convert, own)
    if draft.model.has_qformer:
        others = {n: v for n, v in towers.items() if not n.startswith(encoder)}
        convert = functools.partial(convert_blip2, origin=file)
        yield from _file_faults("model.q_former_model", file, convert, others)


def _file_faults(
    key: str, origin: str, convert: Callable[[Any], Tensors], wanted: Tensors
) -> Iterator[Fault]:
    """Yield what is wrong with a file of a tower: other content, or tensors of other sizes."""
    if not origin:
        yield Fault(key, "empty; name a file or URL")
    if not os.path.isfile(cached(origin)):
        return  # a URL that is fetched later, or reported already
    try:
        content = _mapped(cached(origin))
        if content is not None:
            tensors = {n: v for n, v in convert(content).items() if isinstance(v, torch.Tensor)}
            numbers = {n: v for n, v in tensors.items() if v.is_floating_point()}
            check_fit(wanted, numbers, origin)
    except CheckpointError as error:
        yield Fault(key, str(error))


def _mapped(file: str | Path) -> Any:
    """A file's content with the numbers left on the disk; None for a large one of the old form."""
    is_new = zipfile.is_zipfile(file) or str(file).endswith(".safetensors")
    if not is_new and os.path.getsize(file) > _QUICK:
        return None
    return load_weights(file, mapped=is_new)
