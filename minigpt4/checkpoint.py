"""Weights on disk: ours, the original's, BLIP-2's and EVA's; reading, renaming, atomic writing.

``convert_*`` are pure functions from one set of names to another. Hugging Face folders are read by
transformers itself (``models/language_model.py``).
"""

import contextlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file

from minigpt4.errors import CheckpointError, MiniGPT4Error, one_line

Tensors = dict[str, torch.Tensor]

# Persistent buffers that the original's checkpoints also hold; nothing of ours needs them.
_SAVED_BUFFERS = re.compile(
    r"Qformer\.bert\.embeddings\.position_ids|llama_model\..*rotary_emb\.inv_freq"
)
# What EVA's and BLIP-2's files hold beside the parts that are used here.
_UNUSED_EVA = re.compile(r"blocks\.(\d+)\.|norm\.|fc_norm\.|head\.|lm_head\.|mask_token|rope\.")
_UNUSED_Q_FORMER = re.compile(  # the text branch
    r"embeddings\.(position_ids|word_embeddings|position_embeddings)|pooler\."
    r"|encoder\.layer\.\d+\.(intermediate|output)\."
)
_Q_FORMER_NAMES = (
    ("embeddings.LayerNorm.", "layernorm."),
    (".attention.self.", ".attention.attention."),
    (".crossattention.self.", ".crossattention.attention."),
)
# Our names, and those of transformers' ``Blip2ForConditionalGeneration``; the first match counts.
_BLIP2_NAMES = (
    (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.",
        r"vision_model.encoder.layers.\1.self_attn.",
    ),
    (r"visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"ln_vision\.", "vision_model.post_layernorm."),
    (r"q_former\.", "qformer."),
    (r"llama_proj\.", "language_projection."),
    (r"llama_model\.", "language_model."),
)
# Widths that tell which model a projection was trained for.
_READ_BY_PROJECTION = {768: "with Q-Former", 5632: "without Q-Former (Llama-2)"}
_LANGUAGE_MODELS = {4096: "7B", 5120: "13B"}


# A name that only one of the files holds, and where that file belongs.
_KNOWN_FILES = (
    ("llama_proj.weight", "a MiniGPT-4 projection: name it in model.ckpt"),
    ("query_tokens", "BLIP-2's Q-Former: name it in model.q_former_model"),
    ("patch_embed.proj.weight", "EVA's visual encoder: name it in model.vit_model"),
    ("model.embed_tokens.weight", "a language model: name its folder in model.llama_model"),
)


def load_weights(path: str | Path, mapped: bool = False) -> Any:
    """The content of a ``.pth``/``.bin`` or ``.safetensors`` file, on the CPU.

    Args:
        path: The file.
        mapped: Read a tensor's numbers only when they are used, as ``.safetensors`` always does;
            not possible for a file written before torch 1.6.

    Raises:
        CheckpointError: for a file that is missing, damaged, or holds more than plain weights.
    """
    path = Path(path)
    if not path.is_file():
        problem = "a folder; name the file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {problem}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than plain weights, or is damaged; "
            "fetch it again from where you trust it"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise CheckpointError(
            f"{path}: damaged or cut short ({one_line(error)}); fetch it again"
        ) from error


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` that leaves the file as it was, or whole; never half of it.

    Raises:
        MiniGPT4Error: when the disk is full or the folder cannot be written.
    """
    write_atomically(path, lambda file: torch.save(content, file))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """What ``write`` puts into a file; the file is left as it was, or whole.

    Raises:
        MiniGPT4Error: when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):  # torch wraps a full disk in the latter
            raise
        raise MiniGPT4Error(
            f"{path}: cannot be written ({one_line(error)}); "
            "free space or choose another folder (run.output_dir, --output, --target)"
        ) from error


def convert_visual_encoder(weights: Mapping[str, torch.Tensor], depth: int) -> Tensors:
    """EVA's file, or the ``visual_encoder.*`` part of the original's weights, for timm's ``Eva``.

    Names are equal; blocks from ``depth`` on and unused heads are left out.
    """
    converted = {}
    for name, value in weights.items():
        unused = _UNUSED_EVA.match(name)
        block = unused.group(1) if unused else None
        if unused and (block is None or int(block) >= depth):
            continue
        converted[name] = value
    return converted


def convert_q_former(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """``Qformer.bert.*`` of BLIP-2 or the original, for transformers' ``Blip2QFormerModel``.

    The text branch (word and position embeddings, its feed-forward) is left out.
    """
    converted = {}
    prefix = "Qformer.bert."
    for name, value in weights.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if _UNUSED_Q_FORMER.match(name):
            continue
        for theirs, ours in _Q_FORMER_NAMES:
            if theirs.startswith("."):
                name = name.replace(theirs, ours)
            elif name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        converted[name] = value
    return converted


def convert_language_model(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """The ``llama_model.*`` part of the original's weights, for transformers' LLaMA."""
    prefix = "llama_model."
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix) and not name.endswith("rotary_emb.inv_freq")
    }


def convert_to_blip2(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """All weights of our model, for transformers' ``Blip2ForConditionalGeneration``.

    Its vision attention has one bias where ours has those of q and v: k has none, zeros here.
    """
    converted = {}
    for name, value in weights.items():
        if name.endswith(".attn.v_bias"):
            continue
        if name.endswith(".attn.q_bias"):
            v_bias = weights[name.replace("q_bias", "v_bias")]
            name = name.replace("q_bias", "qkv.bias")
            value = torch.cat([value, torch.zeros_like(value), v_bias])
        for ours, theirs in _BLIP2_NAMES:
            name, found = re.subn(f"^{ours}", theirs, name)
            if found:
                break
        converted[name] = value
    return converted


def kind_of_file(content: Any) -> str:
    """What published file this looks like, as an addition to a complaint; empty if none."""
    top = content if isinstance(content, Mapping) else {}
    inner = top.get("model")
    names = {*top, *(inner if isinstance(inner, Mapping) else ())}
    found = [text for name, text in _KNOWN_FILES if name in names]
    return f"; it looks like {found[0]}" if found else ""


def load_into(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], origin: str) -> None:
    """Strictly load ``weights``; what is missing, left over or of another size is one line.

    The module takes the tensors themselves, not copies, and with them their dtype.

    Raises:
        CheckpointError: naming the file and the first entries that do not fit.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    surplus = sorted(weights.keys() - own.keys())
    sizes = [
        f"{name} is {list(weights[name].shape)}, the model wants {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints = [f"{len(missing)} missing (first: {', '.join(missing[:3])})"] if missing else []
    complaints += [f"{len(surplus)} unknown (first: {', '.join(surplus[:3])})"] if surplus else []
    complaints += sizes[:3]
    if complaints:
        raise CheckpointError(
            f"{origin}: does not fit this model: {'; '.join(complaints)}{kind_of_file(weights)}"
        )
    # assign: a module built without memory takes these tensors as they are.
    module.load_state_dict(dict(weights), assign=True)


def trained_weights(checkpoint: Any, origin: str) -> Tensors:
    """The trained parameters of a checkpoint in the original's form, its saved buffers dropped.

    A safetensors file has no ``"model"`` part: there the projection itself lies on top.

    Raises:
        CheckpointError: when there is neither.
    """
    weights = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    if isinstance(checkpoint, Mapping) and "llama_proj.weight" in checkpoint:
        weights = checkpoint
    named = isinstance(weights, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )
    if not isinstance(weights, Mapping) or not weights or not named:
        raise CheckpointError(
            f"{origin}: not a MiniGPT-4 checkpoint (no 'model' part with llama_proj.weight in it)"
            + kind_of_file(checkpoint)
        )
    return {name: value for name, value in weights.items() if not _SAVED_BUFFERS.fullmatch(name)}


def load_trained(model: torch.nn.Module, checkpoint: Any, origin: str) -> None:
    """Put a checkpoint's trained parameters into ``model``; they must be exactly its trained ones.

    Raises:
        CheckpointError: for a projection of another size, any other parameter, or NaN.
    """
    weights = trained_weights(checkpoint, origin)
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    surplus, missing = sorted(weights.keys() - own.keys()), sorted(own.keys() - weights.keys())
    if surplus or missing:
        raise CheckpointError(
            f"{origin}: holds {', '.join(surplus[:3]) or 'nothing else'}"
            f" and lacks {', '.join(missing[:3]) or 'nothing'}; the model trains {', '.join(own)}"
            + ("" if "llama_proj.weight" in weights else kind_of_file(checkpoint))
        )
    for name, value in own.items():
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{origin}: {name} is {list(weights[name].shape)}, this model wants "
                f"{list(value.shape)}: it is a projection {_made_for(weights[name].shape)}; "
                f"this model takes one {_made_for(value.shape)}"
            )
        if not weights[name].isfinite().all():
            raise CheckpointError(
                f"{origin}: {name} holds NaN or Inf: the training that wrote it had failed; "
                "take an earlier checkpoint"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def _made_for(shape: torch.Size) -> str:
    """What a projection with a weight ``[H, D]`` or bias ``[H]`` of this shape stands between."""
    if len(shape) not in (1, 2):
        return "of an unknown kind"
    size = _LANGUAGE_MODELS.get(shape[0])
    words = f"for a {size} language model" if size else "for a language model"
    words += f" ({shape[0]} wide)"
    for width in shape[1:]:
        words += f", {_READ_BY_PROJECTION.get(width, 'reading features')} ({width} wide)"
    return words
