"""Hugging Face: a chat → a folder of transformers' BLIP-2; its projection, back.

What the folder cannot hold is listed in ``docs/export.md``.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from tokenizers import Tokenizer as Pipeline
from tokenizers import normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2VisionConfig,
    BlipImageProcessor,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from minigpt4.chat import build_chat
from minigpt4.chat.core import Chat
from minigpt4.chat.generation import build_generation_config
from minigpt4.checked import check_sections
from minigpt4.config import Config
from minigpt4.conversation import Conversation, Template
from minigpt4.errors import CheckpointError, ConfigError, MiniGPT4Error, one_line
from minigpt4.models.lora import merge_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.processors import ImageProcessor
from minigpt4.tools.export.weights_folder import WeightsFolder
from minigpt4.weights.checkpoint import load_into, save_atomically
from minigpt4.weights.names import Tensors

# Stands for one image token in a text. It is ``<unk>``, which a LLaMA never writes, renamed: a new
# token would need another row in the embedding, and change the logits.
IMAGE_TOKEN = "<image>"
# Texts that a tokenizer of another kind would split in another way.
_SAMPLES = ("###Human: <Img>", "</Img> What is  this? ###", " two\n", "café 你好 😀", "</s> a")
_PROJECTION = {
    "llama_proj.weight": "language_projection.weight",
    "llama_proj.bias": "language_projection.bias",
}

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

# Preceded by the values of its variables.
_CHAT_TEMPLATE = (
    "{{ bos_token + system }}"
    "{% for message in messages %}"
    "{% set role = user if message.role == 'user' else assistant %}{{ role }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<Img>{{ image }}</Img>"
    "{% if not loop.last %}"
    "{{ separator + role if loop.nextitem.type == 'image' else ' ' }}{% endif %}"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ separator if message.role == 'user' else behind_answer }}{% endfor %}"
    "{% if add_generation_prompt %}{{ opening }}{% endif %}"
)

logger = logging.getLogger(__name__)


def save_hugging_face(chat: Chat, tokenizer_file: Path, folder: Path) -> None:
    """Write a chat with Q-Former, whole or not at all; frozen weights may get a shorter dtype."""
    model = chat.model
    processor = build_processor(chat, tokenizer_file)
    merge_lora(model.llama_model)
    assert model.visual_encoder is not None
    for part in (model.visual_encoder, model.llama_model):
        shorten_without_loss(part)
    config = build_config(model, processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    with init_empty_weights(include_buffers=False):
        exported = Blip2ForConditionalGeneration(config)
    load_into(exported, convert_to_blip2(model.state_dict()), "export")
    exported.generation_config = build_generation_config(chat.options, model.tokenizer)
    exported.generation_config.stop_strings = list(chat.template.stops)
    with _whole_folder(folder) as partial:
        transformers_logging.disable_progress_bar()  # an error is one line
        try:
            exported.save_pretrained(partial)
        finally:
            transformers_logging.enable_progress_bar()
        processor.save_pretrained(partial)


def export_chat(config: Config, folder: Path) -> None:
    """Write the chat of a config; refuse one that cannot be exported before anything loads."""
    # The folder holds whole weights, which transformers may quantise again.
    whole = config.model | {"quantize": "none", "low_resource": False}
    checked = check_sections(dataclasses.replace(config, model=whole), "chat")
    options = checked.model_options
    if options.vision_tower is not None:
        raise ConfigError(f"{config.path}: model.vision_tower: only EVA can be exported")
    if not options.has_qformer:
        raise ConfigError(
            f"{config.path}: model.has_qformer: the variant without Q-Former cannot be exported: "
            "transformers' BLIP-2 always has one"
        )
    tokenizer_file = Path(options.llama_model) / "tokenizer.model"
    if not tokenizer_file.is_file():
        raise ConfigError(
            f"{config.path}: model.llama_model: {tokenizer_file.parent} holds no tokenizer.model; "
            "only LLaMA and its kin can be exported"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MiniGPT4Error(f"--to hf {folder}: exists already; nothing in it is overwritten")
    save_hugging_face(build_chat(checked, torch.device("cpu")), tokenizer_file, folder)
    logger.info("%s: load it with transformers.Blip2ForConditionalGeneration", folder)


def export_projection(folder: Path, file: Path) -> None:
    """Write the projection of an exported folder under our names, for ``model.ckpt``."""
    if file.suffix != ".pth":
        raise ConfigError(
            f"--to minigpt4 {file}: must end in .pth; convert makes safetensors of it"
        )
    if file.exists():
        raise MiniGPT4Error(f"--to minigpt4 {file}: exists already; nothing is overwritten")
    weights = WeightsFolder(folder)
    if not set(_PROJECTION.values()) <= weights.tensors.keys():
        raise CheckpointError(f"{folder}: not a BLIP-2 model (no language_projection in it)")
    found = {ours: weights.read(theirs).clone() for ours, theirs in _PROJECTION.items()}
    save_atomically({"model": found}, file)
    logger.info("%s: the projection of %s, for model.ckpt; nothing else is taken", file, folder)


def build_config(model: MiniGPT4, image_token: int) -> Blip2Config:
    """Return our model's dimensions as transformers' config.

    Its vision tower has one epsilon, ours 1e-6 in the blocks, which is kept, and 1e-5 in
    ``ln_vision``.
    """
    encoder: Any = model.visual_encoder
    block = encoder.blocks[0]
    assert model.q_former is not None
    assert model.query_tokens is not None
    vision = Blip2VisionConfig(
        hidden_size=encoder.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=encoder.patch_embed.img_size[0],
        patch_size=encoder.patch_embed.patch_size[0],
        layer_norm_eps=block.norm1.eps,
    )
    text = model.llama_model.config.to_dict()
    text.pop("_name_or_path", None)  # a path of this machine
    # Early LLaMA folders name other ids here than their tokenizer has.
    text |= {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": model.tokenizer.eos_id}
    return Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=model.q_former.config.to_dict(),
        text_config=text,
        num_query_tokens=model.query_tokens.shape[1],
        image_token_index=image_token,
    )


def shorten_without_loss(part: torch.nn.Module) -> None:
    """Use half precision for each parameter that loses nothing by it."""
    for parameter in part.parameters():
        for dtype in (torch.float16, torch.bfloat16):
            shorter = parameter.data.to(dtype)
            if parameter.dtype == torch.float32 and torch.equal(shorter.float(), parameter.data):
                parameter.data = shorter


def build_processor(chat: Chat, tokenizer_file: Path) -> Blip2Processor:
    """Return an image processor and a tokenizer that give our pixels and ids."""
    tokenizer = build_tokenizer(tokenizer_file, chat.model.tokenizer)
    assert chat.model.query_tokens is not None
    count = chat.model.query_tokens.shape[1]
    tokenizer.chat_template = chat_template(chat.template, count)
    images = chat.image_processor
    assert isinstance(images, ImageProcessor)
    side = {"height": images.image_size, "width": images.image_size}
    mean, std = list(images.mean), list(images.std)
    image_processor = BlipImageProcessor(size=side, image_mean=mean, image_std=std)
    return Blip2Processor(image_processor, tokenizer, num_query_tokens=count)


def build_tokenizer(file: Path, ours: Tokenizer) -> PreTrainedTokenizerFast:
    """Return our tokenizer as a pipeline of the tokenizers library, with ``<image>`` for ``<unk>``.

    Of transformers' ``LlamaTokenizer`` only the vocabulary is used: it begins a word at the start
    of a text only, the original's after each special token, too.
    """
    if ours.bos_id is None:
        raise CheckpointError("model.bos: off cannot be exported; set auto, as LLaMA was taught")
    with tempfile.TemporaryDirectory() as alone:  # settings next to the file are not read
        shutil.copy(file, Path(alone) / "tokenizer.model")
        theirs = LlamaTokenizer.from_pretrained(alone)
    content = json.loads(theirs.backend_tokenizer.to_str())["model"]
    words = {IMAGE_TOKEN if i == theirs.unk_token_id else w: i for w, i in content["vocab"].items()}
    merges = [tuple(merge) for merge in content["merges"]]
    pipeline = Pipeline(
        BPE(words, merges, unk_token=IMAGE_TOKEN, fuse_unk=True, byte_fallback=True)
    )
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pipeline.decoder = theirs.backend_tokenizer.decoder
    bos, eos = ours.piece(ours.bos_id), ours.piece(ours.eos_id)
    pipeline.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, ours.bos_id)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pipeline,
        bos_token=bos,
        eos_token=eos,
        unk_token=IMAGE_TOKEN,
        pad_token=eos,
        padding_side="left",
    )
    for text in _SAMPLES:
        if tokenizer.encode(text, add_special_tokens=False) != ours.encode(text):
            raise CheckpointError(f"{file}: cannot be exported: the ids of {text!r} would differ")
    return tokenizer


def chat_template(template: Template, image_tokens: int) -> str:
    """Return our conversation template for ``apply_chat_template``."""
    values = {
        "system": Conversation(template).transcript(),
        "user": template.user,
        "assistant": template.assistant,
        "image": IMAGE_TOKEN * image_tokens,
        "separator": template.separator,
        "behind_answer": template.behind_answer,
        "opening": template.opening,
    }
    given = [f"{{% set {name} = {json.dumps(value)} %}}" for name, value in values.items()]
    return "".join(given) + _CHAT_TEMPLATE


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that gets its name when it is complete."""
    partial = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, folder)  # replaces an empty folder, and no other
    except (OSError, SafetensorError) as error:
        raise MiniGPT4Error(
            f"{folder}: cannot be written ({one_line(error)}); free space or name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
