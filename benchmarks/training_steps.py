"""Whole training steps on random weights: towers, language model, loss, backward, AdamW.

What the programs that measure steps share: sizes, batches, the ways to compute a step, memory.
Weights and inputs are made on the device; nothing is read or fetched.
"""

import os
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.models.language_model import decoder_layers
from minigpt4.models.llm_input import IGNORED, IMAGE_MARK
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.compiling import compile_layers
from minigpt4.models.speed.gradient_checkpointing import checkpoint_layers
from minigpt4.models.towers import QFormerSize, Towers, build_q_former, cast_to_half
from minigpt4.models.vision_towers.eva import (
    VisualEncoderSize,
    build_visual_encoder,
)

# Tokens before and behind the image, and (fewest, most) of an answer, drawn evenly: one prompt
# serves a whole batch. bos, 32 image tokens and the end symbol come to it: about 49 tokens a sample
# in stage 1 and 172 in stage 2, as recorded.
PROMPT = {1: (0, 0), 2: (7, 25)}
ANSWERS = {1: (4, 26), 2: (50, 160)}
Bars = dict[int, dict[str, dict[str, float]]]  # of each stage: mode → figure → least


@dataclass(frozen=True)
class Size:
    """Dimensions of a model, and what is asked of it.

    Attributes:
        batch: Of each stage.
        bars: The least that passes; those of 7B and 13B are for one H200.
        aims: Samples/s that are hoped for.
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
    batch: dict[int, int]
    bars: Bars = field(default_factory=dict)
    aims: dict[int, dict[str, float]] = field(default_factory=dict)


_SMALL_FORMER = QFormerSize(128, 2, 4, 512, 1)
_TINY_ENCODER = VisualEncoderSize(14, 128, 5, 4, 4.0)
_SMALL_ENCODER = VisualEncoderSize(14, 256, 6, 4, 4.0)
_RECORDED_BATCH = {1: 64, 2: 12}
SIZES = {
    "tiny": Size(112, 16, _TINY_ENCODER, _SMALL_FORMER, 160, 6, 432, 5, 640, {1: 8, 2: 4}),
    "small": Size(
        *(112, 32, _SMALL_ENCODER, _SMALL_FORMER, 512, 8, 1376, 8, 1000),
        batch={1: 24, 2: 6},
        bars={stage: {"packed": {"ratio": 1.1}} for stage in (1, 2)},
    ),
    "7b": Size(
        *(224, 32, VisualEncoderSize(), QFormerSize(), 4096, 32, 11008, 32, 32001),
        batch=_RECORDED_BATCH,
        bars={
            1: {"packed": {"samples_per_second": 293, "ratio": 1.15}, "compiled": {"ratio": 1.4}},
            2: {"packed": {"samples_per_second": 100}},
        },
        aims={1: {"compiled": 338, "cached": 500}, 2: {"compiled": 116}},
    ),
    "13b": Size(
        *(224, 32, VisualEncoderSize(), QFormerSize(), 5120, 40, 13824, 40, 32001),
        batch=_RECORDED_BATCH,
        bars={stage: {"packed": {"samples_per_second": bar}} for stage, bar in ((1, 176), (2, 54))},
        aims={1: {"compiled": 203}, 2: {"compiled": 63}},
    ),
}


@dataclass(frozen=True)
class Mode:
    """Which levers a step has.

    Attributes:
        sdpa: Fused attention; without, eager, all logits, and those in fp32: the original's way.
        packed: No padding, logits at targets only.
        prefix: What all samples begin with is computed once.
        compiled: Fused kernels, if the model's layers were compiled.
        cached: Towers are not run: the step reads their features.
        trainable: The language model's weights get gradients; no lever, a control.
        checkpointed: Its layers are computed anew in the backward; likewise.
    """

    sdpa: bool = True
    packed: bool = True
    prefix: bool = False
    compiled: bool = False
    cached: bool = False
    trainable: bool = False
    checkpointed: bool = False


MODES = {
    "original": Mode(sdpa=False, packed=False),
    "sdpa": Mode(packed=False),
    "packed": Mode(),
    "prefix": Mode(prefix=True),
    "compiled": Mode(prefix=True, compiled=True),
    "cached": Mode(prefix=True, compiled=True, cached=True),
    "trainable": Mode(trainable=True),
    "checkpointed": Mode(checkpointed=True),
}


class Numbers:
    """A tokenizer whose words are the ids themselves: lengths are what the benchmark says."""

    bos_id: int | None = 1
    eos_id = 2
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
        torch.set_default_dtype(dtype)  # not made in fp32 first: 13B would need 52 GB
        try:
            language_model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
        encoder = build_visual_encoder(size.image_size, size.encoder)
        cast_to_half(encoder, dtype)
        towers = Towers(
            encoder,
            nn.LayerNorm(size.encoder.embed_dim),
            build_q_former(size.encoder.embed_dim, size.q_former),
            torch.randn(1, size.queries, size.q_former.hidden_size) * 0.02,
            dtype,
        )
        model = MiniGPT4(
            towers,
            language_model,
            Numbers(size.vocabulary),
            size.q_former.hidden_size,
            max_txt_len=160,
            end_sym=" 2",
        )
    return model.to(device).train()


@dataclass(frozen=True)
class Inputs:
    """Of one step: ``pixels`` ``[B, 3, s, s]``, or ``features`` ``[B, Q, Dq]`` in their place."""

    pixels: torch.Tensor
    features: torch.Tensor
    answers: list[str]
    prompts: list[str] | None

    def image(self, mode: Mode) -> torch.Tensor:
        return self.features if mode.cached else self.pixels


def draw(
    model: MiniGPT4, size: Size, stage: int, lengths: Sequence[int], drawn: random.Random
) -> Inputs:
    """A batch whose answers have these lengths."""

    def words(count: int) -> str:
        return " ".join(str(drawn.randrange(3, size.vocabulary)) for _ in range(count))

    rows, side, device = len(lengths), size.image_size, model.device
    wide = size.q_former.hidden_size
    before, behind = PROMPT[stage]
    prompt = f"{words(before)} {IMAGE_MARK} {words(behind)}"
    return Inputs(
        pixels=torch.randn(rows, 3, side, side, device=device),
        features=torch.randn(rows, size.queries, wide, device=device, dtype=model.compute_dtype),
        answers=[words(length) for length in lengths],
        prompts=[prompt] * rows if stage == 2 else None,
    )


def draw_lengths(stage: int, rows: int, drawn: random.Random) -> list[int]:
    return [drawn.randint(*ANSWERS[stage]) for _ in range(rows)]


def original_loss(model: MiniGPT4, inputs: Inputs) -> torch.Tensor:
    """Padded, every position's logits, all of them in fp32."""
    spliced = model.splice_batch(inputs.pixels, model.stage_rows(inputs.answers, inputs.prompts))
    logits = model.logits(spliced).float()[:, :-1]
    targets = spliced.targets[:, 1:]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class Steps:
    """One model, trained by turns in every mode.

    Args:
        model: Its packing must be exact.
        compiled: Compile its layers for the modes that want it.
        averaged: What is done with the gradients before the optimizer's step.
    """

    def __init__(
        self,
        model: MiniGPT4,
        compiled: bool = False,
        averaged: Callable[[Sequence[torch.nn.Parameter]], None] = lambda _: None,
    ) -> None:
        self.model, self.averaged = model, averaged
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        model.choose_packing("on")
        if compiled:
            compile_layers(model)

    def step(self, mode: Mode, inputs: Inputs) -> None:
        """A whole step, to the end of what the device has to do for it."""
        with self._as(mode):
            if mode.sdpa:
                loss = self.model(
                    inputs.image(mode), self.model.stage_rows(inputs.answers, inputs.prompts)
                )
            else:
                loss = original_loss(self.model, inputs)
            loss.backward()
            self.averaged(self.trained)
            self.optimizer.step()
            self.model.zero_grad()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def _as(self, mode: Mode) -> Iterator[None]:
        model, language_model = self.model, self.model.llama_model
        language_model.config._attn_implementation = "sdpa" if mode.sdpa else "eager"
        language_model.requires_grad_(mode.trainable)
        model.packed, model.shares_prefix = mode.packed, mode.prefix
        if mode.checkpointed:
            checkpoint_layers(model)
        try:
            with nullcontext() if mode.compiled else torch.compiler.set_stance("force_eager"):
                yield
        finally:
            model.zero_grad()
            language_model.requires_grad_(False)
            if mode.checkpointed:
                for layer in decoder_layers(language_model):
                    del layer.forward

    def memory(self, mode: Mode, inputs: Inputs) -> int:
        """Bytes of the weights and inputs that a mode uses, and of what its step allocates."""
        model = self.model
        used = (model.llama_model, model.llama_proj) if mode.cached else (model,)
        weights = chain(*((*part.parameters(), *part.buffers()) for part in used))
        held = sum(tensor.nbytes for tensor in weights) + inputs.image(mode).nbytes
        return held + peak_memory(model.device, lambda: self.step(mode, inputs))


def peak_memory(device: torch.device, work: Callable[[], None]) -> int:
    """Bytes that torch holds at most beyond what it held before, while some work is done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profiler(profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak


def profiler(profile_memory: bool = False) -> profile:
    """torch's, without its remarks on a machine that has no GPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, profile_memory=profile_memory)


def about(device: torch.device, **more: Any) -> dict[str, Any]:
    """What figures are worth nothing without."""
    return {
        **more,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def described(facts: dict[str, Any]) -> str:
    """Those of :func:`about` in one line."""
    on = f"{facts['device']}, CPU threads: {facts['threads']}"
    return f"{facts['size']} on {on}, torch {facts['torch']}, {facts['date']}"
