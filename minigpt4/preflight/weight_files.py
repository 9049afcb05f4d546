"""Weight files: whether they can be read and fit together, from their headers alone."""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minigpt4.errors import CheckpointError
from minigpt4.preflight.meta_model import meta_model, meta_towers
from minigpt4.preflight.plan import Plan
from minigpt4.registry import Fault
from minigpt4.weights.checkpoint import kind_of_file, load_trained, load_weights, trained_weights
from minigpt4.weights.download import cached
from minigpt4.weights.names import published_name, trained_part

# A file from before torch 1.6 cannot be mapped: it is read whole where that is quick.
_QUICK = 200_000_000
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def weight_faults(plan: Plan) -> list[Fault]:
    """Files that are damaged, hold something else, or are of another size than the model."""
    return [
        *_language_model_faults(plan),
        *_projection_faults(plan),
        *_tower_faults(plan),
    ]


def _language_model_faults(plan: Plan) -> list[Fault]:
    """A folder that lacks its weights or some of their parts, or holds half of one."""
    folder = plan.model.get("llama_model")
    if not isinstance(folder, str) or not os.path.isdir(folder):
        return []
    try:
        for file in _files_of(Path(folder)):
            _check_header(file)
    except CheckpointError as error:
        return [Fault("model.llama_model", str(error))]
    return []


def _files_of(folder: Path) -> list[Path]:
    """The files that hold a language model's weights."""
    for name in _INDEXES:
        if not (folder / name).is_file():
            continue
        try:
            index = json.loads((folder / name).read_text(encoding="utf-8"))
            files = sorted({str(file) for file in index["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / name} is not readable; fetch it again") from error
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} files of weights (first: "
                f"{missing[0]}); fetch them again"
            )
        return [folder / file for file in files]
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder} holds no weights ({' or '.join(_WEIGHTS)})")
    return found[:1]


def _check_header(file: Path) -> None:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                return
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: damaged or cut short ({error}); fetch it again"
            ) from error
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: empty; fetch it again")


def _projection_faults(plan: Plan) -> list[Fault]:
    """``model.ckpt`` and the run to go on with, held against the widths around the projection."""
    faults = []
    ckpt, resumed = plan.model.get("ckpt"), plan.run.get("resume_ckpt_path")
    files = {"model.ckpt": [ckpt] if isinstance(ckpt, str) else list(ckpt or ())}
    if plan.purpose == "training" and isinstance(resumed, str):
        files["run.resume_ckpt_path"] = [resumed]
    for key, names in files.items():
        try:
            _check_projection(plan, key, [name for name in names if os.path.isfile(name)])
        except CheckpointError as error:
            faults.append(Fault(key, str(error)))
    return faults


def _check_projection(plan: Plan, key: str, files: list[str]) -> None:
    model = meta_model(plan)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= trained_weights(_mapped(file), file)
    own = {name: value for name, value in weights.items() if trained_part(name) == "llama_proj"}
    # What a run goes on with may be a part that was trained without the projection.
    if weights and not own and (key == "model.ckpt" or not any(map(trained_part, weights))):
        raise CheckpointError(
            f"{', '.join(files)}: holds {min(weights)} and no llama_proj.weight"
            + kind_of_file(weights)
        )
    if own and model is not None:
        stub = nn.Module()
        stub.llama_proj = model.llama_proj
        load_trained(stub, {"model": own}, ", ".join(files), partial=True)


def _tower_faults(plan: Plan) -> list[Fault]:
    model, towers = plan.model, meta_towers(plan)
    weights = {} if towers is None else towers.state_dict()
    weights.pop("visual_encoder.pos_embed", None)  # it is resized when it is loaded
    eva: dict[str, torch.Size] = {}
    blip2: dict[str, torch.Size] = {}
    for name, value in weights.items():
        file = eva if name.startswith("visual_encoder.") else blip2
        file[published_name(name)] = value.shape
    text = _complaint(model.get("vit_model"), "pos_embed", "a visual encoder", eva)
    faults = [Fault("model.vit_model", text)] if text else []
    if model.get("has_qformer") is True:
        text = _complaint(model.get("q_former_model"), "query_tokens", "a BLIP-2 Q-Former", blip2)
        faults += [Fault("model.q_former_model", text)] if text else []
    return faults


def _complaint(
    origin: object, mark: str, kind: str, wanted: Mapping[str, torch.Size]
) -> str | None:
    """Complaint about a tower's file without its mark, or with tensors of other sizes."""
    if origin == "":
        return "empty; name a file or URL"
    file = cached(origin) if isinstance(origin, str) else None
    if file is None or not os.path.isfile(file):
        return None  # a URL that is fetched later, or told already
    try:
        content = _mapped(file)
    except CheckpointError as error:
        return str(error)
    if content is None:
        return None
    inner = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(inner, Mapping) or mark not in inner:
        return f"{origin}: not {kind} (no {mark} in it){kind_of_file(content)}"
    found = {name: getattr(inner.get(name), "shape", None) for name in wanted}
    differing = [name for name, shape in wanted.items() if found[name] != shape]
    if not differing:
        return None
    name = max(differing, key=lambda name: len(wanted[name]))  # matrices say more than biases
    there = list(found[name] or ()) if name in inner else "not there"
    return f"{origin}: {name} is {there}, the model wants {list(wanted[name])}"


def _mapped(file: str | Path) -> Any:
    """A file's content with the numbers left on the disk; None for a large one of the old form."""
    is_new = zipfile.is_zipfile(file) or str(file).endswith(".safetensors")
    if not is_new and os.path.getsize(file) > _QUICK:
        return None
    return load_weights(file, mapped=is_new)
