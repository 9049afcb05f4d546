"""Model cases: ``case.json``, ``weights.safetensors``, ``tensors.safetensors`` → our model.

Activations of the towers, and for each mode rows, logits, loss and gradients.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.models.llm_input import IGNORED, IMAGE_MARK, Spliced, target_logits, target_loss
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import SentencePieceTokenizer
from minigpt4.models.towers import PATCHES_PER_TOKEN, QFormerSize, Towers, build_q_former
from minigpt4.models.vision_towers.eva import (
    VisualEncoderSize,
    build_visual_encoder,
    convert_visual_encoder,
)
from minigpt4.weights.checkpoint import load_into, load_trained
from minigpt4.weights.names import convert_q_former
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.comparison import (
    LOGITS_ATOL,
    LOSS_ATOL,
    SHARE,
    Comparison,
    Recorded,
    Unit,
    compare,
    equal,
    files_of,
    within,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Mode:
    """One batch that the original was run on, and what it computed."""

    name: str
    facts: dict[str, Any]
    prompts: list[str] | None
    image: torch.Tensor
    pad_id: int
    expected: Tensors

    @property
    def texts(self) -> list[str]:
        texts: list[str] = self.facts["texts"]
        return texts

    @property
    def lengths(self) -> list[int]:
        return [int(mask.sum()) for mask in self.expected["attention_mask"]]


@dataclass(frozen=True)
class Case:
    """One recorded model."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / "case.json").read_text(encoding="utf-8"))
        return facts

    @cached_property
    def weights(self) -> Recorded:
        return Recorded(self.folder / "weights.safetensors")

    @cached_property
    def tensors(self) -> Recorded:
        return Recorded(self.folder / "tensors.safetensors")

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer's place is told from the folder above."""
        return self.folder.parent / str(self.facts["tokenizer"])

    @property
    def first_release(self) -> bool:
        """The original's first release (v1), not its last state (main)."""
        return str(self.facts["upstream_version"]).startswith("v1")

    def modes(self) -> Iterator[Mode]:
        for name, facts in self.facts["modes"].items():
            shared = facts["prompts_given"] * len(facts["texts"]) or None
            image = self.tensors["image"][: facts["n_images"] if facts["uses_image"] else 0]
            yield Mode(
                name,
                facts,
                facts["instruction_input"] or shared,
                image,
                self.facts["pad_token_id"],
                self.tensors.part(f"{name}."),
            )


def find_cases(folder: Path) -> list[Case]:
    return [Case(file.parent) for file in files_of(folder, "case.json")]


def one_case(
    small_activations: bool | None = None,
    q_former: bool | None = None,
    first_release: bool | None = None,
) -> Case:
    """The first of our recorded cases with these properties."""
    for case in find_cases(GOLDEN):
        own = (
            case.facts["small_activation_scaling"],
            case.facts["dims"]["qformer"] is not None,
            case.first_release,
        )
        wanted = (small_activations, q_former, first_release)
        if all(want is None or want == have for want, have in zip(wanted, own, strict=True)):
            return case
    raise AssertionError("no recorded case is of this kind")


def find_models(folder: Path) -> Iterator[Unit]:
    for case in find_cases(folder):
        names = ("case.json", "weights.safetensors", "tensors.safetensors")
        files = {case.folder / name for name in names} | {case.tokenizer_file}
        yield Unit(case.name, "model", frozenset(files), partial(compare_case, case))


def build_model(case: Case) -> MiniGPT4:
    """Our model with the case's weights in it, on the CPU in fp32.

    The weights take the way of users' files: conversion by name, strict loading.
    """
    dims, weights, name = case.facts["dims"], case.weights, case.name
    vit = dims["vit"]
    size = VisualEncoderSize(
        vit["patch_size"], vit["embed_dim"], vit["depth"], vit["num_heads"], vit["mlp_ratio"]
    )
    encoder = build_visual_encoder(vit["img_size"], size)
    load_into(encoder, convert_visual_encoder(weights.part("visual_encoder."), size.depth), name)
    ln_vision = nn.LayerNorm(size.embed_dim)
    load_into(ln_vision, weights.part("ln_vision."), name)
    q_former, queries, width = None, None, PATCHES_PER_TOKEN * size.embed_dim
    if dims["qformer"] is not None:
        q_former = build_q_former(size.embed_dim, q_former_size(dims["qformer"]))
        part = weights.part("Qformer.")
        load_into(
            q_former, convert_q_former({f"Qformer.{n}": value for n, value in part.items()}), name
        )
        queries, width = weights["query_tokens"], q_former.config.hidden_size
    language_model = LlamaForCausalLM(LlamaConfig(**dims["llama"]))
    part = weights.part("llama_model.")
    load_into(language_model, without_frequencies(part), name)
    tokenizer = SentencePieceTokenizer(case.tokenizer_file)
    towers = Towers(encoder, ln_vision, q_former, queries, torch.float32)
    model = MiniGPT4(towers, language_model, tokenizer, width)
    saved = case.facts["checkpoint_keys_saved_by_upstream_filter"]
    load_trained(model, {"model": {n: weights[n] for n in saved}}, name)
    return model


def without_frequencies(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """A language model's weights without those that transformers computes."""
    return {n: value for n, value in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def q_former_size(dims: dict[str, Any]) -> QFormerSize:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return QFormerSize(*(dims[name] for name in (*names, "cross_attention_freq")))


def compare_case(case: Case) -> list[Comparison]:
    """Everything that is recorded of a model, its generation included."""
    from tests.helpers.recorded.generation import compare_generation

    model = build_model(case)
    results = [*compare_facts(model, case), *compare_vision(model, case)]
    for mode in case.modes():
        results += compare_mode(model, mode)
    results += compare_generation(model, case)
    return [*results, case.weights.all_read(), case.tensors.all_read()]


def compare_facts(model: MiniGPT4, case: Case) -> list[Comparison]:
    """Special tokens, buffers, and what the original's checkpoints hold."""
    facts, tokenizer, weights = case.facts, model.tokenizer, case.weights
    ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.piece(facts["pad_token_id"])]
    saved = facts["checkpoint_keys_saved_by_upstream_filter"]
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    buffers = [name for name in weights if name.endswith(("position_ids", "rotary_emb.inv_freq"))]
    own_frequencies = model.llama_model.model.rotary_emb.inv_freq
    results = [
        equal(
            "special tokens",
            ids,
            [facts["bos_token_id"], facts["eos_token_id"], facts["pad_token"]],
        ),
        equal("names of the buffers", sorted(buffers), sorted(facts["buffers_in_state_dict"])),
        equal("names in a checkpoint", sorted(trained + buffers), sorted(saved)),
        equal("shapes in a checkpoint", {n: list(weights[n].shape) for n in saved}, saved),
    ]
    for name in buffers:
        if name.endswith("inv_freq"):
            results.append(compare(name, own_frequencies, weights[name]))
        else:
            positions = torch.arange(weights[name].numel())[None]
            results.append(equal(name, positions.tolist(), weights[name].tolist()))
    return results


def compare_vision(model: MiniGPT4, case: Case) -> list[Comparison]:
    """Every stage from pixels to image tokens, on the images of the first mode."""
    tensors = case.tensors
    image = tensors["image"][: len(tensors["vit_out"])]
    with torch.no_grad():
        encoder: Any = model.visual_encoder
        patches = encoder.forward_features(image)
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
        assert model.ln_vision is not None
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


def splice_mode(model: MiniGPT4, mode: Mode) -> Spliced:
    """The rows that our model reads in a mode."""
    model.max_txt_len, model.end_sym = mode.facts["max_txt_len"], mode.facts["end_sym"]
    return model.splice_batch(mode.image, model.stage_rows(mode.texts, mode.prompts))


def compare_mode(model: MiniGPT4, mode: Mode) -> list[Comparison]:
    """Ids, rows, logits, loss and gradients of a mode, row by row over real positions.

    The original's loss skips answer tokens that equal its pad token, ours does not. Such tokens are
    skipped on our side for the comparison; one more figure states the departure and checks it.
    """
    results = _compare_ids(model, mode)
    model.zero_grad()
    spliced = splice_mode(model, mode)
    expected, lengths = mode.expected, mode.lengths
    results.append(equal("lengths", spliced.lengths, lengths))
    if spliced.lengths != lengths:
        return _under(mode, results)
    results += _compare_padding(model, mode)
    logits = model.logits(spliced)
    targets = spliced.targets.clone()
    skipped = pad_like_targets(spliced, mode)
    for row, column in skipped:
        targets[row, column] = IGNORED

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        """Real positions only, one behind the other."""
        return torch.cat([row[:length] for row, length in zip(tensor, lengths, strict=True)])

    results += [
        compare("inputs_embeds", rows(spliced.embeds), rows(expected["inputs_embeds"])),
        equal("targets", rows(targets).tolist(), rows(expected["targets"]).tolist()),
        compare("logits", rows(logits), rows(expected["logits"]), LOGITS_ATOL),
    ]
    loss = target_loss(*target_logits(logits, targets))
    for recorded in (mode.facts["loss"], expected["loss"].item()):
        results.append(within("loss", abs(loss.item() - recorded), LOSS_ATOL))
    if "loss_per_sample_reduction_none" in expected:
        results.append(
            compare(
                "loss_per_sample_reduction_none",
                _loss_per_sample(logits.detach(), targets, expected["targets"].shape[1]),
                expected["loss_per_sample_reduction_none"],
            )
        )
    gradients = {n: v for n, v in expected.items() if n.startswith("grad.llama_proj.")}
    if gradients:
        loss.backward()
    for name, gradient in gradients.items():
        ours = model.llama_proj.get_parameter(name.rpartition(".")[2]).grad
        assert ours is not None
        error = (ours - gradient).abs().max() / gradient.abs().max()
        results.append(within(f"{name} (of its largest entry)", error.item(), SHARE))
    results.append(_compare_forward(model, mode, spliced, len(skipped)))
    return _under(mode, results)


def _under(mode: Mode, results: Sequence[Comparison]) -> list[Comparison]:
    return [
        Comparison(f"{mode.name}: {r.what}", r.error, r.share, r.limit, r.note) for r in results
    ]


def _compare_ids(model: MiniGPT4, mode: Mode) -> list[Comparison]:
    encode, facts = model.tokenizer.encode, mode.facts
    prompts = facts["instruction_input"] or facts["prompts_given"]
    segments = [[encode(part) for part in prompt.split(IMAGE_MARK)] for prompt in prompts]
    texts = [encode(text + facts["end_sym"]) for text in mode.texts]
    return [
        equal("token ids of texts", texts, facts["text_token_ids"]),
        equal("token ids of prompts", segments, facts["prompt_segment_token_ids"]),
    ]


def _compare_padding(model: MiniGPT4, mode: Mode) -> list[Comparison]:
    """The recording pads on the right with its pad token, which is never a target."""
    expected = mode.expected
    real = torch.arange(expected["targets"].shape[1]) < torch.tensor(mode.lengths)[:, None]
    pad = model.embed_tokens(torch.tensor([mode.pad_id]))
    padded = expected["inputs_embeds"][~real]
    results = [
        equal("shape", list(expected["inputs_embeds"].shape), mode.facts["shape"]),
        equal("attention_mask", real.long().tolist(), expected["attention_mask"].tolist()),
        equal("padding is no target", True, bool((expected["targets"][~real] == IGNORED).all())),
    ]
    if len(padded):
        results.append(compare("padded embeddings", pad.expand_as(padded), padded))
    return results


def _loss_per_sample(logits: torch.Tensor, targets: torch.Tensor, width: int) -> torch.Tensor:
    """The original's reduction "none": a mean over ``width`` - 1 positions, ignored ones are 0."""
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(targets), -1).sum(1) / (width - 1)


def _compare_forward(model: MiniGPT4, mode: Mode, spliced: Spliced, departures: int) -> Comparison:
    """``forward`` gives the loss that our targets have on the recorded logits.

    Where an answer token looks like padding, that is our departure: its size is told.
    """
    with torch.no_grad():
        own = model(mode.image, model.stage_rows(mode.texts, mode.prompts)).item()
    # The original may pad more than the longest row needs.
    recorded = mode.expected["logits"][:, : spliced.targets.shape[1]]
    wanted = target_loss(*target_logits(recorded, spliced.targets)).item()
    departure = f"{departures} more target than the original, loss {own:.4f}"
    note = f"departure: {departure}, recorded {mode.facts['loss']:.4f}" if departures else ""
    result = within("loss of forward", abs(own - wanted), LOSS_ATOL)
    return Comparison(result.what, result.error, result.share, result.limit, note)


def pad_like_targets(spliced: Spliced, mode: Mode) -> list[tuple[int, int]]:
    """Row and column of the answer tokens that the original takes for padding."""
    recorded = mode.expected["targets"][:, : spliced.targets.shape[1]]
    if recorded.shape != spliced.targets.shape:
        return []
    places = (spliced.targets == mode.pad_id) & (recorded == IGNORED)
    return [(row, column) for row, column in places.nonzero().tolist()]
