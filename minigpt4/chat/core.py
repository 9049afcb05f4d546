"""Chat: images and turns → an answer. The one inference core of page, terminal and evaluation.

Uses the same splice as training. An image is encoded once for each session.
"""

import logging
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from minigpt4.chat.generation import (
    GenerationOptions,
    Watch,
    change_options,
    cut_at,
    generate_ids,
)
from minigpt4.conversation import TEMPLATES, Conversation, Template
from minigpt4.datasets.samples import ToPixels, load_image
from minigpt4.errors import DataError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import IMAGE_MARK, splice

logger = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image


@dataclass
class ChatSession:
    """One chat's turns and encoded images; sessions share nothing but the model."""

    conversation: Conversation
    images: list[torch.Tensor] = field(default_factory=list)  # each [Q, H]


class Chat:
    """A model with its image processor and conversation template.

    Args:
        model: In eval mode, on its device.
        image_processor: PIL image → pixels.
        options: Defaults of every answer.
    """

    def __init__(
        self, model: MiniGPT4, image_processor: ToPixels, options: GenerationOptions
    ) -> None:
        self.model = model.eval()
        self.options = options
        self.image_processor = image_processor
        self._lock = threading.Lock()  # one generation at a time: they share a device

    @property
    def template(self) -> Template:
        return TEMPLATES[self.options.template]

    def start(self) -> ChatSession:
        """A new, empty session."""
        return ChatSession(Conversation(self.template))

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Image tokens ``[N, Q, H]``.

        Raises:
            DataError: for a file that is not a readable picture.
        """
        opened = [i if isinstance(i, Image.Image) else load_image(i) for i in images]
        pixels = torch.stack([self.image_processor(image) for image in opened])
        return self.model.encode_img(pixels.to(self.model.device))

    def ask(
        self,
        question: str,
        images: Sequence[ImageInput] = (),
        session: ChatSession | None = None,
        **changes: Any,
    ) -> str:
        """The whole answer to a question.

        Args:
            question: What the user says.
            images: Shown with this question, in this order.
            session: A session to go on with; a new one without.
            **changes: Any of :class:`GenerationOptions`, for this answer only.

        Raises:
            DataError: for a bad image, a question that does not fit into the context, or one that
                holds the image mark.
        """
        *_, answer = ["", *self.stream(question, images, session or self.start(), **changes)]
        return answer

    def stream(
        self,
        question: str,
        images: Sequence[ImageInput],
        session: ChatSession,
        **changes: Any,
    ) -> Generator[str, None, None]:
        """The answer as it grows; the last value is the whole answer, and joins the session.

        Closing the iterator stops the generation and leaves the session as it was. Beams show the
        answer at its end only. Arguments as in :meth:`ask`.
        """
        options = change_options(self.options, changes)
        if IMAGE_MARK in question:
            raise DataError(
                f"the question holds {IMAGE_MARK}, which stands for an image; leave it out"
            )
        asked = Conversation(self.template, [replace(m) for m in session.conversation.messages])
        encoded = list(session.images)
        if images:
            encoded += list(self.encode_images(images))
            for _ in images:
                asked.add_image()
        asked.ask(question)
        asked = self._fit(asked, encoded, options)

        texts: queue.Queue[str | BaseException | None] = queue.Queue()
        cancelled = threading.Event()
        stop = self.template.stop

        def show(text: str) -> None:
            # A growing answer may end in half a stop text or half a character: not shown yet.
            texts.put(cut_at(text, stop).rstrip("#\ufffd"))

        def work() -> None:
            try:
                listen = show if options.num_beams == 1 else None
                (text,) = self.generate(
                    [asked.prompt()], [encoded], stop, options, listen, cancelled
                )
                texts.put(text)
                texts.put(None)
            except BaseException as error:  # handed over: it belongs to the caller's thread
                texts.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        answer = ""
        try:
            while (item := texts.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if item != answer:
                    answer = item
                    yield answer
        finally:
            cancelled.set()
            worker.join()
        asked.answer(answer)
        session.conversation = asked
        session.images = encoded

    def _fit(
        self, asked: Conversation, images: list[torch.Tensor], options: GenerationOptions
    ) -> Conversation:
        """Drop the oldest turns without an image until prompt and answer fit the context."""
        room = options.max_length - options.max_new_tokens
        while (length := self._length(asked, images)) > room:
            messages = asked.messages
            old = next(
                (
                    i
                    for i in range(len(messages) - 2)
                    if messages[i].speaker == "user"
                    and messages[i + 1].speaker == "assistant"
                    and IMAGE_MARK not in messages[i].text
                ),
                None,
            )
            if old is None:
                raise DataError(
                    f"the question and its images take {length} tokens, but only {room} fit "
                    "(chat.max_length less chat.max_new_tokens); ask less, or start anew"
                )
            logger.warning("context full: an early turn is dropped: %r", messages[old].text)
            asked = Conversation(asked.template, messages[:old] + messages[old + 2 :])
        return asked

    def _length(self, asked: Conversation, images: list[torch.Tensor]) -> int:
        return sum(len(part) for part in self.model.prompt_segments(asked.prompt(), images))

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[torch.Tensor]],
        stop: str,
        options: GenerationOptions,
        listen: Callable[[str], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[str]:
        """An answer for each prompt, cut at its stop text.

        Args:
            prompts: Texts with an ``<ImageHere>`` for each image.
            images: For each prompt its encoded images, ``[Q, H]`` each.
            stop: Where an answer ends, beside the end-of-sequence token; may be empty.
            options: How to generate.
            listen: Is told the first row's text after every token.
            cancelled: Ends the generation when set.
        """
        pairs = zip(prompts, images, strict=True)
        contexts = [self.model.prompt_segments(prompt, shown) for prompt, shown in pairs]
        empty: list[list[int]] = [[] for _ in contexts]
        device = self.model.device
        spliced = splice(contexts, empty, self.model.embed_tokens, device, pad_side="left")
        tokenizer = self.model.tokenizer
        watch = Watch(tokenizer, stop, listen, cancelled)
        with self._lock:
            if options.seed is not None:
                torch.manual_seed(options.seed)
            ids = generate_ids(self.model, spliced.embeds, spliced.attention_mask, options, [watch])
        return [cut_at(tokenizer.decode(row[1:]), stop) for row in ids.tolist()]
