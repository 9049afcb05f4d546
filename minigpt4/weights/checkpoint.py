"""Weights on disk: ours, the original's, BLIP-2's and EVA's; reading, loading, atomic writing.

Names are converted in ``names.py``. Hugging Face folders are read by transformers itself
(``models/language_model.py``).
"""

import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from minigpt4.errors import CheckpointError, one_line
from minigpt4.files import write_atomically
from minigpt4.weights.names import (
    TRAINABLE,
    Tensors,
    convert_q_former,
    published_name,
    trained_part,
)

# Persistent buffers that the original's checkpoints also hold; nothing of ours needs them.
_SAVED_BUFFERS = re.compile(
    r"Qformer\.bert\.embeddings\.position_ids|llama_model\..*rotary_emb\.inv_freq"
)
# Why a parameter may have another size.
_SIZE_ADVICE = {
    "llama_proj": "; its widths are those of the language model (7B: 4096, 13B: 5120) and of the "
    "features (768 with Q-Former, 5632 without)",
    "lora": "; model.lora.r must be what it was trained with",
}
# A name that only one of the files holds, and where that file belongs.
_KNOWN_FILES = (
    ("llama_proj.weight", "a MiniGPT-4 projection: name it in model.ckpt"),
    ("query_tokens", "BLIP-2's Q-Former: name it in model.q_former_model"),
    ("patch_embed.proj.weight", "EVA's visual encoder: name it in model.vit_model"),
    ("model.embed_tokens.weight", "a language model: name its folder in model.llama_model"),
)

logger = logging.getLogger(__name__)


def load_weights(path: str | Path, mapped: bool = False) -> Any:
    """Return the content of a ``.pth``/``.bin`` or ``.safetensors`` file, on the CPU.

    ``mapped`` reads numbers only when they are used; for files written by torch 1.6 and later. A
    file that is missing, damaged, or holds more than plain weights is a ``CheckpointError``.
    """
    path = Path(path)
    if not path.is_file():
        problem = "a folder; name the file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {problem}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise CheckpointError(f"{path}: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    """Why a file's weights cannot be read, and what to do."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "refused: it holds more than plain weights, or is damaged; "
            "fetch it again from where you trust it"
        )
    if isinstance(error, PermissionError):
        return f"cannot be read ({error.strerror})"
    return f"damaged or cut short ({one_line(error)}); fetch it again"


def save_atomically(content: Any, path: Path) -> None:
    """Save with torch; see :func:`minigpt4.files.write_atomically`."""
    write_atomically(path, lambda file: torch.save(content, file))


def kind_of_file(content: Any) -> str:
    """What published file this looks like, as an addition to a complaint; empty if none."""
    top = content if isinstance(content, Mapping) else {}
    inner = top.get("model")
    names = {*top, *(inner if isinstance(inner, Mapping) else ())}
    found = [text for name, text in _KNOWN_FILES if name in names]
    return f"; it looks like {found[0]}" if found else ""


def load_into(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load exactly these tensors, with their dtype and without copies, or raise CheckpointError."""
    check_fit(module.state_dict(), weights, origin)
    module.load_state_dict(dict(weights), assign=True)


def check_fit(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], origin: str
) -> None:
    """Raise a CheckpointError unless ``weights`` have the names and sizes of a module's own."""
    if own.keys() != weights.keys() or any(own[n].shape != weights[n].shape for n in own):
        text = _differences(own, weights) + kind_of_file(weights)
        raise CheckpointError(f"{origin}: does not fit this model: {text}")


def _differences(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    missing = sorted(map(published_name, own.keys() - weights.keys()))
    surplus = sorted(map(published_name, weights.keys() - own.keys()))
    sizes = [
        f"{published_name(name)} is {list(weights[name].shape)}, "
        f"the model wants {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints = [f"{len(missing)} missing (first: {', '.join(missing[:3])})"] if missing else []
    complaints += [f"{len(surplus)} unknown (first: {', '.join(surplus[:3])})"] if surplus else []
    return "; ".join(complaints + sizes[:3])


def trained_weights(checkpoint: Any, origin: str) -> Tensors:
    """Return the trained parameters of a checkpoint under our names, without saved buffers.

    The original has them in a ``"model"`` part; in a safetensors file they are at the top. A
    Q-Former that the original trained has the original's names.

    Raises:
        CheckpointError: without any.
    """
    top = checkpoint if isinstance(checkpoint, Mapping) else {}
    own = top.get("model", top)
    trained = (
        {n: v for n, v in own.items() if not _is_buffer(n)} if isinstance(own, Mapping) else {}
    )
    if not trained or not all(
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and ("model" in top or trained_part(name))
        for name, value in trained.items()
    ):
        text = "not a MiniGPT-4 checkpoint (no 'model' part with llama_proj.weight in it)"
        raise CheckpointError(f"{origin}: {text}{kind_of_file(checkpoint)}")
    if any(name.startswith("Qformer.bert.encoder.") for name in trained):
        q_former = convert_q_former(trained)
        trained = {n: v for n, v in trained.items() if not n.startswith("Qformer.bert.")}
        trained |= {f"q_former.{name}": value for name, value in q_former.items()}
    return trained


def _is_buffer(name: Any) -> bool:
    return isinstance(name, str) and _SAVED_BUFFERS.fullmatch(name) is not None


def load_trained(
    model: torch.nn.Module, checkpoint: Any, origin: str, partial: bool = False
) -> None:
    """Copy a checkpoint's trained parameters into those of ``model`` that require a gradient.

    To resume, the checkpoint must hold exactly these. To start from it (``partial``), whole parts
    may be missing, which keep the weights they have; the projection may not, since it has no
    others. ``origin`` is the file, for messages.

    Raises:
        CheckpointError: for another parameter, one of another size, or NaN.
    """
    weights = trained_weights(checkpoint, origin)
    own = {
        name: value
        for name, value in model.named_parameters()
        if value.requires_grad or (partial and trained_part(name) == "llama_proj")
    }
    absent = {trained_part(n) for n in own} - {trained_part(n) for n in weights} - {"llama_proj"}
    if partial and absent:
        own = {name: value for name, value in own.items() if trained_part(name) not in absent}
    _check_names(own, weights, origin, kind_of_file(checkpoint))
    for name, value in own.items():
        given, wanted = list(weights[name].shape), list(value.shape)
        if given != wanted:
            advice = _SIZE_ADVICE.get(trained_part(name) or "", "")
            text = f"{name} is {given}, this model wants {wanted}{advice}"
            raise CheckpointError(f"{origin}: {text}")
        if not weights[name].isfinite().all():
            raise CheckpointError(
                f"{origin}: {name} holds NaN or Inf: the training that wrote it had failed; "
                "take an earlier checkpoint"
            )
    if partial and absent:
        logger.info("%s: holds no %s; that starts from the weights it has", origin, _listed(absent))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def _check_names(own: Iterable[str], weights: Iterable[str], origin: str, kind: str) -> None:
    """Refuse weights with other names than the model's own."""
    surplus, missing = sorted({*weights} - {*own}), sorted({*own} - {*weights})
    if not surplus and not missing:
        return
    advice = "" if "llama_proj.weight" in weights else kind
    untrained = {trained_part(n) for n in surplus} - {trained_part(n) for n in own}
    if untrained and None not in {trained_part(name) for name in surplus}:
        parts = {trained_part(name) for name in (*own, *weights)}
        advice = f"; set model.trainable to [{_listed(parts)}]" + advice
    elif "lora" in {trained_part(name) for name in (*surplus, *missing)} and not untrained:
        advice = "; model.lora.target_modules must be those it was trained with"
    elif "llama_proj.weight" in missing and not surplus:
        advice = f"; name the file of the projection too: model.ckpt: [projection.pth, {origin}]"
    raise CheckpointError(
        f"{origin}: holds {_first(surplus) or 'nothing else'} and lacks "
        f"{_first(missing) or 'nothing'}; the model trains {_first(own)}{advice}"
    )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _listed(parts: Iterable[str | None]) -> str:
    """Parts as ``model.trainable`` names them; the Q-Former brings its queries."""
    parts = set(parts)
    return ", ".join(
        part
        for part in TRAINABLE
        if part in parts and not (part == "query_tokens" and "q_former" in parts)
    )
