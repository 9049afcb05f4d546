"""What model.quantize costs and keeps: the projection's gradient, and the speed of a step.

    python benchmarks/quantization.py --json output/quantization.json

The embedded default's towers before two language models: its own, and a LLaMA of random weights.
The gradient of the projection on drawn scenes is held against that of the same model, not
quantised, in the same arithmetic: the cosine between them, and the largest difference over the
largest number. Models take turns; speed is their ratio of medians, unquantised over quantised.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from assets.tiny.making.pretrain_vision import scenes_to_pixels  # noqa: E402
from benchmarks.training_steps import about, described  # noqa: E402
from minigpt4.chat import choose_device  # noqa: E402
from minigpt4.config import load_config  # noqa: E402
from minigpt4.errors import ConfigError, run_guarded  # noqa: E402
from minigpt4.models.build import choose_dtype  # noqa: E402
from minigpt4.models.minigpt4 import MiniGPT4  # noqa: E402
from minigpt4.registry import MODELS  # noqa: E402
from minigpt4.tools.tiny_world.phrases import caption  # noqa: E402
from minigpt4.tools.tiny_world.scenes import sample_scene  # noqa: E402

YAML, OWN = ROOT / "eval_configs" / "tiny_eval.yaml", ROOT / "assets" / "tiny" / "llama"
LEAST_COSINE = {"int8": 0.99, "nf4": 0.9}
Figures = dict[str, Any]


def save_random_llama(folder: Path, width: int, layers: int) -> None:
    """A language model for the embedded default's tokenizer, of widths that NF4 can have."""
    shutil.copytree(OWN, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = LlamaConfig(
        vocab_size=json.loads((OWN / "config.json").read_text())["vocab_size"],
        hidden_size=width,
        intermediate_size=width * 43 // 16 // 64 * 64,  # LLaMA's proportion
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    transformers_logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)


def build(folder: Path, quantize: str, precision: str, device: torch.device) -> MiniGPT4:
    options = [f"llama_model={folder}", f"quantize={quantize}", f"precision={precision}", "ckpt="]
    config = load_config(str(YAML), [f"model.{option}" for option in options])
    torch.manual_seed(0)  # the same projection in every model
    model: MiniGPT4 = MODELS.build(config.arch, config.model_options(), device=device)
    return model.train()


def gradient(model: MiniGPT4, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
    model.zero_grad()
    model(pixels, model.stage_rows(texts)).backward()
    assert model.llama_proj.weight.grad is not None
    return model.llama_proj.weight.grad.float().flatten().cpu()


def measure(folder: Path, device: torch.device, arguments: argparse.Namespace) -> list[Figures]:
    """A row for each quantisation; with the reason alone where this model cannot have it."""
    models, refused = {}, {}
    for kind in ("none", *LEAST_COSINE):
        try:
            models[kind] = build(folder, kind, arguments.precision, device)
        except ConfigError as error:
            refused[kind] = str(error)
    if "none" in refused:
        raise ConfigError(refused["none"])
    drawn = random.Random(arguments.seed)
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    cosines: dict[str, list[float]] = {kind: [] for kind in models}
    errors: dict[str, list[float]] = {kind: [] for kind in models}
    for repeat in range(arguments.repeats + 1):  # the first warms up
        scenes = [sample_scene(drawn) for _ in range(arguments.batch)]
        pixels, texts = scenes_to_pixels(scenes).to(device), [caption(scene) for scene in scenes]
        found = {}
        for kind, model in models.items():
            start = time.perf_counter()
            found[kind] = gradient(model, pixels, texts)  # brought to the CPU: all of it is done
            if repeat:
                seconds[kind].append(time.perf_counter() - start)
        exact = found["none"]
        for kind, got in found.items():
            cosines[kind].append(functional.cosine_similarity(got, exact, dim=0).item())
            errors[kind].append(((got - exact).abs().max() / exact.abs().max()).item())
    plain = statistics.median(seconds["none"])
    rows: list[Figures] = [{"quantize": kind, "refused": why} for kind, why in refused.items()]
    for kind in models:
        if kind != "none":
            rows.append(
                {
                    "quantize": kind,
                    "cosine": min(cosines[kind]),
                    "largest_relative_error": max(errors[kind]),
                    "speed": plain / statistics.median(seconds[kind]),
                }
            )
    return rows


def missed(found: dict[str, list[Figures]]) -> list[str]:
    """Bars that were missed; of each quantisation at least one model must have been measured."""
    lines = []
    for kind, least in LEAST_COSINE.items():
        rows = [
            (name, row["cosine"])
            for name, rows in found.items()
            for row in rows
            if row["quantize"] == kind and "cosine" in row
        ]
        if not rows:
            lines.append(f"{kind}: not measured")
        lines += [
            f"{name}, {kind}: cosine {cosine:.4f} is below {least}"
            for name, cosine in rows
            if not cosine >= least  # NaN is below, too
        ]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto")
    parser.add_argument("--width", type=int, default=512, help="of the random LLaMA")
    parser.add_argument("--layers", type=int, default=8, help="likewise")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if min(arguments.layers, arguments.batch, arguments.repeats) < 1:
        raise ConfigError("--layers, --batch and --repeats must be at least 1")
    if arguments.width < 64 or arguments.width % 64:
        raise ConfigError("--width must be 64, 128, …")
    device = choose_device(arguments.device)
    dtype = str(choose_dtype(arguments.precision, device, "--precision")).removeprefix("torch.")
    facts = about(device, size=f"width {arguments.width} × {arguments.layers}", dtype=dtype)
    print(f"{described(facts)}, {dtype}; batch {arguments.batch}, {arguments.repeats} batches")
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        random_llama = Path(folder) / "llama"
        save_random_llama(random_llama, arguments.width, arguments.layers)
        found = {
            name: measure(path, device, arguments)
            for name, path in (("embedded", OWN), ("random", random_llama))
        }
    print("LLaMA     quantize    cosine  largest error   speed")
    for name, rows in found.items():
        for row in rows:
            named = f"{name:<9} {row['quantize']:<9}"
            if "refused" in row:
                print(f"{named} {row['refused']}")
                continue
            worst = f"{row['cosine']:>8.4f} {row['largest_relative_error']:>14.1%}"
            print(f"{named} {worst} {row['speed']:>7.2f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**facts, "models": found}, indent=2) + "\n")
    lines = missed(found)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
