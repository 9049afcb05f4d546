"""Weight files: whether they can be read and fit together, from their headers alone."""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minigpt4.errors import CheckpointError, Fault
from minigpt4.models.build import convert_blip2
from minigpt4.preflight.draft import Draft
from minigpt4.weights.checkpoint import kind_of_file, load_trained, load_weights, trained_weights
from minigpt4.weights.download import cached
from minigpt4.weights.names import Tensors, published_name, trained_part

# A file from before torch 1.6 cannot be mapped: it is read whole where that is quick.
_QUICK = 200_000_000
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def language_model_faults(draft: Draft) -> Iterator[Fault]:
    """Yield what is wrong with a folder that lacks some weights, or holds half of a file."""
    folder = draft.model.llama_model
    try:
        for file in _files_of(Path(folder)) if os.path.isdir(folder) else ():
            _check_header(file)
    except CheckpointError as error:
        yield Fault("model.llama_model", str(error))


def _files_of(folder: Path) -> list[Path]:
    """The files that hold a language model's weights."""
    for name in _INDEXES:
        if (folder / name).is_file():
            return _listed_in(folder / name)
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
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


def _check_header(file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut short ({error}); fetch it again") from error
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: empty; fetch it again")


def ckpt_faults(draft: Draft) -> Iterable[Fault]:
    """Return what is wrong with the files that hold a projection."""
    files = [file for file in draft.model.ckpt_files if os.path.isfile(file)]
    return _projection_faults(draft, "model.ckpt", files) if files else ()


def resumed_faults(draft: Draft) -> Iterable[Fault]:
    """Return what is wrong with the file that a training goes on from."""
    file = draft.run.resume_ckpt_path if draft.purpose == "training" else None
    files = [file] if file is not None and os.path.isfile(file) else []
    return _projection_faults(draft, "run.resume_ckpt_path", files) if files else ()


def _projection_faults(draft: Draft, key: str, files: list[str]) -> Iterator[Fault]:
    try:
        _check_projection(draft, files, needed=key == "model.ckpt")
    except CheckpointError as error:
        yield Fault(key, str(error))


def _check_projection(draft: Draft, files: list[str], needed: bool) -> None:
    """Compare a projection with the widths around it.

    Args:
        draft: The draft.
        files: Files that hold it; a run that is resumed may have trained other parts alone.
        needed: Whether it must be there.
    """
    weights: Tensors = {}
    for file in files:
        weights |= trained_weights(_mapped(file), file)
    own = {name: value for name, value in weights.items() if trained_part(name) == "llama_proj"}
    if weights and not own and (needed or not any(map(trained_part, weights))):
        raise CheckpointError(
            f"{', '.join(files)}: holds {min(weights)} and no llama_proj.weight"
            + kind_of_file(weights)
        )
    if own:
        stub = nn.Module()
        stub.llama_proj = draft.meta_model.llama_proj
        load_trained(stub, {"model": own}, ", ".join(files), partial=True)


def tower_faults(draft: Draft) -> Iterator[Fault]:
    """Yield what is wrong with the files of the towers."""
    tower, q_former_file = draft.model.tower, draft.model.q_former_model
    shapes = {name: value.shape for name, value in draft.towers.state_dict().items()}
    prefix = "visual_encoder."
    own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    others = {n: s for n, s in shapes.items() if not n.startswith(prefix)}
    if text := _complaint(tower.weights, tower.convert, own):
        yield Fault(draft.model.tower_key("weights"), text)
    if draft.model.has_qformer:
        text = _complaint(q_former_file, lambda file: convert_blip2(file, q_former_file), others)
        if text:
            yield Fault("model.q_former_model", text)


def _complaint(
    origin: str, convert: Callable[[Any], Tensors], wanted: Mapping[str, torch.Size]
) -> str | None:
    """What is wrong with a tower's file that holds something else, or tensors of other sizes."""
    if origin == "":
        return "empty; name a file or URL"
    file = cached(origin)
    if not os.path.isfile(file):
        return None  # a URL that is fetched later, or reported already
    try:
        content = _mapped(file)
        converted = None if content is None else convert(content)
    except CheckpointError as error:
        return str(error)
    return None if converted is None else _difference(origin, converted, wanted)


def _difference(origin: str, converted: Tensors, wanted: Mapping[str, torch.Size]) -> str | None:
    found = {name: getattr(converted.get(name), "shape", None) for name in wanted}
    differing = [name for name, shape in wanted.items() if found[name] != shape]
    if not differing:
        return None
    name = max(differing, key=lambda name: len(wanted[name]))  # matrices say more than biases
    there = list(found[name] or ()) if name in converted else "not there"
    return f"{origin}: {published_name(name)} is {there}, the model wants {list(wanted[name])}"


def _mapped(file: str | Path) -> Any:
    """A file's content with the numbers left on the disk; None for a large one of the old form."""
    is_new = zipfile.is_zipfile(file) or str(file).endswith(".safetensors")
    if not is_new and os.path.getsize(file) > _QUICK:
        return None
    return load_weights(file, mapped=is_new)
