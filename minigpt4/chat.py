"""Chat: images and turns → an answer. The one inference core of page, terminal and evaluation.

Uses the same splice as training. An image is encoded once for each session.
"""

import logging
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from minigpt4.checks import NotNegative, Positive, PositiveFloat
from minigpt4.config import Config, check_config, load_config
from minigpt4.conversation import TEMPLATES, Conversation, Template
from minigpt4.datasets.samples import load_image
from minigpt4.errors import ConfigError, DataError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import IMAGE_MARK, splice
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.processors.image_processors import ImageProcessor
from minigpt4.registry import IMAGE_PROCESSORS, MODELS, Fault, bind, build_named

_TAIL = 16  # tokens decoded to see whether an answer has reached its stop text

logger = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image


def _check_template(name: str) -> str | None:
    return (
        None if name in TEMPLATES else f"unknown template {name!r}; known: {', '.join(TEMPLATES)}"
    )


def _check_share(value: float) -> str | None:
    return None if 0 < value <= 1 else f"{value} must be greater than 0 and at most 1"


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are made; the ``chat:`` section of a YAML. Defaults are the original's.

    Attributes:
        template: Name of the conversation template.
        max_new_tokens: Longest answer.
        num_beams: Beams of the search; 1 streams.
        do_sample: Draw tokens; False takes the likeliest.
        top_p: Draw from the likeliest tokens that make up this probability.
        temperature: Flattens (above 1) or sharpens (below 1) the distribution.
        repetition_penalty: Above 1 makes repeated tokens less likely.
        length_penalty: Of beams; above 0 favours longer answers.
        min_length: Tokens before an answer may end.
        max_length: Longest prompt and answer together; older turns are dropped beyond it.
        seed: Of the sampling; None draws anew each time.
    """

    template: Annotated[str, _check_template] = "vicuna_v0"
    max_new_tokens: Positive = 300
    num_beams: Positive = 1
    do_sample: bool = True
    top_p: Annotated[float, _check_share] = 0.9
    temperature: PositiveFloat = 1.0
    repetition_penalty: PositiveFloat = 1.05
    length_penalty: float = 1.0
    min_length: NotNegative = 1
    max_length: Positive = 2000
    seed: int | None = None


@dataclass
class ChatSession:
    """One chat's turns and encoded images; sessions share nothing but the model."""

    conversation: Conversation
    images: list[torch.Tensor] = field(default_factory=list)  # each [Q, H]


class _Watch(StoppingCriteria):
    """Sees every token: tells a listener the text so far and ends rows that reached their stop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: str,
        listen: Callable[[str], None] | None,
        cancelled: threading.Event | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._listen = listen
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = input_ids[:, 1:].tolist()  # the bos that every row starts with is no answer
        if self._listen is not None:
            self._listen(self._tokenizer.decode(rows[0]))
        stop_now = self._cancelled is not None and self._cancelled.is_set()
        done = [stop_now or self._stop in self._tokenizer.decode(row[-_TAIL:]) for row in rows]
        return torch.tensor(done, device=input_ids.device)


class Chat:
    """A model with its image processor and conversation template.

    Args:
        model: In eval mode, on its device.
        image_processor: PIL image → pixels.
        options: Defaults of every answer.
    """

    def __init__(
        self, model: MiniGPT4, image_processor: ImageProcessor, options: GenerationOptions
    ) -> None:
        self.model = model.eval()
        self.options = options
        self._image_processor = image_processor
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
        pixels = torch.stack([self._image_processor(image) for image in opened])
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
        options = _changed(self.options, changes)
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
            texts.put(_cut(text, stop).rstrip("#\ufffd"))

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
            stop: Where an answer ends.
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
        watch = _Watch(tokenizer, stop, listen, cancelled)
        # With ids beside the embeddings, generated ids start with bos as in the original.
        bos = torch.full((len(prompts), 1), tokenizer.bos_id, device=device)
        with self._lock:
            if options.seed is not None:
                torch.manual_seed(options.seed)
            ids = self.model.llama_model.generate(
                input_ids=bos,
                inputs_embeds=spliced.embeds,
                attention_mask=spliced.attention_mask,
                generation_config=_generation_config(options, tokenizer),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        return [_cut(tokenizer.decode(row[1:]), stop) for row in ids.tolist()]


def _generation_config(options: GenerationOptions, tokenizer: Tokenizer) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": False}
    if options.do_sample:
        # top_k is the old default of transformers, which the original left in force.
        sampling = {
            "do_sample": True,
            "top_p": options.top_p,
            "top_k": 50,
            "temperature": options.temperature,
        }
    beams: dict[str, Any] = {"num_beams": options.num_beams}
    if options.num_beams > 1:
        beams["length_penalty"] = options.length_penalty
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_length=options.min_length,
        repetition_penalty=options.repetition_penalty,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        **sampling,
        **beams,
    )


def _cut(text: str, stop: str) -> str:
    return text.split(stop)[0].strip()


def _changed(options: GenerationOptions, changes: dict[str, Any]) -> GenerationOptions:
    """The options with changes, checked like those of a YAML."""
    bound, faults = bind(GenerationOptions, changes, "chat", dry=True)
    if faults:
        raise ConfigError("; ".join(f"{fault.key}: {fault.text}" for fault in faults))
    return replace(options, **bound)


def check_chat(config: Config) -> list[Fault]:
    """Faults of the ``chat:`` section."""
    return bind(GenerationOptions, config.chat, "chat", dry=True)[1]


def choose_device(device: Literal["auto", "cuda", "cpu", "mps"], gpu_id: int = 0) -> torch.device:
    """The device to chat on; ``auto`` takes a GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no usable GPU; use --device cpu")
    if gpu_id >= torch.cuda.device_count():
        raise ConfigError(f"--gpu-id {gpu_id}: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", gpu_id)


def load_chat(
    cfg_path: str | Path,
    options: Sequence[str] = (),
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto",
    gpu_id: int = 0,
) -> Chat:
    """A chat from an evaluation YAML.

    Args:
        cfg_path: E.g. ``eval_configs/tiny_eval.yaml``.
        options: ``a.b=c`` each, on top of the YAML.
        device: Where to run.
        gpu_id: Which GPU.

    Raises:
        MiniGPT4Error: for a fault in the config or the weights.
    """
    config = load_config(cfg_path, options)
    check_config(config, sections=("model",), extra=check_chat)
    model = MODELS.build(config.arch, config.model_options(), device=choose_device(device, gpu_id))
    return Chat(model, _image_processor(config), generation_options(config))


def generation_options(config: Config) -> GenerationOptions:
    """The ``chat:`` section."""
    return GenerationOptions(**bind(GenerationOptions, config.chat, "chat")[0])


def _image_processor(config: Config) -> ImageProcessor:
    """The one the YAML's first data set names, as in the original; else a plain resize."""
    spec: dict[str, Any] = {"name": "blip2_image_eval"}
    for entry in config.datasets.values():
        spec = (entry.get("vis_processor") or {}).get("train") or spec
        break
    size = config.model.get("image_size", 224)
    processor = build_named(IMAGE_PROCESSORS, {**spec, "image_size": spec.get("image_size", size)})
    if not isinstance(processor, ImageProcessor) or processor.image_size != size:
        raise ConfigError(
            f"{config.path}: the image processor makes {processor.image_size} pixels, "
            f"model.image_size is {size}"
        )
    return processor
