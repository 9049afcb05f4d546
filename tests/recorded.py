"""Recorded cases of the original: a folder of numbers → our model, its modes, how far they differ.

Works for any folder that holds ``case.json``, ``weights.safetensors`` and ``tensors.safetensors``;
``tests/golden/`` has some of them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.checkpoint import (
    convert_language_model,
    convert_q_former,
    convert_visual_encoder,
    load_into,
)
from minigpt4.models.minigpt4 import MiniGPT4, target_loss
from minigpt4.models.q_former import QFormerSize, build_q_former
from minigpt4.models.splice import IGNORED, Spliced
from minigpt4.models.tokenizer import SentencePieceTokenizer
from minigpt4.models.visual_encoder import (
    VisualEncoderSize,
    build_ln_vision,
    build_visual_encoder,
)

GOLDEN = Path(__file__).parent / "golden"

RTOL, ATOL = 1e-4, 1e-5
LOGITS_ATOL = 1e-4
LOSS_ATOL = 1e-5
GRADIENT_SHARE = 1e-5  # of the largest entry

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """One figure: the worst error and how much of the allowed error it is (1 is the limit)."""

    what: str
    error: float
    share: float

    @property
    def holds(self) -> bool:
        return self.share <= 1.0  # False for nan


@dataclass(frozen=True)
class Mode:
    """One batch that the original was run on, and what it computed."""

    name: str
    texts: list[str]
    prompts: list[str] | None
    end_sym: str
    max_txt_len: int
    image: torch.Tensor | None
    pad_id: int
    loss: float
    expected: Tensors


@dataclass(frozen=True)
class Case:
    """One recorded model."""

    name: str
    facts: dict[str, Any]
    weights: Tensors
    tensors: Tensors
    tokenizer_file: Path

    def modes(self) -> list[Mode]:
        found = []
        for name, facts in self.facts["modes"].items():
            shared = facts["prompts_given"] * len(facts["texts"]) or None
            start = f"{name}."
            found.append(
                Mode(
                    name,
                    facts["texts"],
                    facts["instruction_input"] or shared,
                    facts["end_sym"],
                    facts["max_txt_len"],
                    self.tensors["image"][: facts["n_images"]] if facts["uses_image"] else None,
                    self.facts["pad_token_id"],
                    facts["loss"],
                    part(self.tensors, start),
                )
            )
        return found

    def mode(self, name: str) -> Mode:
        return next(mode for mode in self.modes() if mode.name == name)


def load_case(folder: Path) -> Case:
    """The case of a folder; its tokenizer is looked up beside the folder."""
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    return Case(
        folder.name,
        facts,
        load_file(folder / "weights.safetensors"),
        load_file(folder / "tensors.safetensors"),
        folder.parent / facts["tokenizer"],
    )


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The entries under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def build_model(case: Case) -> MiniGPT4:
    """Our model with the case's weights in it, on the CPU in fp32."""
    dims, weights, name = case.facts["dims"], case.weights, case.name
    vit = dims["vit"]
    size = VisualEncoderSize(
        vit["patch_size"], vit["embed_dim"], vit["depth"], vit["num_heads"], vit["mlp_ratio"]
    )
    encoder = build_visual_encoder(vit["img_size"], size)
    load_into(encoder, convert_visual_encoder(part(weights, "visual_encoder."), size.depth), name)
    ln_vision = build_ln_vision(size.embed_dim)
    load_into(ln_vision, part(weights, "ln_vision."), name)
    q_former = queries = None
    if dims["qformer"] is not None:
        q_former = build_q_former(size.embed_dim, _q_former_size(dims["qformer"]))
        load_into(q_former, convert_q_former(weights), name)
        queries = weights["query_tokens"]
    language_model = LlamaForCausalLM(LlamaConfig(**dims["llama"]))
    load_into(language_model, convert_language_model(weights), name)
    tokenizer = SentencePieceTokenizer(case.tokenizer_file)
    model = MiniGPT4(encoder, ln_vision, q_former, queries, language_model, tokenizer)
    load_projection(model, part(weights, "llama_proj."), name)
    return model


def load_projection(model: MiniGPT4, weights: Tensors, origin: str) -> None:
    """Start the projection from a copy: training writes into the tensors it was given."""
    load_into(model.llama_proj, {name: value.clone() for name, value in weights.items()}, origin)


def _q_former_size(dims: dict[str, Any]) -> QFormerSize:
    return QFormerSize(
        hidden_size=dims["hidden_size"],
        num_hidden_layers=dims["num_hidden_layers"],
        num_attention_heads=dims["num_attention_heads"],
        intermediate_size=dims["intermediate_size"],
        cross_attention_frequency=dims["cross_attention_freq"],
    )


def splice_mode(model: MiniGPT4, mode: Mode) -> Spliced:
    """The rows that our model reads in a mode."""
    model.max_txt_len, model.end_sym = mode.max_txt_len, mode.end_sym
    return model.splice_batch(mode.image, mode.texts, mode.prompts)


def compare_vision(model: MiniGPT4, case: Case) -> list[Comparison]:
    """Every stage from pixels to image tokens, on the images of the first mode."""
    tensors = case.tensors
    image = tensors["image"][: len(tensors["vit_out"])]
    with torch.no_grad():
        patches = model.visual_encoder.forward_features(image)  # type: ignore[operator]
        normed = _normed_patches(model, image)
        results = [
            compare("vit_out", patches, tensors["vit_out"]),
            compare("ln_vision_out", normed, tensors["ln_vision_out"][:, -normed.shape[1] :]),
        ]
        if "qformer_out" in tensors:
            results.append(
                compare("qformer_out", model.encode_frozen(image), tensors["qformer_out"])
            )
        results.append(compare("img_tokens", model.encode_img(image), tensors["img_tokens"]))
    return results


def _normed_patches(model: MiniGPT4, image: torch.Tensor) -> torch.Tensor:
    """What ``ln_vision`` gives on the way; without a Q-Former the class token is gone by then."""
    if model.q_former is None:
        grouped = model.encode_frozen(image)
        return grouped.reshape(len(image), -1, model.ln_vision.normalized_shape[0])
    seen: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.append(inputs["encoder_hidden_states"])

    handle = model.q_former.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.encode_frozen(image)
    finally:
        handle.remove()
    return seen[0]


def compare_mode(model: MiniGPT4, mode: Mode) -> list[Comparison]:
    """Rows, logits, loss and gradients of a mode, row by row over real positions.

    The original's loss skips answer tokens that equal its pad token, ours does not. Here such
    tokens are skipped on our side too; :func:`pad_like_targets` counts them.
    """
    model.zero_grad()
    spliced = splice_mode(model, mode)
    logits = model.logits(spliced)
    expected = mode.expected
    real = [mask.bool() for mask in expected["attention_mask"]]
    lengths = [int(mask.sum()) for mask in real]
    results = [_equal(f"{mode.name}: lengths", spliced.lengths, lengths)]
    if spliced.lengths != lengths:
        return results
    targets = spliced.targets.clone()
    for row, column in pad_like_targets(spliced, mode):
        targets[row, column] = IGNORED
    theirs = {
        key: [expected[key][row][mask] for row, mask in enumerate(real)]
        for key in ("inputs_embeds", "targets", "logits")
    }
    results += [
        _compare_rows(f"{mode.name}: inputs_embeds", spliced.embeds, theirs["inputs_embeds"]),
        _equal(
            f"{mode.name}: targets",
            [row[:length].tolist() for row, length in zip(targets, lengths, strict=True)],
            [row.tolist() for row in theirs["targets"]],
        ),
        _compare_rows(f"{mode.name}: logits", logits, theirs["logits"], LOGITS_ATOL),
    ]
    loss = target_loss(logits, targets)
    error = abs(loss.item() - mode.loss)
    results.append(Comparison(f"{mode.name}: loss", error, error / LOSS_ATOL))
    gradients = part(expected, "grad.llama_proj.")
    if gradients:
        loss.backward()
    for name, gradient in gradients.items():
        ours = getattr(model.llama_proj, name).grad
        error = (ours - gradient).abs().max().item()
        allowed = GRADIENT_SHARE * gradient.abs().max().item()
        results.append(Comparison(f"{mode.name}: gradient of {name}", error, error / allowed))
    return results


def pad_like_targets(spliced: Spliced, mode: Mode) -> list[tuple[int, int]]:
    """Row and column of the answer tokens that the original takes for padding."""
    pads = (spliced.targets == mode.pad_id).nonzero().tolist()
    places = []
    for row, column in pads:
        real = mode.expected["attention_mask"][row].bool()
        recorded = mode.expected["targets"][row][real]
        if column < len(recorded) and recorded[column] == IGNORED:
            places.append((row, column))
    return places


def compare(
    what: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float | None = None
) -> Comparison:
    """``|ours - theirs|`` against ``atol + RTOL * |theirs|``.

    Where all recorded values are small (below 1), so is the default ``atol``.
    """
    if ours.shape != theirs.shape:
        return Comparison(f"{what} (shape)", math.inf, math.inf)
    if atol is None:
        atol = ATOL * min(1.0, theirs.abs().max().item())
    error = (ours - theirs).abs()
    return Comparison(what, error.max().item(), (error / (atol + RTOL * theirs.abs())).max().item())


def _compare_rows(
    what: str, ours: torch.Tensor, theirs: Sequence[torch.Tensor], atol: float | None = None
) -> Comparison:
    pieces = [row[: len(real)] for row, real in zip(ours, theirs, strict=True)]
    return compare(what, torch.cat(pieces), torch.cat(list(theirs)), atol)


def _equal(what: str, ours: object, theirs: object) -> Comparison:
    return Comparison(what, 0.0, 0.0) if ours == theirs else Comparison(what, math.inf, math.inf)


def failures(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for every comparison that does not hold."""
    return [
        f"{result.what}: error {result.error:.3g}, {result.share:.3g} times what is allowed"
        for result in comparisons
        if not result.holds
    ]
