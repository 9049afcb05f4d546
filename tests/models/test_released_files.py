"""Files in the structure of those published in 2023, made from a recorded model: they load, and the
model then computes what was recorded.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.errors import CheckpointError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.registry import MODELS
from tests.helpers.messages import one_line
from tests.helpers.recorded.comparison import failures
from tests.helpers.recorded.model import (
    Case,
    compare_mode,
    compare_vision,
    one_case,
    q_former_size,
)

Tensors = dict[str, torch.Tensor]


def eva_file(case: Case, blocks: int = 0, heads: bool = False) -> Tensors:
    """``eva_vit_g.pth``: bare names; the published file may have a block more, and heads."""
    weights = case.weights.part("visual_encoder.")
    depth = case.facts["dims"]["vit"]["depth"]
    for extra in range(blocks):
        for name, value in list(weights.items()):
            if name.startswith("blocks.0."):
                weights[name.replace("blocks.0.", f"blocks.{depth + extra}.")] = value
    if heads:
        width = weights["cls_token"].shape[-1]
        weights |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        weights |= {"fc_norm.weight": torch.ones(width)}
        weights |= {"head.weight": torch.ones(10, width), "head.bias": torch.zeros(10)}
        weights |= {"mask_token": torch.zeros(1, 1, width)}
    return weights


def blip2_file(case: Case, text_branch: bool = False) -> dict[str, Tensors]:
    """``blip2_pretrained_flant5xxl.pth``: under "model", beside parts that are not used."""
    used = ("query_tokens", "Qformer.", "ln_vision.")
    weights = {name: case.weights[name] for name in case.weights if name.startswith(used)}
    width = case.facts["dims"]["qformer"]["hidden_size"]
    weights |= {"t5_proj.weight": torch.ones(7, width), "t5_proj.bias": torch.ones(7)}
    if text_branch:
        bert = "Qformer.bert."
        weights[f"{bert}embeddings.word_embeddings.weight"] = torch.ones(11, width)
        weights[f"{bert}embeddings.position_embeddings.weight"] = torch.ones(512, width)
        for layer in range(case.facts["dims"]["qformer"]["num_hidden_layers"]):
            for part in ("intermediate.dense", "output.dense", "output.LayerNorm"):
                weights[f"{bert}encoder.layer.{layer}.{part}.weight"] = torch.ones(width)
                weights[f"{bert}encoder.layer.{layer}.{part}.bias"] = torch.ones(width)
    return {"model": weights}


def projection_file(case: Case, buffers: bool, optimizer: bool) -> dict[str, Any]:
    """``pretrained_minigpt4.pth``: the trained parameters, perhaps with buffers and optimizer."""
    saved = case.facts["checkpoint_keys_saved_by_upstream_filter"]
    names = [name for name in saved if buffers or name.startswith("llama_proj.")]
    content: dict[str, Any] = {"model": {name: case.weights[name] for name in names}}
    if optimizer:
        parameter = torch.nn.Parameter(case.weights["llama_proj.bias"].clone())
        state = torch.optim.AdamW([parameter]).state_dict()
        content |= {"optimizer": state, "config": {"run": {}}, "scaler": {}, "epoch": 3}
    return content


def llama_folder(case: Case, folder: Path, form: str) -> Path:
    """A LLaMA folder: one safetensors file, or ``.bin`` shards with their index."""
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | case.facts["dims"]["llama"]))
    shutil.copy(case.tokenizer_file, folder)
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    (folder / "special_tokens_map.json").write_text('{"bos_token": "</s>", "eos_token": "</s>"}')
    weights = case.weights.part("llama_model.")
    if form == "safetensors":
        plain = {n: v.contiguous() for n, v in weights.items() if "inv_freq" not in n}
        save_file(plain, folder / "model.safetensors", {"format": "pt"})
        return folder
    names, index = sorted(weights), dict[str, str]()
    for number in (1, 2):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        own = names[number - 1 :: 2]
        torch.save({name: weights[name] for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return folder


def sizes_of(case: Case) -> dict[str, Any]:
    """What a YAML says of towers of another size."""
    vit, q_former = case.facts["dims"]["vit"], case.facts["dims"]["qformer"]
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    options: dict[str, Any] = {
        "image_size": vit["img_size"],
        "visual_encoder": {name: vit[name] for name in names},
        "has_qformer": q_former is not None,
    }
    if q_former:
        options["num_query_token"] = q_former["num_query_token"]
        options["q_former"] = asdict(q_former_size(q_former))
    return options


def build(case: Case, **files: Any) -> MiniGPT4:
    options = sizes_of(case) | {name: str(file) for name, file in files.items()}
    return MODELS.build("minigpt4", options, device=torch.device("cpu"))


def saved(folder: Path, name: str, content: Any) -> Path:
    torch.save(content, folder / name)
    return folder / name


def files_of(case: Case, folder: Path, more: bool = False) -> dict[str, Path]:
    """The published files of both towers and of the projection."""
    return {
        "vit_model": saved(folder, "eva_vit_g.pth", eva_file(case, blocks=more, heads=more)),
        "q_former_model": saved(folder, "blip2.pth", blip2_file(case, text_branch=more)),
        "ckpt": saved(folder, "pretrained.pth", projection_file(case, more, more)),
    }


@pytest.mark.parametrize("more", [False, True], ids=["bare", "with more in each file"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("small", [False, True], ids=["ordinary", "small activations"])
def test_published_files_give_the_recorded_model(
    tmp_path: Path, more: bool, form: str, small: bool
) -> None:
    case = one_case(q_former=True, small_activations=small)
    llama = llama_folder(case, tmp_path / "llama", form)
    model = build(case, llama_model=llama, **files_of(case, tmp_path, more))
    assert failures(compare_vision(model, case)) == []
    for mode in case.modes():
        assert failures(compare_mode(model, mode)) == []


def test_the_variant_without_a_q_former_reads_eva_llama_and_projection(tmp_path: Path) -> None:
    case = one_case(q_former=False)
    model = build(
        case,
        vit_model=saved(tmp_path, "eva_vit_g.pth", eva_file(case)),
        llama_model=llama_folder(case, tmp_path / "llama", "bin"),
        ckpt=saved(tmp_path, "pretrained.pth", projection_file(case, True, True)),
    )
    # The original reads no ln_vision here either; the recording has random weights in it.
    assert model.ln_vision is not None
    model.ln_vision.load_state_dict(case.weights.part("ln_vision."))
    assert failures(compare_vision(model, case)) == []
    for mode in case.modes():
        assert failures(compare_mode(model, mode)) == []


def test_a_shard_that_is_missing_is_one_line(tmp_path: Path) -> None:
    case = one_case(q_former=True)
    folder = llama_folder(case, tmp_path / "llama", "bin")
    next(folder.glob("*00002-of*")).unlink()
    with one_line(CheckpointError, "llama"):
        build(case, llama_model=folder, **files_of(case, tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "code"])
@pytest.mark.parametrize("name", ["vit_model", "q_former_model", "ckpt"])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, damage: str) -> None:
    case = one_case(q_former=True)
    files = files_of(case, tmp_path)
    content = files[name].read_bytes()
    if damage == "code":
        torch.save({"model": Path("x")}, files[name])
    else:
        damages = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>"}
        files[name].write_bytes(damages[damage])
    llama = llama_folder(case, tmp_path / "llama", "safetensors")
    with one_line(CheckpointError, files[name].name):
        build(case, llama_model=llama, **files)


FORMS = {"vit_model": "EVA", "q_former_model": "BLIP-2", "ckpt": "a MiniGPT-4 projection"}


@pytest.mark.parametrize(
    ("place", "given"), [(place, given) for place in FORMS for given in FORMS if place != given]
)
def test_a_file_in_another_ones_place_is_told_where_it_belongs(
    tmp_path: Path, place: str, given: str
) -> None:
    case = one_case(q_former=True)
    files = files_of(case, tmp_path)
    wrong = files | {place: files[given]}
    llama = llama_folder(case, tmp_path / "llama", "safetensors")
    told = f"it looks like {FORMS[given]}", f"name it in model.{given}"
    with one_line(CheckpointError, *told):
        build(case, llama_model=llama, **wrong)
