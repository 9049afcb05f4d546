"""Builder of the model: its options → loaded, frozen parts and an untrained projection."""

import logging
from typing import Annotated, Any

import torch
from accelerate import init_empty_weights
from torch import nn

from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models import Precision
from minigpt4.models.language_model import empty_language_model, load_language_model, words_fault
from minigpt4.models.lora import add_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.options import ModelOptions, TowerOptions
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
    """Return the arithmetic of the frozen parts; ``auto``: fp32 on a CPU, else bf16 or fp16.

    A precision that the device does not have is a ``ConfigError`` with the ``key`` that set it.
    """
    if precision == "auto":
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        precision = "fp32" if device.type == "cpu" else "bf16" if has_bf16 else "fp16"
    elif precision == "fp16" and device.type == "cpu":
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
    """Build the model with its weights loaded, to compute in ``dtype`` (or its precision's).

    On ``meta`` only the language model's ``config.json`` and tokenizer are read. ``stay_on_cpu``
    leaves moving the weights to sharding; ``from_features`` loads no towers. Weights that are
    missing or do not fit together are a ``MiniGPT4Error``.
    """
    dtype = dtype or choose_dtype(options.precision, device)
    if not options.has_qformer and {"q_former", "query_tokens"} & {*options.trainable}:
        raise ConfigError("model.trainable: model.has_qformer is False: no Q-Former to train")
    if "llama_proj" not in options.trainable and not options.ckpt and device.type != "meta":
        raise ConfigError("model.trainable: llama_proj is left out, and model.ckpt names none")
    quantize, folder = options.quantize, options.llama_model
    if quantize != "none" or options.low_resource:
        from minigpt4.models.speed.quantization import choose_quantization

        quantize = choose_quantization(quantize, options.low_resource, device)
    if from_features:
        towers = Towers(None, None, None, None, dtype)
    else:
        towers = build_towers(options, device, dtype)
    tokenizer = load_tokenizer(folder, options.bos)
    if device.type == "meta":
        language_model = empty_language_model(folder, dtype)
    else:
        logger.info("loading the language model: %s", folder)
        language_model = load_language_model(folder, dtype, quantize, device, options.device_map)
    rows = language_model.get_input_embeddings().weight.shape[0]
    if fault := words_fault(tokenizer, rows, folder):
        raise CheckpointError(f"model.llama_model: {fault}")
    if "lora" in options.trainable:
        add_lora(language_model, options.lora)
    model = MiniGPT4(
        towers,
        language_model,
        tokenizer,
        options.features_width,
        prompts=options.load_prompts(),
        max_txt_len=options.max_txt_len,
        end_sym=options.end_sym,
        trainable=options.trainable,
    )
    if files := options.ckpt_files:
        weights: Tensors = {}
        for file in files:
            weights |= trained_weights(load_weights(file), file)
        load_trained(model, {"model": weights}, ", ".join(files), partial=True)
        logger.info("projection loaded from %s", ", ".join(files))
    if options.device_map == "auto" and device.type != "meta":
        from minigpt4.models.speed.device_map import move_around

        move_around(model, language_model, device)
    elif not stay_on_cpu:
        model.to(device)
    return model


def build_towers(options: TowerOptions, device: torch.device, dtype: torch.dtype) -> Towers:
    """Build the towers on the CPU, to compute in ``dtype``; no weights are read for ``meta``."""
    if dtype == torch.float32 and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default, for convolutions only
    for fault in options.errors():
        raise ConfigError(f"{fault.key}: {fault.text}")
    tower, former, queries = options.tower, None, None
    with init_empty_weights(include_buffers=False):
        encoder = tower.build()
        if options.has_qformer:
            former = build_q_former(tower.width, options.q_former)
            shape = (1, options.num_query_token, options.q_former.hidden_size)
            queries = torch.empty(shape, device="meta")
    # torch's default eps, unlike the encoder's 1e-6; loaded with the Q-Former only, as originally.
    norm = nn.LayerNorm(tower.width)
    towers = Towers(None, norm, former, queries, dtype, tower.prefix_tokens)
    if device.type != "meta":
        logger.info("loading the visual encoder: %s", tower.weights)
        weights = tower.convert(load_weights(fetch(tower.weights)))
        load_into(encoder, _in_fp32(weights), tower.weights)
        if options.has_qformer:
            file = options.q_former_model
            logger.info("loading the Q-Former: %s", file)
            load_into(towers, _in_fp32(convert_blip2(load_weights(fetch(file)), file)), file)
    if options.vit_precision == "fp16":
        cast_to_half(encoder, dtype)
    towers.visual_encoder = encoder
    return towers


def convert_blip2(content: Any, origin: str) -> Tensors:
    """Return the tensors of BLIP-2's file under the names of ``Towers``, or refuse the file."""
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or "query_tokens" not in weights:
        text = f"not a BLIP-2 Q-Former (no query_tokens in it){kind_of_file(content)}"
        raise CheckpointError(f"{origin}: {text}")
    own = {k: v for k, v in weights.items() if k == "query_tokens" or k.startswith("ln_vision.")}
    return own | {f"q_former.{name}": value for name, value in convert_q_former(weights).items()}


def _in_fp32(weights: Tensors) -> Tensors:
    tensors = {name: value for name, value in weights.items() if torch.is_tensor(value)}
    return {name: value.float() for name, value in tensors.items() if value.is_floating_point()}
