"""Builder of the model: options of a YAML → loaded, frozen parts and an untrained projection."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import init_empty_weights
from torch import nn

from minigpt4.config.checks import (
    FileOrUrl,
    ModelFolder,
    Positive,
    check_file,
)
from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.language_model import (
    check_vocabulary,
    empty_language_model,
    load_language_model,
)
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.models.lora import LACKING, LoraOptions, add_lora, has_peft
from minigpt4.models.minigpt4 import MiniGPT4, Trainable
from minigpt4.models.q_former import QFormerSize, build_q_former
from minigpt4.models.speed.device_map import DeviceMap, move_around
from minigpt4.models.speed.quantization import Quantize, check_quantize, choose_quantization
from minigpt4.models.tokenizer import Bos, load_tokenizer
from minigpt4.models.towers import PATCHES_PER_TOKEN, Towers
from minigpt4.models.visual_encoder import (
    VisualEncoderSize,
    build_ln_vision,
    build_visual_encoder,
    resize_position_embedding,
    shorten_weights,
)
from minigpt4.registry import MODELS, Hidden
from minigpt4.weights.checkpoint import (
    kind_of_file,
    load_into,
    load_trained,
    load_weights,
    trained_weights,
)
from minigpt4.weights.download import BLIP2_Q_FORMER, EVA_VIT_G, fetch
from minigpt4.weights.names import Tensors, convert_q_former, convert_visual_encoder

EVA_VIT_G_SIZE, BLIP2_SIZE, LORA = VisualEncoderSize(), QFormerSize(), LoraOptions()
Precision = Literal["auto", "fp32", "fp16", "bf16"]

logger = logging.getLogger(__name__)


def check_prompts(path: str) -> str | None:
    """Complaint about a prompt file that is missing or shows the model no image."""
    complaint = check_file(path)
    if complaint or not path:
        return complaint
    try:
        lines = _lines_with_image(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if not lines:
        return f"{path} has no line with {IMAGE_MARK}, which says where the image goes"
    return None


def check_template(template: str) -> str | None:
    if template and template.count("{}") != 1:
        return f"{template!r} must hold {{}} once, where the prompt goes"
    return None


def check_files(files: str | tuple[str, ...]) -> str | None:
    """Complaint about the first of several files that should exist."""
    complaints = map(check_file, (files,) if isinstance(files, str) else files)
    return next((complaint for complaint in complaints if complaint), None)


def check_trainable(parts: tuple[Trainable, ...]) -> str | None:
    if not parts:
        return "names nothing to train; the original trains [llama_proj]"
    return f"lora {LACKING}" if "lora" in parts and not has_peft() else None


def _lines_with_image(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if IMAGE_MARK in line]


def load_prompts(prompt_path: str, prompt_template: str) -> list[str]:
    """The stage-2 prompts of a file, each in its template; none without a file."""
    lines = _lines_with_image(prompt_path) if prompt_path else []
    return [prompt_template.replace("{}", line) if prompt_template else line for line in lines]


def choose_dtype(
    precision: Precision, device: torch.device, key: str = "model.precision"
) -> torch.dtype:
    """Arithmetic of the frozen parts: fp32 on a CPU; on a GPU bf16 where it has it, else fp16.

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
    device: Annotated[torch.device, Hidden],
    llama_model: ModelFolder,
    vit_model: FileOrUrl = EVA_VIT_G,
    q_former_model: FileOrUrl = BLIP2_Q_FORMER,
    image_size: Positive = 224,
    num_query_token: Positive = 32,
    has_qformer: bool = True,
    prompt_path: Annotated[str, check_prompts] = "",
    prompt_template: Annotated[str, check_template] = "",
    max_txt_len: Positive = 32,
    end_sym: str = "\n",
    bos: Bos = "auto",
    ckpt: Annotated[str | tuple[str, ...], check_files] | None = None,
    trainable: Annotated[tuple[Trainable, ...], check_trainable] = ("llama_proj",),
    lora: LoraOptions = LORA,
    precision: Precision = "auto",
    vit_precision: Literal["fp16", "fp32"] = "fp16",
    quantize: Annotated[Quantize, check_quantize] = "none",
    low_resource: bool = False,
    device_map: DeviceMap = "none",
    visual_encoder: VisualEncoderSize = EVA_VIT_G_SIZE,
    q_former: QFormerSize = BLIP2_SIZE,
    stay_on_cpu: Annotated[bool, Hidden] = False,
    from_features: Annotated[bool, Hidden] = False,
) -> MiniGPT4:
    """The model with its weights loaded, on ``device``.

    On the device ``meta`` it is built without memory: names, shapes and dtypes, no weights. Then
    only the language model's ``config.json`` and tokenizer are read.

    Args:
        device: Where it runs.
        llama_model: Folder or hub id of the language model.
        vit_model: File or URL of the visual encoder (EVA's names).
        q_former_model: File or URL of BLIP-2's Q-Former and ``ln_vision``; unused without Q-Former.
        image_size: Pixels of each side; other sizes resize the position embedding.
        num_query_token: Image tokens of the Q-Former.
        has_qformer: False: four consecutive patches make one image token, no Q-Former.
        prompt_path: Stage-2 prompts, one a line; empty in stage 1.
        prompt_template: Put around each prompt, e.g. ``###Human: {} ###Assistant: ``.
        max_txt_len: Longest answer in tokens.
        end_sym: Put behind every answer that is learnt.
        bos: Whether what the language model reads begins with its bos token. ``auto``: LLaMA's
            does, as in the original; another's where its tokenizer puts one in front of a text.
        ckpt: Trained projection to start from, and whatever else its file holds; of several files
            the later ones count.
        trainable: Parts that are trained; ``q_former`` brings ``query_tokens``. What a checkpoint
            holds must be named here to use it, too.
        lora: Of the language model, where ``trainable`` names it.
        precision: Arithmetic of the frozen parts; auto is fp32 on a CPU, bf16 or fp16 on a GPU.
        vit_precision: fp32 keeps the visual encoder's weights in fp32; fp16 follows ``precision``.
        quantize: Keep the language model in 8 bits (``int8``) or 4 (``nf4``).
        low_resource: The original's word: ``int8`` where that is possible.
        device_map: ``auto`` spreads the language model over all GPUs and main memory, to chat with.
        visual_encoder: Dimensions, for towers of another size.
        q_former: Dimensions, for towers of another size.
        stay_on_cpu: Leave the weights there; sharding moves them to ``device`` bit by bit.
        from_features: Its images come as cached features: the towers are not loaded.

    Raises:
        MiniGPT4Error: for weights that are missing or do not fit together.
    """
    dtype, empty = choose_dtype(precision, device), device.type == "meta"
    quantized = choose_quantization(quantize, low_resource, device)
    if not has_qformer and {"q_former", "query_tokens"} & {*trainable}:
        raise ConfigError("model.trainable: model.has_qformer is False: there is none to train")
    if "llama_proj" not in trainable and not ckpt and not empty:
        raise ConfigError("model.trainable: llama_proj is left out, and model.ckpt names none")
    towers = (
        Towers(None, None, None, None, dtype)
        if from_features
        else build_towers(
            device,
            vit_model,
            q_former_model,
            image_size,
            num_query_token,
            has_qformer,
            precision,
            vit_precision,
            visual_encoder,
            q_former,
        )
    )
    if not empty:
        logger.info("loading the language model: %s", llama_model)
    tokenizer = load_tokenizer(llama_model, bos)
    language_model = (
        empty_language_model(llama_model, dtype)
        if empty
        else load_language_model(llama_model, dtype, quantized, device, device_map)
    )
    check_vocabulary(language_model, tokenizer, llama_model)
    if "lora" in trainable:
        add_lora(language_model, lora)
    model = MiniGPT4(
        towers.visual_encoder,
        towers.ln_vision,
        towers.q_former,
        towers.query_tokens,
        language_model,
        tokenizer,
        prompts=load_prompts(prompt_path, prompt_template),
        max_txt_len=max_txt_len,
        end_sym=end_sym,
        compute_dtype=dtype,
        trainable=trainable,
        features_width=(
            q_former.hidden_size if has_qformer else PATCHES_PER_TOKEN * visual_encoder.embed_dim
        ),
    )
    if ckpt:
        _load_ckpt(model, [ckpt] if isinstance(ckpt, str) else ckpt)
    if device_map == "auto" and not empty:
        move_around(model, language_model, device)
        return model
    return model if stay_on_cpu else model.to(device)


def build_towers(
    device: torch.device,
    vit_model: str = EVA_VIT_G,
    q_former_model: str = BLIP2_Q_FORMER,
    image_size: int = 224,
    num_query_token: int = 32,
    has_qformer: bool = True,
    precision: Precision = "auto",
    vit_precision: Literal["fp16", "fp32"] = "fp16",
    visual_encoder: VisualEncoderSize = EVA_VIT_G_SIZE,
    q_former: QFormerSize = BLIP2_SIZE,
) -> Towers:
    """The towers with their weights loaded, still on the CPU, for arithmetic on ``device``.

    Arguments are those of :func:`build_minigpt4`.

    Raises:
        MiniGPT4Error: for weights that are missing or do not fit together.
    """
    dtype, empty = choose_dtype(precision, device), device.type == "meta"
    if dtype == torch.float32 and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default, for convolutions only
    if not has_qformer and visual_encoder_tokens(image_size, visual_encoder) % PATCHES_PER_TOKEN:
        raise ConfigError(
            "model.image_size: without a Q-Former the patches must be a multiple of 4"
        )
    with init_empty_weights(include_buffers=False):
        encoder = build_visual_encoder(image_size, visual_encoder)
    if not empty:
        logger.info("loading the visual encoder: %s", vit_model)
        _load_visual_encoder(encoder, vit_model, image_size, visual_encoder)
    if vit_precision == "fp16":
        shorten_weights(encoder, dtype)
    ln_vision = build_ln_vision(visual_encoder.embed_dim)
    former, queries = None, None
    # Without a Q-Former the original reads nothing from BLIP-2's file: ln_vision stays as made.
    if has_qformer:
        with init_empty_weights(include_buffers=False):
            former = build_q_former(visual_encoder.embed_dim, q_former)
        queries = torch.empty(1, num_query_token, q_former.hidden_size, device="meta")
        if not empty:
            logger.info("loading the Q-Former: %s", q_former_model)
            blip2 = _load_blip2(q_former_model)
            load_into(ln_vision, _part(blip2, "ln_vision."), q_former_model)
            load_into(former, convert_q_former(blip2), q_former_model)
            queries = _queries(blip2, num_query_token, q_former.hidden_size, q_former_model)
    return Towers(encoder, ln_vision, former, queries, dtype)


def _load_ckpt(model: MiniGPT4, files: Sequence[str]) -> None:
    names = ", ".join(files)
    weights: Tensors = {}
    for file in files:
        weights |= trained_weights(load_weights(file), file)
    load_trained(model, {"model": weights}, names, partial=True)
    logger.info("projection loaded from %s", names)


def visual_encoder_tokens(image_size: int, size: VisualEncoderSize) -> int:
    """Patches of an image, without the class token."""
    return (image_size // size.patch_size) ** 2


def _load_visual_encoder(
    encoder: nn.Module, origin: str, image_size: int, size: VisualEncoderSize
) -> None:
    weights = load_weights(fetch(origin))
    if not isinstance(weights, dict) or "pos_embed" not in weights:
        raise CheckpointError(
            f"{origin}: not a visual encoder (no pos_embed in it){kind_of_file(weights)}"
        )
    converted = convert_visual_encoder(weights, size.depth)
    side = image_size // size.patch_size
    if converted["pos_embed"].shape[1] != 1 + side * side:
        converted["pos_embed"] = resize_position_embedding(converted["pos_embed"], (side, side))
    fp32 = {k: v.float() for k, v in converted.items() if isinstance(v, torch.Tensor)}
    load_into(encoder, fp32, origin)


def _load_blip2(origin: str) -> dict[str, torch.Tensor]:
    content = load_weights(fetch(origin))
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or "query_tokens" not in weights:
        raise CheckpointError(
            f"{origin}: not a BLIP-2 Q-Former (no query_tokens in it){kind_of_file(content)}"
        )
    tensors = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    return {name: value.float() for name, value in tensors.items() if value.is_floating_point()}


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _queries(blip2: dict[str, torch.Tensor], count: int, width: int, origin: str) -> torch.Tensor:
    queries = blip2["query_tokens"]
    if queries.shape != (1, count, width):
        raise CheckpointError(
            f"{origin}: query_tokens is {list(queries.shape)}, not [1, {count}, {width}]"
            " (model.num_query_token, model.q_former.hidden_size)"
        )
    return queries
