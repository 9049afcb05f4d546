"""LLaMA and Vicuna folders of the real structure and vocabulary, but a few numbers wide."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.repo import ROOT

Tensors = dict[str, torch.Tensor]
Size = dict[str, int]
SMALL: Size = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GOLDEN_TOKENIZER = ROOT / "tests" / "golden" / "tokenizer" / "tokenizer.model"


def llama_tensors(rows: int, seed: int, size: Size = SMALL) -> Tensors:
    """Random fp16 weights under transformers' names."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=rows, **size))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator).mul(0.1).half()
        for name, value in model.state_dict().items()
    }


def write_weights(folder: Path, tensors: Tensors, form: str = "bin", shards: int = 2) -> None:
    """As ``bin``, ``old bin`` (before torch 1.6) or ``safetensors``, with an index for shards."""
    single = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    stem, suffix = single.split(".")
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" if shards > 1 else single
        first, end = (step * len(tensors) // shards for step in (number, number + 1))
        names = list(tensors)[first:end]
        content = {key: tensors[key].clone() for key in names}
        if form == "safetensors":
            save_file(content, folder / name, metadata={"format": "pt"})
        else:
            torch.save(
                content, folder / name, _use_new_zipfile_serialization=not form.startswith("old")
            )
        weight_map |= dict.fromkeys(names, name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{single}.index.json").write_text(json.dumps(index))


def write_llama(
    folder: Path, tensors: Tensors, form: str = "bin", shards: int = 2, size: Size = SMALL
) -> Path:
    """A whole folder: config, tokenizer and weights."""
    folder.mkdir(parents=True)
    write_config(folder, rows=len(tensors["lm_head.weight"]), **size)
    write_tokenizer(folder / "tokenizer.model")
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"name": folder.name}))
    (folder / "special_tokens_map.json").write_text("{}")
    write_weights(folder, tensors, form, shards)
    return folder


def write_config(folder: Path, rows: int, **settings: object) -> None:
    known = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows}
    known |= {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(known | settings))


def write_tokenizer(file: Path, words: int = 32000) -> None:
    """The recorded tokenizer, filled up with words that no text holds."""
    model = sentencepiece_model.ModelProto()
    model.ParseFromString(GOLDEN_TOKENIZER.read_bytes())
    for number in range(words - len(model.pieces)):
        model.pieces.add(piece=f"\u241f{number}", score=-1e4)
    file.write_bytes(model.SerializeToString())


def write_tokenizer_without(file: Path, token: str) -> None:
    """The recorded tokenizer with its ``<s>`` or ``</s>`` made an ordinary word."""
    model = sentencepiece_model.ModelProto()
    model.ParseFromString(GOLDEN_TOKENIZER.read_bytes())
    for piece in model.pieces:
        if piece.piece == token:
            piece.type = sentencepiece_model.ModelProto.SentencePiece.NORMAL
    file.write_bytes(model.SerializeToString())


# Embedding rows (Vicuna v0 adds one), width, feed-forward, layers and heads.
SIZES = {
    "Vicuna-7B": (32001, 4096, 11008, 32, 32),
    "Vicuna-13B": (32001, 5120, 13824, 40, 40),
    "Llama-2-7B": (32000, 4096, 11008, 32, 32),
}


TRAINED = {"Vicuna-7B": 3_149_824, "Vicuna-13B": 3_937_280, "Llama-2-7B": 23_072_768}


def llama_folder(folder: Path, name: str) -> Path:
    """What a user's folder holds, but for its weights."""
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    sizes = dict(zip((*keys, "num_attention_heads"), SIZES[name], strict=True))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    write_tokenizer(folder / "tokenizer.model")
    return folder
