"""Attention: an answer's tokens → how much each looks at every image token and at every patch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from minigpt4.chat import Chat, ImageInput, open_image
from minigpt4.chat.generation import answer_ids, cut_at
from minigpt4.errors import ConfigError, DataError
from minigpt4.models.language_model import learned_positions
from minigpt4.models.llm_input import Segment, splice
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.towers import PATCHES_PER_TOKEN
from minigpt4.tools.interpret.overlay import pixels_seen
from minigpt4.tools.interpret.words import shown_word


@dataclass(frozen=True)
class Attention:
    """Where the T tokens of an answer look, in N images of Q tokens each."""

    answer: str
    tokens: list[str]
    to_tokens: torch.Tensor  # [T, N, Q]: share of the attention to each image token
    maps: torch.Tensor  # [T, N, rows, columns]: the same, by patches of the image

    @property
    def image_share(self) -> torch.Tensor:
        """``[T]``: share of each token's attention that goes to images at all."""
        return self.to_tokens.sum(dim=(1, 2))


@torch.no_grad()
def attention_to_image(
    chat: Chat,
    images: Sequence[ImageInput],
    question: str,
    answer: str | None = None,
    layer: int | None = None,
) -> Attention:
    """Return where each token of an answer looks in the images.

    A token's row is that of the position *before* it, which predicts it: the mean over heads, and
    over the language model's layers unless one is chosen. With a Q-Former, an image token's share
    is distributed by its query's cross-attention to the patches, without the class token's part;
    without one, an image token is four patches of a quarter each. Limits: docs/looks.md.

    Args:
        chat: Chat whose language model can return attention weights.
        images: Images before the question.
        question: Question, as in :meth:`minigpt4.chat.Chat.ask`.
        answer: Text to use instead of the model's own greedy answer.
        layer: Layer of the language model, from 0; None for the mean of all.
    """
    if not images:
        raise DataError("no image to look at; give one at least")
    if answer is not None and not answer.strip():
        raise DataError("the answer is empty; give a text to look at, or leave it to the model")
    _check_layer(layer, chat.model.llama_model.config.num_hidden_layers)
    prompt = _prompt_segments(chat, images, question)
    with chat.waiting.join():
        ids = _greedy_ids(chat, prompt) if answer is None else chat.model.tokenizer.encode(answer)
        _check_room(chat, prompt, len(ids))
        rows = answer_attention(chat.model, prompt, ids, layer)
        patches = patch_shares(chat.model, pixels_seen(chat, images))
    to_tokens = torch.stack([rows[:, list(place)] for place in image_positions(prompt)], dim=1)
    flat = torch.einsum("tnq,nqp->tnp", to_tokens, patches)
    side = math.isqrt(flat.shape[-1])
    tokenizer = chat.model.tokenizer
    return Attention(
        cut_at(tokenizer.decode(ids), *chat.template.stops),
        [shown_word(tokenizer, i) for i in ids],
        to_tokens,
        flat.unflatten(-1, (side, side)),
    )


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the attention that returns weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _prompt_segments(chat: Chat, images: Sequence[ImageInput], question: str) -> list[Segment]:
    """Return the chat's prompt up to the answer."""
    session = chat.start([([*map(open_image, images), question], "")])
    session.conversation.messages.pop()  # the empty answer
    return chat.model.prompt_segments(session.conversation.prompt(), session.images)


def _check_layer(layer: int | None, layers: int) -> None:
    if layer is not None and not 0 <= layer < layers:
        raise ConfigError(
            f"no layer {layer}: this language model has attention layers 0 to {layers - 1}"
        )


def _check_room(chat: Chat, prompt: Sequence[Segment], answer: int) -> None:
    """Refuse an ``answer`` of more tokens than fit."""
    most, taken = chat.options.max_length, sum(map(len, prompt)) + answer
    positions = learned_positions(chat.model.llama_model)
    longest = most if positions is None else min(most, positions)
    if taken > longest:
        raise DataError(
            f"question, images and answer take {taken} tokens, but only {longest} fit; ask less"
        )


def _greedy_ids(chat: Chat, prompt: Sequence[Segment]) -> list[int]:
    """Return the model's own answer, without the stop text."""
    decode, stops = chat.model.tokenizer.decode, chat.template.stops
    options = replace(chat.options, do_sample=False, num_beams=1)
    _check_room(chat, prompt, options.max_new_tokens)
    (ids,) = answer_ids(chat.model, [prompt], stops, options)
    answer = cut_at(decode(ids), *stops)
    while ids and cut_at(decode(ids[:-1]), *stops) == answer:
        ids.pop()
    return ids


@torch.no_grad()
def answer_attention(
    model: MiniGPT4, prompt: Sequence[Segment], ids: list[int], layer: int | None = None
) -> torch.Tensor:
    """Return ``[T, S]``: for each position that predicts an id, the shares of all S positions."""
    language_model = model.llama_model
    row = splice([[*prompt, ids]], model.embed_tokens, model.device)
    with eager_attention(language_model):
        output = language_model.base_model(
            inputs_embeds=row.embeds,
            attention_mask=row.attention_mask,
            use_cache=False,
            output_attentions=True,
        )
    # RWKV's "attentions" are not weights; hybrids have weights in some layers only.
    square = (row.lengths[0],) * 2
    found = getattr(output, "attentions", None) or ()
    weights = [w for w in found if w is not None and w.shape[2:] == square]
    if not weights:
        raise ConfigError(
            f"a {type(language_model).__name__} gives no attention weights: there is nothing to "
            "look at; nearest words need none"
        )
    _check_layer(layer, len(weights))
    first = sum(map(len, prompt)) - 1
    chosen = weights if layer is None else [weights[layer]]
    # One layer at a time: they may be on several devices.
    rows = [w[0, :, first : first + len(ids)].float().mean(0).cpu() for w in chosen]
    return torch.stack(rows).mean(0)


def image_positions(prompt: Sequence[Segment]) -> list[range]:
    """Return the positions of each image's tokens in a prompt."""
    found, position = [], 0
    for segment in prompt:
        if isinstance(segment, torch.Tensor):
            found.append(range(position, position + len(segment)))
        position += len(segment)
    return found


@torch.no_grad()
def patch_shares(model: MiniGPT4, pixels: torch.Tensor) -> torch.Tensor:
    """Return ``[N, Q, P]``: the shares of the patches in each image token.

    Pixels are ``[N, 3, s, s]``; patches are in row order.
    """
    former = model.q_former
    if former is None:
        own = torch.eye(model.encode_img(pixels.to(model.device)).shape[1]) / PATCHES_PER_TOKEN
        return own.repeat_interleave(PATCHES_PER_TOKEN, dim=1).expand(len(pixels), -1, -1)
    seen: list[tuple[torch.Tensor, ...]] = []

    def ask(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return args, options | {"output_attentions": True}

    def keep(_: Any, args: Any, output: Any) -> None:
        seen.append(output.cross_attentions)

    hooks = [
        former.register_forward_pre_hook(ask, with_kwargs=True),
        former.register_forward_hook(keep),
    ]
    try:
        with eager_attention(former):
            model.encode_img(pixels.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    (layers,) = seen
    return torch.stack([w.float().mean(1).cpu() for w in layers]).mean(0)[:, :, 1:]
