"""Builder of the model: its options → loaded, frozen parts and an untrained projection."""

import logging
from typing import Annotated, Any

import torch
from accelerate import init_empty_weights
from torch import nn

from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.language_model import (
    check_vocabulary,
    empty_language_model,
    load_language_model,
)
from minigpt4.models.lora import add_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.options import ModelOptions, Precision, TowerOptions
from minigpt4.models.tokenizer import load_tokenizer
from minigpt4.models.towers import Towers, build_q_former, cast_to_half
from minigpt4.registry import MODELS, Hidden, Section
from minigpt4.weights.checkpoint import (
    kind_of_file,
    load_into,
    load_trained,
    load_weights,
    trained_weights,
)
from minigpt4.weights.download import fetch
from minigpt4.weights.names import Tensors, convert_q_former

logger = logging.getLogger(__name__)


def choose_dtype(
    precision: Precision, device: torch.device, key: str = "model.precision"
) -> torch.dtype:
    """Return the arithmetic of the frozen parts: fp32 on a CPU; on a GPU bf16, else fp16.

    Raises:
        ConfigError: naming the ``key`` that asked for a precision the device does not have.
    """
    if precision == "auto":
        if device.type == "cpu":
            return torch.float32
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu" and precision == "fp16":
        raise ConfigError(f"{key}: fp16 needs a GPU; use auto, fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


@MODELS.register("minigpt4")
@MODELS.register("mini_gpt4")
def build_minigpt4(
    options: Annotated[ModelOptions, Section],
    device: Annotated[torch.device, Hidden],
    dtype: Annotated[torch.dtype | None, Hidden] = None,
    stay_on_cpu: Annotated[bool, Hidden] = False,
    from_features: Annotated[bool, Hidden] = False,
) -> MiniGPT4:
    """Build the model with its weights loaded, on ``device``.

    On the device ``meta`` it is built without memory: names, shapes and dtypes, no weights. Then
    only the language model's ``config.json`` and tokenizer are read.

    Args:
        options: The model section.
        device: Where it runs.
        dtype: Arithmetic of the frozen parts; that of ``options.precision`` without.
        stay_on_cpu: Leave the weights there; sharding moves them to ``device`` bit by bit.
        from_features: Its images come as cached features: the towers are not loaded.

    Raises:
        MiniGPT4Error: for weights that are missing or do not fit together.
    """
    empty = device.type == "meta"
    dtype = dtype or choose_dtype(options.precision, device)
    _check_trainable(options, empty)
    quantized = options.quantize
    if quantized != "none" or options.low_resource:
        from minigpt4.models.speed.quantization import choose_quantization

        quantized = choose_quantization(quantized, options.low_resource, device)
    towers = (
        Towers(None, None, None, None, dtype)
        if from_features
        else build_towers(options, device, dtype)
    )
    tokenizer = load_tokenizer(options.llama_model, options.bos)
    if empty:
        language_model = empty_language_model(options.llama_model, dtype)
    else:
        logger.info("loading the language model: %s", options.llama_model)
        language_model = load_language_model(
            options.llama_model, dtype, quantized, device, options.device_map
        )
    check_vocabulary(language_model, tokenizer, options.llama_model)
    if "lora" in options.trainable:
        add_lora(language_model, options.lora)
    model = MiniGPT4(
        towers,
        language_model,
        tokenizer,
        prompts=options.load_prompts(),
        max_txt_len=options.max_txt_len,
        end_sym=options.end_sym,
        trainable=options.trainable,
        features_width=options.features_width,
    )
    _load_ckpt(model, options.ckpt_files)
    if options.device_map == "auto" and not empty:
        from minigpt4.models.speed.device_map import move_around

        move_around(model, language_model, device)
        return model
    return model if stay_on_cpu else model.to(device)


def _check_trainable(options: ModelOptions, empty: bool) -> None:
    if not options.has_qformer and {"q_former", "query_tokens"} & {*options.trainable}:
        raise ConfigError("model.trainable: model.has_qformer is False: there is none to train")
    if "llama_proj" not in options.trainable and not options.ckpt and not empty:
        raise ConfigError("model.trainable: llama_proj is left out, and model.ckpt names none")


def build_towers(options: TowerOptions, device: torch.device, dtype: torch.dtype) -> Towers:
    """Build the towers with their weights loaded, still on the CPU.

    Args:
        options: Of the model section.
        device: Where they will run; on ``meta`` no weights are read.
        dtype: Arithmetic.

    Raises:
        MiniGPT4Error: for weights that are missing or do not fit together.
    """
    if dtype == torch.float32 and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default, for convolutions only
    for fault in options.errors():
        raise ConfigError(f"{fault.key}: {fault.text}")
    tower, empty = options.tower, device.type == "meta"
    with init_empty_weights(include_buffers=False):
        encoder = tower.build()
        former = build_q_former(tower.width, options.q_former) if options.has_qformer else None
    if not empty:
        logger.info("loading the visual encoder: %s", tower.weights)
        weights = tower.convert(load_weights(fetch(tower.weights)))
        load_into(encoder, _in_fp32(weights), tower.weights)
    if options.vit_precision == "fp16":
        cast_to_half(encoder, dtype)
    # torch's default eps, unlike the encoder's 1e-6. Without a Q-Former the original reads nothing
    # from BLIP-2's file: ln_vision stays as made.
    ln_vision = nn.LayerNorm(tower.width)
    queries = None
    if former is not None:
        queries = torch.empty(
            1, options.num_query_token, options.q_former.hidden_size, device="meta"
        )
        if not empty:
            logger.info("loading the Q-Former: %s", options.q_former_model)
            queries = _load_blip2(options.q_former_model, ln_vision, former, queries)
    return Towers(encoder, ln_vision, former, queries, dtype, tower.prefix_tokens)


def convert_blip2(content: Any, origin: str) -> Tensors:
    """Return what BLIP-2's file holds, under the names of ``Towers``.

    Raises:
        CheckpointError: for a file that holds something else.
    """
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or "query_tokens" not in weights:
        raise CheckpointError(
            f"{origin}: not a BLIP-2 Q-Former (no query_tokens in it){kind_of_file(content)}"
        )
    former = convert_q_former({k: v for k, v in weights.items() if isinstance(v, torch.Tensor)})
    own = {k: v for k, v in weights.items() if k == "query_tokens" or k.startswith("ln_vision.")}
    return own | {f"q_former.{name}": value for name, value in former.items()}


def _load_blip2(
    origin: str, ln_vision: nn.Module, former: nn.Module, queries: torch.Tensor
) -> torch.Tensor:
    """Load BLIP-2's file into both parts; return its queries, of the shape of ``queries``."""
    weights = _in_fp32(convert_blip2(load_weights(fetch(origin)), origin))
    for prefix, part in (("ln_vision.", ln_vision), ("q_former.", former)):
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        load_into(part, own, origin)
    found = weights["query_tokens"]
    if found.shape != queries.shape:
        raise CheckpointError(
            f"{origin}: query_tokens is {list(found.shape)}, not {list(queries.shape)}"
            " (model.num_query_token, model.q_former.hidden_size)"
        )
    return found


def _in_fp32(weights: Tensors) -> Tensors:
    tensors = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    return {k: v.float() for k, v in tensors.items() if v.is_floating_point()}


def _load_ckpt(model: MiniGPT4, files: tuple[str, ...]) -> None:
    weights: Tensors = {}
    for file in files:
        weights |= trained_weights(load_weights(file), file)
    if files:
        names = ", ".join(files)
        load_trained(model, {"model": weights}, names, partial=True)
        logger.info("projection loaded from %s", names)
