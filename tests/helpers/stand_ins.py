"""Files and folders that stand for those that only a user has."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.data_files import pair, picture, write_pairs, write_tar


def stand_in_paths(folder: Path) -> dict[str, str]:
    """Files and folders that exist, for what a user would have."""
    llama = folder / "vicuna"
    llama.mkdir()
    (llama / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, llama / "model.safetensors")
    weights = folder / "weights.pth"
    # Of the embedded default's size; how wide the stand-in's language model is nobody knows.
    trained = {"llama_proj.weight": torch.zeros(160, 128), "llama_proj.bias": torch.zeros(160)}
    torch.save({"model": trained}, weights)
    pairs = write_pairs(folder / "pairs", [("a", "a scene")], {"a.jpg": picture()})
    write_tar(folder / "00000.tar", pair("a"))
    rows = folder / "rows.jsonl"
    rows.write_text('{"image": "a.jpg", "caption": "a scene"}\n')
    return {
        "run.device": "auto",
        "model.llama_model": str(llama),
        "model.ckpt": str(weights),
        "run.resume_ckpt_path": str(weights),
        "datasets.laion.build_info.storage": str(folder / "00000.tar"),
        "datasets.cc_sbu.build_info.storage": str(folder / "00000.tar"),
        "datasets.cc_sbu_align.build_info.storage": str(pairs),
        "datasets.my_pairs.storage": str(rows),
        "datasets.my_pairs.image_root": str(pairs / "image"),
    }
