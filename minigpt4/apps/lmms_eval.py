"""lmms-eval: the chat as its model ``minigpt4``.

Only lmms-eval loads this file, by the entry point in pyproject.toml.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, TypeVar

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from minigpt4.apps.short_answers import check_form, short_answer
from minigpt4.chat import Chat, load_chat
from minigpt4.chat.likelihood import choice_likelihoods
from minigpt4.conversation import IMAGE_TEXT, plain_text
from minigpt4.conversation.options import GenerationOptions, change_options
from minigpt4.errors import ConfigError, DataError

_IMAGE = "<image>"  # where a task's text has a picture, if it says so

Question = tuple[str, list[Image.Image]]  # words, and the pictures they are about
T = TypeVar("T")


def manifest() -> ModelManifest:
    return ModelManifest("minigpt4", simple_class_path=f"{__name__}.EvaluatedChat")


class EvaluatedChat(lmms):
    """A chat that answers lmms-eval's requests, in batches.

    Args:
        cfg_path: Evaluation YAML, e.g. ``eval_configs/minigpt4_eval.yaml``.
        batch_size: Number of questions read together.
        max_batch_size: Not used; lmms-eval passes it to every model.
        device: ``cuda``, ``cuda:1``, ``cpu`` or ``auto``.
        answer: Form of answers for tasks that compare the whole text: ``whole`` leaves it;
            ``yes_no`` and ``letter`` as in :func:`short_answer`.
        **options: Keys of the YAML, such as ``model.ckpt``.
    """

    is_simple = True

    def __init__(
        self,
        cfg_path: str,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        device: str | None = None,
        answer: str = "whole",
        **options: Any,
    ) -> None:
        super().__init__()
        self._form = check_form(answer)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(
                f"--batch_size {batch_size}: name a number; there is no automatic one"
            )
        self._batch_size = int(batch_size)
        kind, _, number = (device or "auto").partition(":")
        gpu = int(number or os.environ.get("LOCAL_RANK", "0"))
        given = [f"{key}={value}" for key, value in options.items()]
        self._chat: Chat = load_chat(str(cfg_path), given, kind, gpu)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Device of the tensors that lmms-eval sends between processes."""
        return self._chat.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers = []
        with self._progress(len(requests)) as progress:
            for given, alike in groupby(requests, key=lambda request: request.args[1]):
                for batch in self._batches([*alike]):
                    asked = [self._question(*request.args) for request in batch]
                    answers += self._answer(asked, given)
                    progress.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return each continuation's mean loss, and whether it is greedy.

        lmms-eval takes the choice with the least number, as its own models return losses. An answer
        includes its end in the template, but not a space before it.
        """
        found = []
        # The choices of a question follow each other: it is read once for all of them.
        questions = groupby(requests, key=lambda request: (request.args[0], request.args[3:]))
        with self._progress(len(requests)) as progress:
            for batch in self._batches([[*choices] for _, choices in questions]):
                prompts, images = self._prompts([self._question(*c[0].args) for c in batch])
                choices = [[self._continuation(*one.args) for one in own] for own in batch]
                scored = choice_likelihoods(self._chat, prompts, images, choices)
                for one in chain.from_iterable(scored):
                    # Out of this wrapping, lmms-eval 0.7.3 would make a text of the pair.
                    pair: Any = (-one.log_probability / one.tokens, one.greedy)
                    found.append(GenerationResult(pair))
                progress.update(sum(map(len, batch)))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Return the answers of all rounds; after each, the task gives the next question."""
        found = []
        for request in tqdm(requests, disable=self.rank != 0):
            context, given, to_visuals, to_next, *place = request.args
            row = self._row(*place)
            question = (context, _pictures(to_visuals(row)))
            answers, memory, done = list[str](), None, False
            while not done:
                answers += self._answer([question], given)
                visuals, context, done, said, memory = to_next(
                    row, previous_output=answers, round_idx=len(answers), previous_round_info=memory
                )
                question, answers = (context, _pictures(visuals)), [*said]
            found.append(answers)
        return found

    def _progress(self, total: int) -> Any:
        return tqdm(total=total, disable=self.rank != 0, desc="minigpt4")

    def _batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        for start in range(0, len(items), self._batch_size):
            yield items[start : start + self._batch_size]

    def _row(self, number: int, task: str, split: str) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self.task_dict[task][split][number]
        return row

    def _question(self, context: str, _: Any, to_visuals: Any, *place: Any) -> Question:
        return context, _pictures(to_visuals(self._row(*place)))

    def _continuation(self, _: str, text: Any, __: Any, *place: Any) -> str:
        answer = str(text(self._row(*place)) if callable(text) else text).strip()
        template = self._chat.template
        return answer + (template.behind_answer or next(iter(template.stops), ""))

    def _answer(self, questions: Sequence[Question], given: Mapping[str, Any]) -> list[str]:
        options = _options(self._chat.options, given)
        until = given.get("until") or []
        stops = (*self._chat.template.stops, *([until] if isinstance(until, str) else until))
        prompts, images = self._prompts(questions)
        texts = self._chat.generate(prompts, images, stops, options)
        return [short_answer(text, self._form) for text in texts]

    def _prompts(self, questions: Sequence[Question]) -> tuple[list[str], list[list[torch.Tensor]]]:
        """Return prompts as the chat writes them, and the encoded images of each."""
        pictures = [picture for _, own in questions for picture in own]
        encoded = iter(self._chat.encode_images(pictures) if pictures else ())
        prompts = [self._prompt(context, len(own)) for context, own in questions]
        return prompts, [[next(encoded) for _ in own] for _, own in questions]

    def _prompt(self, context: str, pictures: int) -> str:
        controls = (*self._chat.template.forbidden, *self._chat.model.tokenizer.special)
        words = [plain_text(part, controls).strip() for part in context.split(_IMAGE)]
        conversation = self._chat.start().conversation
        if len(words) - 1 == pictures:
            conversation.ask(f" {IMAGE_TEXT} ".join(words).strip())
        else:  # the text does not say where they stand: before it
            for _ in range(pictures):
                conversation.add_image()
            conversation.ask(" ".join(filter(None, words)))
        return conversation.prompt()


def _pictures(visuals: Any) -> list[Image.Image]:
    shown = [] if visuals is None else [*visuals]
    for one in shown:
        if not isinstance(one, Image.Image):
            kind = type(one).__name__
            raise DataError(f"the task shows a {kind}; this model looks at pictures only")
    return shown


def _options(options: GenerationOptions, given: Mapping[str, Any]) -> GenerationOptions:
    """Return the chat's options with a task's; without sampling unless the task asks for it."""
    temperature = given.get("temperature")
    sample = bool(given.get("do_sample", temperature)) and temperature != 0
    names = ["num_beams", *(("temperature", "top_p") if sample else ())]
    changes = {name: given[name] for name in names if given.get(name) is not None}
    # Tasks for models with longer contexts ask for more than fits into this one.
    longest = min(given.get("max_new_tokens") or options.max_new_tokens, options.max_length // 2)
    return change_options(options, {**changes, "do_sample": sample, "max_new_tokens": longest})
