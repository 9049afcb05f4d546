"""Quantisation: the frozen language model's weights in 8 or 4 bits, by bitsandbytes (optional).

Only its linear layers' weights are; embeddings, norms, the head and all that is trained are not.
"""

import importlib.util
import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from minigpt4.errors import ConfigError, one_line
from minigpt4.models import Quantize

_BLOCK = 64  # numbers of NF4 that share a scale
_INSTALL = "pip install -e '.[quantize]'"

logger = logging.getLogger(__name__)


def silence() -> None:
    """Keep bitsandbytes from warning of each product's inputs, and of kernels that nobody needs."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def lack(device: torch.device | None = None) -> str | None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return f"needs bitsandbytes, which is not installed; {_INSTALL}"
    if device is not None and device.type not in ("cuda", "cpu"):
        return f"needs a CUDA GPU or a CPU, not {device.type}"
    silence()
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # a build for another machine
        return f"needs bitsandbytes, which does not load here ({one_line(error)}); {_INSTALL}"
    return None


def choose_quantization(kind: Quantize, low_resource: bool, device: torch.device) -> Quantize:
    """How to quantise on a device; the original's ``low_resource`` is int8 where it can be had.

    Raises:
        ConfigError: for what is asked for by name and cannot be had.
    """
    if device.type == "meta" or (kind == "none" and not low_resource):
        return "none"
    lacking = lack(device)
    if lacking is None:
        return "int8" if kind == "none" else kind
    if kind != "none":
        raise ConfigError(f"model.quantize: {kind} {lacking}")
    logger.warning("model.low_resource: int8 %s; full precision is used", lacking)
    return "none"


def quantization_config(kind: Quantize, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers needs to load quantised weights, computing in ``dtype``."""
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def check_quantized(language_model: nn.Module, kind: Quantize, device: torch.device) -> None:
    """Refuse what bitsandbytes 0.50 computes wrongly: on a CPU, 4-bit blocks across two rows.

    Raises:
        ConfigError: for layers of such a width.
    """
    if kind != "nf4" or device.type != "cpu":
        return
    widths = {
        layer.in_features
        for layer in quantized_layers(language_model)
        if isinstance(layer, nn.Linear) and layer.in_features % _BLOCK
    }
    if widths:
        raise ConfigError(
            f"model.quantize: nf4 on a CPU needs layers whose widths are multiples of {_BLOCK}, "
            f"this language model has {', '.join(map(str, sorted(widths)))}; use int8 or none"
        )


def quantized_layers(language_model: nn.Module) -> Iterator[nn.Module]:
    """The layers that must be in training mode, also to evaluate: it only chooses the arithmetic.

    On a CPU it is that of the full-precision input and the dequantised weights, whose gradient is
    exact. In eval mode, 8-bit layers round their inputs too, and 4-bit layers repack their weights
    into a form without gradient, at widths that are multiples of 64 only.
    """
    for module in language_model.modules():
        if type(module).__module__.startswith("bitsandbytes."):
            yield module
