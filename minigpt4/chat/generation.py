"""Generation: how an answer is generated, token by token, and where it ends."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from minigpt4.conversation.options import GenerationOptions
from minigpt4.errors import MiniGPT4Error
from minigpt4.models.llm_input import Segment, splice
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import SentencePieceTokenizer, Tokenizer

_TAIL = 16  # tokens decoded, at least, to see whether an answer has reached a stop text


class NonFiniteLogitsError(MiniGPT4Error):
    """The language model computed Inf or NaN in place of the next word."""


class FiniteLogits(LogitsProcessor):
    """Raise on NaN or Inf logits before sampling fails on the GPU."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # -Inf is how words are forbidden.
        if bool((scores.isnan() | (scores == torch.inf)).any()):
            fix = (
                "fp16 is too narrow for this model: add --options model.precision=bf16 (or fp32)"
                if self._dtype == torch.float16
                else "its weights or the projection hold such numbers; check them and load again"
            )
            place = input_ids.shape[1]
            raise NonFiniteLogitsError(f"Inf or NaN in word {place} of the answer: {fix}")
        return scores


@dataclass(eq=False)
class StopOnText(StoppingCriteria):
    """Ends rows that reached a stop text, and passes the text so far to a listener."""

    tokenizer: Tokenizer
    stops: Sequence[str]
    listen: Callable[[str], None] | None
    cancelled: threading.Event | None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = input_ids[:, len(first_ids(self.tokenizer)) :].tolist()
        if self.listen is not None:
            self.listen(self.tokenizer.decode(rows[0]))
        stop_now = self.cancelled is not None and self.cancelled.is_set()
        # A token is a byte at least, and the first one may belong to the text before.
        tail = max([_TAIL, *(1 + len(stop.encode()) for stop in self.stops)])
        ends = [self.tokenizer.decode(row[-tail:]) for row in rows]
        done = [stop_now or has_any(end, self.stops) for end in ends]
        return torch.tensor(done, device=input_ids.device)


def generate_ids(
    model: MiniGPT4,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    options: GenerationOptions,
    stops: Sequence[StoppingCriteria] = (),
    past: DynamicCache | None = None,
    ends: Sequence[int] = (),
    **outputs: Any,
) -> Any:
    """Return the ids ``[B, n]`` that the language model writes after ``embeds``.

    Args:
        model: Model in eval mode.
        embeds: Contexts ``[B, S, H]``, padded on the left.
        attention_mask: Mask ``[B, S]``, 1 on real positions.
        options: Options of the generation.
        stops: Criteria that end an answer, besides ``ends`` and the end-of-sequence token.
        past: Keys and values of the one context's beginning; holds all of it afterwards.
        ends: Tokens that end an answer.
        **outputs: Other outputs to return, as named by transformers' ``GenerationConfig``.

    Raises:
        NonFiniteLogitsError: for Inf or NaN.
    """
    # Because of this bos each row starts with first_ids, as in the original.
    first = torch.tensor([first_ids(model.tokenizer)] * len(embeds), dtype=torch.long)
    config = build_generation_config(options, model.tokenizer, ends)
    config.update(**outputs)
    if past is not None and options.num_beams > 1 and past.get_seq_length():
        past.batch_repeat_interleave(options.num_beams)
    given = {} if past is None else {"past_key_values": past}
    return model.llama_model.generate(  # type: ignore[operator]
        input_ids=first.to(embeds.device),
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(stops),
        logits_processor=LogitsProcessorList([FiniteLogits(model.compute_dtype)]),
        **given,
    )


def answer_ids(
    model: MiniGPT4,
    contexts: Sequence[Sequence[Segment]],
    stops: Sequence[str],
    options: GenerationOptions,
    listen: Callable[[str], None] | None = None,
    cancelled: threading.Event | None = None,
    past: DynamicCache | None = None,
) -> list[list[int]]:
    """Return the ids that are generated after each context.

    With one context ``listen`` may receive the text so far, ``cancelled`` may end the answer where
    it is, and ``past`` be what the language model has read of it.
    """
    spliced = splice(contexts, model.embed_tokens, model.device, pad_side="left")
    watch = StopOnText(model.tokenizer, stops, listen, cancelled)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    ends = end_ids(model, stops)
    ids = generate_ids(model, spliced.embeds, spliced.attention_mask, options, [watch], past, ends)
    answers: list[list[int]] = ids[:, len(first_ids(model.tokenizer)) :].tolist()
    return answers


def first_ids(tokenizer: Tokenizer) -> list[int]:
    """Return what generated ids start with, before the answer: bos, if there is one."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def end_ids(model: MiniGPT4, stops: Sequence[str]) -> list[int]:
    """Return the tokens that end an answer: eos, special ones of stop texts, and the model's."""
    tokenizer = model.tokenizer
    found = [tokenizer.eos_id]
    for word in tokenizer.special:
        if any(word in stop for stop in stops):
            found += tokenizer.encode(word)
    # Of LLaMA, early settings name others than tokenizer.model.
    if not isinstance(tokenizer, SentencePieceTokenizer):
        settings = model.llama_model.generation_config
        named = None if settings is None else settings.eos_token_id
        found += named if isinstance(named, list) else [] if named is None else [named]
    return list(dict.fromkeys(found))


def build_generation_config(
    options: GenerationOptions, tokenizer: Tokenizer, ends: Sequence[int] = ()
) -> GenerationConfig:
    given: dict[str, Any] = {}
    if options.do_sample:
        # top_k is the old default of transformers, which the original left in force.
        given = {"top_p": options.top_p, "top_k": 50, "temperature": options.temperature}
    if options.num_beams > 1:
        given["length_penalty"] = options.length_penalty
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        # Of the answer, its end counted; transformers' own min_length would count the prompt too.
        min_new_tokens=max(0, options.min_length - 1) or None,
        repetition_penalty=options.repetition_penalty,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=[*ends] if len(ends) > 1 else tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        cache_implementation="static" if options.static_cache else None,
        do_sample=options.do_sample,
        num_beams=options.num_beams,
        **given,
    )


def has_any(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def before_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text; all of it without one."""
    places = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(places, default=len(text))]


def cut_at(text: str, *stops: str) -> str:
    return before_stops(text, stops).strip()


def cut_growing(text: str, stops: Sequence[str]) -> str:
    """Return the same of a growing answer, which may end in part of a stop text or a character."""
    return hold_back(cut_at(text, *stops).rstrip("\ufffd"), stops)


def hold_back(text: str, stops: Sequence[str]) -> str:
    """Cut off an end of a growing text that may turn into a stop text, or be stripped."""
    ends = (stop[:length] for stop in stops for length in range(1, len(stop)))
    longest = max((len(end) for end in ends if text.endswith(end)), default=0)
    return text[: len(text) - longest].rstrip()
