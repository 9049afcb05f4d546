"""Generation options: the ``chat:`` section of a YAML."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Annotated, Any

from minigpt4.config.checks import NotNegative, Positive, PositiveFloat
from minigpt4.conversation import OWN, TEMPLATES, Template
from minigpt4.errors import ConfigError, Fault, nearest
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.registry import bind


def _check_template(template: str | Template) -> str | None:
    if isinstance(template, Template):
        marked = any(isinstance(t, str) and IMAGE_MARK in t for t in astuple(template))
        return f"holds {IMAGE_MARK}, which only an image does" if marked else None
    known = ", ".join((*TEMPLATES, OWN))
    return (
        None if template in (*TEMPLATES, OWN) else f"unknown template {template!r}; known: {known}"
    )


def check_probability(value: float) -> str | None:
    return None if 0 < value <= 1 else f"{value} must be greater than 0 and at most 1"


def check_seed(value: int) -> str | None:
    return None if 0 <= value < 2**63 else f"{value} must be from 0 to 2**63 - 1"


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are made; the ``chat:`` section of a YAML. Defaults are the original's.

    Attributes:
        template: Name of the conversation template, ``own`` for the language model's own, or the
            keys of one (see :class:`minigpt4.conversation.Template`).
        max_new_tokens: Longest answer.
        num_beams: Beams of the search; 1 streams.
        do_sample: Draw tokens; False takes the likeliest.
        top_p: Draw from the likeliest tokens that make up this probability.
        temperature: Flattens (above 1) or sharpens (below 1) the distribution.
        repetition_penalty: Above 1 makes repeated tokens less likely.
        length_penalty: Of beams; above 0 favours longer answers.
        min_length: Fewest tokens of an answer, its end-of-sequence token counted.
        max_length: Longest prompt and answer together; older turns are dropped beyond it.
        seed: Of the sampling; None samples differently each time.
        kept_tokens: Tokens whose keys and values are kept for the next turn, of all chats together;
            0 reads everything again.
        static_cache: Keys and values in tensors of a fixed size, and on a GPU compiled steps:
            quicker tokens after a slow first answer. Nothing is kept for the next turn then.
    """

    template: Annotated[str | Template, _check_template] = "vicuna_v0"
    max_new_tokens: Positive = 300
    num_beams: Positive = 1
    do_sample: bool = True
    top_p: Annotated[float, check_probability] = 0.9
    temperature: PositiveFloat = 1.0
    repetition_penalty: PositiveFloat = 1.05
    length_penalty: float = 1.0
    min_length: NotNegative = 1
    max_length: Positive = 2000
    seed: Annotated[int, check_seed] | None = None
    kept_tokens: NotNegative = 4000
    static_cache: bool = False

    def errors(self) -> Iterator[Fault]:
        """Return what does not go together in options that are valid one by one."""
        longest, most, least = self.max_length, self.max_new_tokens, self.min_length
        if most >= longest:
            text = f"{most} leaves no room for a question in chat.max_length, {longest}"
            yield Fault("chat.max_new_tokens", text)
        if least > most:
            text = f"{least} is more than chat.max_new_tokens, {most}"
            yield Fault("chat.min_length", text)


def load_template(spec: str | Template | Mapping[str, Any], llama_model: str) -> Template:
    """Return the template that ``chat.template`` names, holds as keys, or leaves to the model.

    Raises:
        ConfigError: for a name or keys that are unknown, and a language model (a folder or hub id)
            whose own chat template cannot be used.
    """
    if isinstance(spec, str) and spec in TEMPLATES:
        return TEMPLATES[spec]
    return spec if isinstance(spec, Template) else _unnamed_template(spec, llama_model)


def _unnamed_template(spec: str | Mapping[str, Any], llama_model: str) -> Template:
    if isinstance(spec, Mapping):
        bound, faults = bind(Template, spec, "chat.template")
        _raise(faults)
        return Template(**vars(bound.options))
    if spec == OWN:
        from minigpt4.conversation.templates import own_template

        return own_template(llama_model)
    text = f"chat.template: unknown template {spec!r}; {nearest(spec, [*TEMPLATES, OWN])}"
    raise ConfigError(text)


def change_options(options: GenerationOptions, changes: dict[str, Any]) -> GenerationOptions:
    """Return the options with changes, checked like those of a YAML."""
    bound, faults = bind(GenerationOptions, changes, "chat", dry=True)
    _raise(faults)
    given = {name: value for name, value in vars(bound.options).items() if name in changes}
    changed = replace(options, **given)
    _raise(changed.errors())
    return changed


def _raise(faults: Iterable[Fault]) -> None:
    if text := "; ".join(f"{fault.key}: {fault.text}" for fault in faults):
        raise ConfigError(text)
