"""Training steps a second, lever by lever, from the original's way to ours: one table, one run.

    python benchmarks/train_throughput.py --size small --json output/train_throughput.json

Whole steps: towers, language model, loss, backward, AdamW. Weights are random and made on the
device; captions have the lengths of the two stages. Modes take turns, figures are medians. "Of
ceiling": what a packed step computes, held against what a plain matrix product reaches.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.chat import choose_device
from minigpt4.errors import ConfigError, run_guarded
from minigpt4.models.compiling import compile_layers
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.q_former import QFormerSize, build_q_former, build_query_tokens
from minigpt4.models.splice import IGNORED, IMAGE_MARK
from minigpt4.models.visual_encoder import (
    VisualEncoderSize,
    build_ln_vision,
    build_visual_encoder,
    shorten_weights,
)

MODES = ("original", "sdpa", "packed", "compiled")
BATCH = {1: 64, 2: 12}
# Tokens of prompt and answer: (fewest, most) of a uniform draw, near the recorded lengths.
LENGTHS = {1: ((0, 0), (4, 26)), 2: ((30, 50), (50, 150))}


@dataclass(frozen=True)
class Size:
    """Dimensions of a model; ``bars`` are samples/s and ratios to the original's way.

    Those of 7B and 13B are for one H200.
    """

    image_size: int
    queries: int
    encoder: VisualEncoderSize
    q_former: QFormerSize
    width: int
    layers: int
    inner: int
    heads: int
    vocabulary: int
    bars: dict[int, dict[str, float]]


_SMALL_FORMER = QFormerSize(128, 2, 4, 512, 1)
SIZES = {
    "tiny": Size(
        112, 16, VisualEncoderSize(14, 128, 5, 4, 4.0), _SMALL_FORMER, 160, 6, 432, 5, 640, {}
    ),
    "small": Size(
        112,
        32,
        VisualEncoderSize(14, 256, 6, 4, 4.0),
        _SMALL_FORMER,
        512,
        8,
        1376,
        8,
        1000,
        {1: {"ratio": 1.1}, 2: {"ratio": 1.1}},
    ),
    "7b": Size(
        224,
        32,
        VisualEncoderSize(),
        QFormerSize(),
        4096,
        32,
        11008,
        32,
        32001,
        {1: {"packed": 293, "ratio": 1.15, "compiled_ratio": 1.4}, 2: {"packed": 100}},
    ),
    "13b": Size(
        224,
        32,
        VisualEncoderSize(),
        QFormerSize(),
        5120,
        40,
        13824,
        40,
        32001,
        {1: {"packed": 176}, 2: {"packed": 54}},
    ),
}


class Numbers:
    """A tokenizer whose words are the ids themselves: lengths are what the benchmark says."""

    bos_id, eos_id = 1, 2
    special: tuple[str, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return " ".join(map(str, ids))

    def piece(self, token_id: int) -> str:
        return str(token_id)


def build(size: Size, device: torch.device) -> MiniGPT4:
    """A model with random weights, made on the device, frozen but for the projection."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=size.inner,
        num_attention_heads=size.heads,
    )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            language_model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
        encoder = build_visual_encoder(size.image_size, size.encoder)
        shorten_weights(encoder, dtype)
        model = MiniGPT4(
            encoder,
            build_ln_vision(size.encoder.embed_dim),
            build_q_former(size.encoder.embed_dim, size.q_former),
            build_query_tokens(size.queries, size.q_former.hidden_size).detach(),
            language_model,
            Numbers(size.vocabulary),
            max_txt_len=160,
            end_sym=" 2",
            compute_dtype=dtype,
        )
    return model.to(device).train()


Batch = tuple[torch.Tensor, list[str], list[str] | None]


def draw(model: MiniGPT4, size: Size, stage: int, rows: int, drawn: random.Random) -> Batch:
    """Pixels, answers and prompts of one step."""
    before, answer = LENGTHS[stage]

    def words(least: int, most: int) -> str:
        count = drawn.randint(least, most)
        return " ".join(str(drawn.randrange(3, size.vocabulary)) for _ in range(count))

    pixels = torch.randn(rows, 3, size.image_size, size.image_size, device=model.device)
    prompts = None
    if stage == 2:
        prompts = [f"{words(*before)} {IMAGE_MARK} {words(*before)}" for _ in range(rows)]
    return pixels, [words(*answer) for _ in range(rows)], prompts


def original_loss(model: MiniGPT4, batch: Batch) -> torch.Tensor:
    """Padded, every position's logits, all of them in fp32."""
    spliced = model.splice_batch(*batch)
    logits = model.logits(spliced).float()[:, :-1]
    targets = spliced.targets[:, 1:]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class Steps:
    """One model, trained by turns in every mode."""

    def __init__(self, model: MiniGPT4, compiled: bool) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.llama_proj.parameters(), lr=1e-4)
        model.choose_packing("on")
        model.packed = False
        if compiled:
            compile_layers(model)

    def step(self, mode: str, batch: Batch) -> None:
        """A whole step; with ``compiled`` layers or as they were written."""
        config = self.model.llama_model.config
        config._attn_implementation = "eager" if mode == "original" else "sdpa"
        self.model.packed = mode in ("packed", "compiled")
        stance: AbstractContextManager[Any] = (
            nullcontext() if mode == "compiled" else torch.compiler.set_stance("force_eager")
        )
        loss_of: Callable[[], torch.Tensor] = (
            (lambda: original_loss(self.model, batch))
            if mode == "original"
            else (lambda: self.model(*batch))
        )
        with stance:
            self.optimizer.zero_grad()
            loss_of().backward()
            self.optimizer.step()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def matrix_product_flops(device: torch.device) -> float:
    """Floating-point operations a second of a square product, the best of ten."""
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def once() -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return 2 * side**3 / min(once() for _ in range(10))


def measure(
    steps: Steps, size: Size, stage: int, modes: Sequence[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each mode."""
    model, drawn = steps.model, random.Random(arguments.seed)
    rows = arguments.batch or BATCH[stage]
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    memory, tokens, flops = dict.fromkeys(modes, 0), [], 0
    for repeat in range(arguments.repeats + 2):  # the first two warm up, and compile
        batch = draw(model, size, stage, rows, drawn)
        for mode in modes:
            if model.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            before, start = model.positions, time.perf_counter()
            steps.step(mode, batch)
            if repeat >= 2:
                seconds[mode].append(time.perf_counter() - start)
            if mode == "packed":
                tokens.append(model.positions - before)
            if model.device.type == "cuda":
                memory[mode] = max(memory[mode], torch.cuda.max_memory_allocated())
    with FlopCounterMode(display=False) as counter:
        steps.step("packed", draw(model, size, stage, rows, random.Random(arguments.seed)))
    flops = counter.get_total_flops()
    ceiling = matrix_product_flops(model.device)
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    real = statistics.mean(tokens)
    return [
        {
            "stage": stage,
            "mode": mode,
            "samples_per_second": rows / medians[mode],
            "tokens_per_second": real / medians[mode],
            "share_of_ceiling": flops / medians[mode] / ceiling,
            "peak_memory_bytes": memory[mode],
            "ratio": medians["original"] / medians[mode],
        }
        for mode in modes
    ]


def missed(rows: Sequence[dict[str, Any]], size: Size) -> list[str]:
    """Bars that were missed, or that nothing was measured for."""
    found = {(row["stage"], row["mode"]): row for row in rows}
    lines = []
    for stage, bars in size.bars.items():
        for name, bar in bars.items():
            mode = "compiled" if name.startswith("compiled") else "packed"
            figure = "ratio" if name.endswith("ratio") else "samples_per_second"
            row = found.get((stage, mode))
            if row is None:
                lines.append(f"stage {stage}, {mode}: not measured")
            elif row[figure] < bar:
                lines.append(f"stage {stage}, {mode}: {figure} {row[figure]:.2f} is below {bar}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument(
        "--modes",
        nargs="*",
        choices=MODES,
        default=MODES,
        help="beside these two: original, packed",
    )
    parser.add_argument("--batch", type=int, help="default: 64 in stage 1, 12 in stage 2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or (arguments.batch or 1) < 1:
        raise ConfigError("--repeats and --batch must be at least 1")
    device, size = choose_device(arguments.device), SIZES[arguments.size]
    torch.manual_seed(arguments.seed)
    modes = [mode for mode in MODES if mode in {"original", "packed", *arguments.modes}]
    steps = Steps(build(size, device), "compiled" in modes)
    rows: list[dict[str, Any]] = []
    print(f"{arguments.size} on {device}, medians of {arguments.repeats}")
    print("stage mode       samples/s   tokens/s  of ceiling  peak memory   ratio")
    for stage in dict.fromkeys(arguments.stages):
        for row in measure(steps, size, stage, modes, arguments):
            rows.append(row)
            peak = f"{row['peak_memory_bytes'] / 1e9:8.1f} GB" if row["peak_memory_bytes"] else "–"
            print(
                f"{stage:>5} {row['mode']:<9} {row['samples_per_second']:>10.1f} "
                f"{row['tokens_per_second']:>10.0f} {row['share_of_ceiling']:>10.0%} "
                f"{peak:>12} {row['ratio']:>7.2f}"
            )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    lines = missed(rows, size)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
