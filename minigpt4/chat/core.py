"""Chat: images and turns → an answer; the one inference core, with the same splice as training."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from minigpt4.chat.generation import answer_ids, cut_at, cut_growing, end_ids, has_any
from minigpt4.chat.kept_states import KeptStates, positions_of
from minigpt4.chat.likelihood import most_likely_choices
from minigpt4.chat.sessions import ChatSession, Usage
from minigpt4.chat.waiting import FairQueue, Show, Ticket, stream_in_turn
from minigpt4.conversation import IMAGE_TEXT, Conversation, Template, plain_text, stop_texts
from minigpt4.conversation.options import GenerationOptions, change_options, load_template
from minigpt4.datasets.images import as_shown, load_image
from minigpt4.datasets.samples import ToPixels
from minigpt4.errors import DataError
from minigpt4.models.language_model import learned_positions
from minigpt4.models.llm_input import Segment, splice
from minigpt4.models.minigpt4 import MiniGPT4

_KEPT_IMAGES = 64  # whose tokens are kept, of all chats together

ImageInput = str | Path | Image.Image
Part = str | Path | Image.Image  # of a question: text, or an image; a text is never a file's name


def open_image(image: ImageInput) -> Image.Image:
    """Open an image as a viewer shows it; raise a DataError if it is not readable."""
    return as_shown(image) if isinstance(image, Image.Image) else load_image(image, shown=True)


class Chat:
    """A model with its image processor, and ``options`` that are the defaults of every answer.

    Attributes:
        waiting: Who is answered next; one answer is made at a time.
        kept: What the language model has read, for next turns.
    """

    choose = most_likely_choices

    def __init__(
        self, model: MiniGPT4, image_processor: ToPixels, options: GenerationOptions
    ) -> None:
        self.model = model.eval()
        self.options = options
        self.image_processor = image_processor
        self.waiting = FairQueue()
        self.kept = KeptStates(
            0 if options.static_cache else options.kept_tokens, model.llama_model.config
        )
        self._positions = learned_positions(model.llama_model)
        self._image_tokens: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def template(self) -> Template:
        return load_template(self.options.template, self.model.llama_model.name_or_path)

    def start(self, turns: Sequence[tuple[Sequence[Part], str]] = ()) -> ChatSession:
        """Return a session that continues turns: questions, as in :meth:`ask`, with answers."""
        session = ChatSession(Conversation(self.template))
        for question, answer in turns:
            self._say(question, session)
            session.conversation.answer(self._plain(answer))
        return session

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Return tokens ``[N, Q, H]`` of images, computed in one batch and not kept."""
        pixels = torch.stack([self.image_processor(open_image(image)) for image in images])
        return self.model.encode_img(pixels.to(self.model.device))

    @torch.no_grad()
    def _encode(self, image: ImageInput) -> torch.Tensor:
        """Return an image's tokens ``[Q, H]``; those of the same pixels are computed once."""
        pixels = self.image_processor(open_image(image))
        key = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
        tokens = self._image_tokens.pop(key, None)
        if tokens is None:
            (tokens,) = self.model.encode_img(pixels[None].to(self.model.device))
        self._image_tokens[key] = tokens
        while len(self._image_tokens) > _KEPT_IMAGES:
            self._image_tokens.popitem(last=False)
        return tokens

    def ask(
        self,
        question: str | Sequence[Part],
        images: Sequence[ImageInput] = (),
        session: ChatSession | None = None,
        **changes: Any,
    ) -> str:
        """Return the whole answer to a question.

        Args:
            question: Words of the user, or parts if images are between words:
                ``["What differs between", Path("a.png"), "and", Path("b.png"), "?"]``.
            images: Images shown before the question, in this order.
            session: Session to continue; by default a new one.
            **changes: Any of :class:`GenerationOptions`, for this answer only.

        Raises:
            ConfigError: for an option that does not exist or cannot be.
            DataError: for a bad image, or a question that is empty or too long for the context.
            NonFiniteLogitsError: when the model's numbers overflow.
        """
        *_, answer = ["", *self.stream(question, images, session, **changes)]
        return answer

    def stream(
        self,
        question: str | Sequence[Part],
        images: Sequence[ImageInput] = (),
        session: ChatSession | None = None,
        *,
        ticket: Ticket | None = None,
        cancelled: threading.Event | None = None,
        **changes: Any,
    ) -> Generator[str, None, None]:
        """Yield the answer as it grows; the last value is the whole answer, and joins the session.

        Closing the iterator stops the generation and leaves the session as it was. Beams show the
        answer at its end only. ``ticket`` is a place in :attr:`waiting` that the caller has taken;
        it is given up at the end. Once ``cancelled`` is set, the answer ends where it is. Other
        arguments and errors as in :meth:`ask`.
        """
        place, stopped = ticket or self.waiting.join(), cancelled or threading.Event()
        session = session or self.start()
        asked = session.copy()
        words = [question] if isinstance(question, str) else list(question)

        def answer(show: Show) -> None:
            self._answer([*map(open_image, images), *words], asked, show, stopped, changes)

        yield from stream_in_turn(answer, place, stopped)
        if asked.usage is not None:  # else it was given up while it waited
            vars(session).update(vars(asked))

    def _answer(
        self,
        question: Sequence[Part],
        session: ChatSession,
        show: Show,
        cancelled: threading.Event,
        changes: dict[str, Any],
    ) -> None:
        """Show the answer as it grows, then None; it joins the session."""
        options, stops = change_options(self.options, changes), self.template.stops
        self._say(question, session)
        segments = self._fit(session, options)

        def show_growing(text: str) -> None:
            show(cut_growing(text, stops))

        listen = show_growing if options.num_beams == 1 else None
        text, usage = self._write(segments, options, listen, cancelled)
        session.conversation.answer(self._plain(text))
        session.usage = usage
        show(text)
        show(None)
        self._read_answer(session, options)

    def _plain(self, text: str) -> str:
        return plain_text(text, (*self.template.forbidden, *self.model.tokenizer.special))

    def _say(self, question: Sequence[Part], session: ChatSession) -> None:
        """Add the words and images of a question to a session, in their order."""
        parts = list(question)
        while parts and not isinstance(parts[0], str):
            session.images.append(self._encode(parts.pop(0)))
            session.conversation.add_image()
        words = []
        for part in parts:
            if isinstance(part, str):
                words.append(self._plain(part).strip())
            else:
                session.images.append(self._encode(part))
                words.append(IMAGE_TEXT)
        if not any(word for word in words if word != IMAGE_TEXT):
            raise DataError("the question is empty; type what to ask")
        session.conversation.ask(" ".join(word for word in words if word))

    def _fit(self, asked: ChatSession, options: GenerationOptions) -> list[Segment]:
        """Return the prompt's segments, without the oldest turns if they do not fit the context."""
        longest, limit = options.max_length, "chat.max_length"
        if self._positions is not None and self._positions < longest:
            longest, limit = self._positions, f"the language model's {self._positions} positions"
        room = max(0, longest - options.max_new_tokens)
        while True:
            segments = self.model.prompt_segments(asked.conversation.prompt(), asked.images)
            length = sum(map(len, segments))
            if length <= room:
                return segments
            shorter = asked.conversation.without_oldest_turn()
            if shorter is None:
                raise DataError(
                    f"the question and its images take {length} tokens, but only {room} fit "
                    f"({limit} less chat.max_new_tokens); ask less, or start a new chat"
                )
            asked.conversation = shorter
            asked.dropped += 1

    @torch.no_grad()
    def _write(
        self,
        segments: Sequence[Segment],
        options: GenerationOptions,
        listen: Callable[[str], None] | None,
        cancelled: threading.Event,
    ) -> tuple[str, Usage]:
        """Return the answer to one prompt, of which only what is not kept is read."""
        positions = positions_of(segments)
        keeps = self.kept.tokens and not options.static_cache
        past = self.kept.find(positions) if keeps else None
        kept = past.get_seq_length() if past is not None else 0
        stops = self.template.stops
        (ids,) = answer_ids(self.model, [segments], stops, options, listen, cancelled, past)
        if past is not None:
            # Of a search with beams the first row's answer may be any beam's.
            self.kept.keep(positions, ids if options.num_beams == 1 else [], past)
        text = self.model.tokenizer.decode(ids)
        end: Literal["stop", "length", "cancelled"] = "stop"
        if not (has_any(text, stops) or ids[-1] in end_ids(self.model, stops)):
            end = "cancelled" if cancelled.is_set() else "length"
        return cut_at(text, *stops), Usage(len(positions), kept, len(ids), end)

    @torch.no_grad()
    def _read_answer(self, session: ChatSession, options: GenerationOptions) -> None:
        """Read an answer as the next turn's prompt will have it, while its user reads it, too.

        Tokenised with the text around it, it may have other tokens than those generated.
        """
        if options.static_cache or not self.kept.tokens:
            return
        segments = self.model.prompt_segments(session.conversation.transcript(), session.images)
        positions = positions_of(segments)
        if len(positions) > (self._positions or len(positions)):
            return
        past = self.kept.find(positions)
        embeds = splice([segments], self.model.embed_tokens, self.model.device).embeds
        new = embeds[:, past.get_seq_length() :]
        self.model.llama_model.base_model(inputs_embeds=new, past_key_values=past, use_cache=True)
        self.kept.keep(positions, [], past)

    @torch.no_grad()
    def ask_each(
        self,
        questions: Sequence[str],
        pixels: Sequence[torch.Tensor | DataError],
        options: GenerationOptions,
    ) -> list[str | DataError]:
        """Return what :meth:`ask` answers to each question about its one image, all in one batch.

        Images are pixels ``[3, s, s]``; an error in place of one is returned. An error also stands
        for the answer to a question that is empty or does not fit.
        """
        readable = [image for image in pixels if isinstance(image, torch.Tensor)]
        encoded = iter(
            self.model.encode_img(torch.stack(readable).to(self.model.device)) if readable else ()
        )
        contexts: dict[int, list[Segment]] = {}
        answers: dict[int, str | DataError] = {}
        for place, (question, image) in enumerate(zip(questions, pixels, strict=True)):
            try:
                if isinstance(image, DataError):
                    raise image
                session = self.start()
                session.conversation.add_image()
                session.images.append(next(encoded))
                self._say([question], session)
                contexts[place] = self._fit(session, options)
            except DataError as error:
                answers[place] = error
        if contexts:
            with self.waiting.join():
                rows = answer_ids(self.model, list(contexts.values()), self.template.stops, options)
            for place, row in zip(contexts, rows, strict=True):
                answers[place] = cut_at(self.model.tokenizer.decode(row), *self.template.stops)
        return [answers[place] for place in range(len(questions))]

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[torch.Tensor]],
        stop: str | tuple[str, ...],
        options: GenerationOptions,
    ) -> list[str]:
        """Return an answer for each prompt, cut at the stop text.

        Args:
            prompts: Texts with an ``<ImageHere>`` for each image.
            images: For each prompt its encoded images, ``[Q, H]`` each.
            stop: Text or texts that end an answer, as the end-of-sequence token does; may be empty.
            options: Options of the generation.

        Raises:
            DataError: for a prompt that the language model has no positions for.
        """
        pairs = zip(prompts, images, strict=True)
        contexts = [self.model.prompt_segments(prompt, shown) for prompt, shown in pairs]
        if (positions := self._positions) is not None:
            longest = max(sum(map(len, segments)) for segments in contexts)
            if longest >= positions:
                raise DataError(
                    f"a prompt takes {longest} tokens, and the language model has {positions} "
                    "positions for it and the answer; ask less"
                )
            most = min(options.max_new_tokens, positions - longest)
            options = replace(options, max_new_tokens=most)
        stops = stop_texts(stop)
        with self.waiting.join():
            rows = answer_ids(self.model, contexts, stops, options)
        return [cut_at(self.model.tokenizer.decode(row), *stops) for row in rows]
